import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import proofreading
import quality
import result_tables
import speed
import transfer

import train
from membrane.errors import UserError
from membrane.io.writers import write_json


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
    assert result["leave_one_out"][:, 0] == pytest.approx([0.8, *[1 - abs(0.5 - 0.7) / 2] * 2])


def test_the_oracle_is_the_best_threshold_for_all():
    result = quality.summarise([make_row(0, 0.5), make_row(1, 0.5)], quality.DEFAULT)
    assert result["threshold"] == 0.5 and result["oracle"].tolist() == [1, 0.9]


def test_trainings_that_have_a_row_are_not_repeated(tmp_path, monkeypatch):
    done = []

    def score(slices, scratch, recipe, block, seed):
        done.append(block)
        if len(done) == 3:
            raise KeyboardInterrupt
        return make_row(block, 0.5, seed)

    monkeypatch.setattr(quality, "score_block", score)
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        quality.cross_validate([], [("small", 0)], rows, tmp_path)
    quality.cross_validate([], [("small", 0)], rows, tmp_path)
    assert done == [0, 1, 2, 2, 3, 4]
    assert [row["block"] for row in result_tables.read_rows(rows)] == [0, 1, 2, 3, 4]


def test_rows_of_another_schedule_are_not_mixed_with_new_ones(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(make_row(0, 0.5) | {"epochs": 7}) + "\n")
    with pytest.raises(UserError, match="small was trained for 7 epochs"):
        quality.cross_validate([], [("small", 0)], rows, tmp_path)


@pytest.mark.slow
def test_a_training_goes_on_only_with_its_own_flags_and_slices(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "TILES_PER_EPOCH", 8)
    image = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    label = (image > 80) * np.uint8(255)
    flags = ["--filters", "2", "2", "--epochs", "1", "--batch-size", "2"]
    run, record = quality.train_run([("a", image, label)], flags, tmp_path / "run")
    assert record["train_slices"] == ["a"] and record["flags"]["filters"] == [2, 2]
    trained, commands = (run / "model.keras").stat().st_mtime_ns, []
    monkeypatch.setattr(train, "train", lambda args: commands.append(args) or 130)
    again, _ = quality.train_run([("a", image, label)], flags, tmp_path / "run")
    assert again == run and (run / "model.keras").stat().st_mtime_ns == trained
    assert not commands
    for slices, more in (
        ([("a", image, 255 - label)], []),
        ([("a", image, label)], ["--seed", "1"]),
    ):
        with pytest.raises(KeyboardInterrupt):
            quality.train_run(slices, [*flags, *more], tmp_path / "run")
        assert commands[-1].resume is None and Path(commands[-1].output) != run
    write_json(run / "run.json", record | {"finished": False})
    with pytest.raises(KeyboardInterrupt):
        quality.train_run([("a", image, label)], flags, tmp_path / "run")
    assert commands[-1].resume == str(run)


def test_a_shipped_run_has_the_cross_validated_thresholds_and_no_path(tmp_path, monkeypatch):
    run = tmp_path / "scratch" / "run"
    run.mkdir(parents=True)
    (run / "model.keras").write_bytes(b"weights")
    flags = {"data": str(tmp_path), "output": str(run), "threshold": 0.5, "val_slices": "none"}
    record = {"format": 1, "finished": True, "flags": flags, "threshold": 0.5}
    monkeypatch.setattr(quality, "train_run", lambda *args: (run, record))
    rows = [make_row(0, 0.7), make_row(1, 0.7)]
    quality.ship("small", [], rows, tmp_path, tmp_path / "shipped")
    text = (tmp_path / "shipped" / "run.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["threshold"] == 0.7
    assert json.loads(text)["cross_validation"]["one pass, neighbours"]["v_rand"] == pytest.approx(
        1
    )
    assert (tmp_path / "shipped" / "model.keras").read_bytes() == b"weights"


def test_every_marked_table_is_what_the_rows_say():
    tables = quality.draw_tables(result_tables.read_rows(quality.ROWS))
    tables |= transfer.draw_tables() | speed.draw_tables() | proofreading.draw_tables()
    found = set()
    for path in result_tables.list_documents():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin = result_tables.MARK.format(name)
            if begin in text:
                assert text.split(begin)[1].split(result_tables.END)[0].strip() == table
                found.add(name)
    assert found == set(tables)


def test_rows_are_of_slices_that_may_be_used():
    for row in result_tables.read_rows(quality.ROWS):
        assert all(1 <= int(name[-4:]) <= 25 for name in row["slices"])
        assert json.dumps(row).count("/") == 0  # no path of a machine
