import json
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage.measure import label as connected_components

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import quality
import slices
import speed
import transfer

import data
import train


def make_row(block, peak, seed=0):
    """A row of two slices whose scores are highest at one of five thresholds."""
    thresholds = [0.1, 0.3, 0.5, 0.7, 0.9]
    scores = [[1 - abs(t - peak) / 2, 0.9 - abs(t - peak) / 2, 0.8] for t in thresholds]
    return {
        "recipe": "small", "block": block, "seed": seed, "parameters": 117985,
        "epochs": train.EPOCHS, "minutes": 3.0, "slices": [f"s{block}a", f"s{block}b"],
        "thresholds": thresholds,
        "scores": {method: [scores, scores] for method in quality.METHODS},
    }  # fmt: skip


@pytest.mark.parametrize("block", range(5))
def test_a_block_is_held_out_with_a_gap_on_either_side(block):
    training, held_out = quality.split_block(25, block)
    assert held_out == list(range(5 * block, 5 * block + 5))
    assert len(training) == (19 if block in (0, 4) else 18)
    assert min(abs(i - j) for i in training for j in held_out) == 2


def test_a_blocks_threshold_is_chosen_on_the_other_blocks_of_its_seed():
    rows = [make_row(0, 0.3), make_row(1, 0.7), make_row(2, 0.7), make_row(0, 0.5, seed=1)]
    result = quality.summarise(rows, quality.DEFAULT)
    assert result["blocks"][0, 0][0] == 0.7  # not 0.3, its own
    assert result["blocks"][0, 0][1][0] == pytest.approx(1 - 0.4 / 2)
    assert (1, 0) not in result["blocks"]  # nothing to choose on
    assert result["leave_one_out"][0][0] == pytest.approx(
        np.mean([0.8, *[1 - abs(0.5 - 0.7) / 2] * 2])
    )


def test_the_sensitivity_is_read_between_the_thresholds():
    result = quality.summarise([make_row(0, 0.5), make_row(1, 0.5)], quality.DEFAULT)
    assert result["threshold"] == 0.5 and result["oracle"].tolist() == [1, 0.9]
    assert result["shifted"][0] == pytest.approx([0.975, 0.875])


def test_trainings_that_have_a_row_are_not_repeated(tmp_path, monkeypatch):
    done = []

    def score(pairs, scratch, job):
        _, block, seed = job
        done.append(block)
        if len(done) == 3:
            raise KeyboardInterrupt
        return make_row(block, 0.5, seed)

    monkeypatch.setattr(quality, "score_block", score)
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        quality.cross_validate(None, [("small", 0)], rows, tmp_path)
    quality.cross_validate(None, [("small", 0)], rows, tmp_path)
    assert done == [0, 1, 2, 2, 3, 4]
    assert [row["block"] for row in quality.read_rows(rows)] == [0, 1, 2, 3, 4]


def test_rows_of_another_schedule_are_not_mixed_with_new_ones(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(make_row(0, 0.5) | {"epochs": 7}) + "\n")
    with pytest.raises(slices.UserError, match="small was trained for 7 epochs"):
        quality.cross_validate(None, [("small", 0)], rows, tmp_path)


def test_a_checkpoint_of_other_flags_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TILES_PER_EPOCH", 8)
    image = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    pairs = data.Pairs(["a"], [image], [image > 0.3])
    flags = ["--filters", "2", "2", "--epochs", "1", "--batch-size", "2"]
    quality.fit_network(pairs, flags, 0, tmp_path / "run")
    _, _, again = quality.fit_network(pairs, flags, 0, tmp_path / "run")
    assert again["epochs"] == 1
    for other, seed in ((data.Pairs(["a"], [image + 1], [image > 0.3]), 0), (pairs, 1)):
        with pytest.raises(slices.UserError, match="of other flags or slices"):
            quality.fit_network(other, flags, seed, tmp_path / "run")
    (tmp_path / "run/begun.json").unlink()  # as before there was one
    with pytest.raises(slices.UserError, match="of other flags or slices"):
        quality.fit_network(pairs, flags, 0, tmp_path / "run")


def test_every_marked_table_is_what_the_rows_say():
    tables = quality.draw_tables(quality.read_rows(quality.ROWS))
    tables |= transfer.draw_tables() | speed.draw_tables()
    found = []
    for path in quality.list_documents():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin = quality.MARK.format(name)
            if begin in text:
                assert text.split(begin)[1].split(quality.END)[0].strip() == table
                found.append(name)
    assert {"recipes", "blocks small"} <= set(found)


def test_rows_are_of_slices_that_may_be_used():
    for row in quality.read_rows(quality.ROWS):
        assert all(1 <= int(name[-4:]) <= 25 for name in row["slices"])
        assert json.dumps(row).count("/") == 0  # no path of a machine


def test_a_resized_label_keeps_its_cells_apart():
    label = np.ones((20, 30), bool)
    label[:, 9] = label[13] = False
    for shape in ((10, 15), (16, 24), (25, 37), (7, 9)):
        resized = transfer.resize_label(label, shape)
        assert resized.shape == shape
        assert connected_components(resized, connectivity=1).max() == 4
