import json

import pytest
from conftest import SMALL, run

import train

pytestmark = pytest.mark.usefixtures("small_epochs")


def test_a_given_threshold_is_kept(data_set, tmp_path):
    flags = ["--data", data_set, *SMALL, "--epochs", "1", "--threshold", "0.77"]
    assert run(train, *flags, "--output", tmp_path / "run") == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["threshold"] == record["threshold_without_tta"] == 0.77
    assert "validation" in record


def test_a_training_that_finds_no_membrane_is_reported(data_set, tmp_path, capsys):
    flags = ["--data", data_set, *SMALL, "--epochs", "1"]
    assert run(train, *flags, "--output", tmp_path / "a") == 0
    assert "hardly any membrane" in capsys.readouterr().out
