import json

import pytest
from conftest import SMALL, run

import train
from membrane.inference import neighbours
from membrane.training import calibration, callbacks

pytestmark = pytest.mark.usefixtures("small_epochs")


def test_held_out_slices_are_decided_together_and_the_record_is_written_before_any_picture(
    data_set, tmp_path, monkeypatch, capsys
):
    """As predict.py decides them: a threshold chosen slice by slice would not be theirs."""
    asked, drawn = [], []

    def watch(maps, *others):
        asked.append((len(maps), *others))
        return neighbours.precompute_segmentations(maps, *others)

    def draw(path, *args):
        drawn.append(json.loads((path.parent / "run.json").read_text()))

    for module in (calibration, callbacks):
        monkeypatch.setattr(module, "precompute_segmentations", watch)
    for name in ("draw_curves", "draw_validation_sheet"):
        monkeypatch.setattr(calibration.plots, name, draw)
    flags = ["--data", data_set, *SMALL, "--epochs", "1", "--val-slices", "3-4"]
    assert run(train, *flags, "--threshold", "0.77", "--output", tmp_path / "run") == 0
    assert asked == [(2,)] * 3  # the validation of the last epoch; one pass, flips averaged
    assert "hardly any membrane" in capsys.readouterr().out  # after one epoch
    assert len(drawn) == 2
    for record in drawn:
        assert record["threshold"] == record["threshold_without_tta"] == 0.77 and record["finished"]
        assert "validation" in record
