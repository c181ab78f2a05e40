import importlib.util
import json

import pytest
from conftest import run

import export


def test_a_bare_model_is_exported_too(outputs, tmp_path):
    model = outputs / "small/model.keras"
    assert run(export, model, "--format", "tf", "--output", tmp_path / "tf") == 0
    assert (tmp_path / "tf/saved_model.pb").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "taken.zip"], "exists, and nothing is overwritten"),
        (["--output", "small.txt"], "must end in .zip"),
        (["--output", "taken.zip/small.zip"], "cannot be written"),
        (["--output", "small.xml", "--format", "openvino"], "small.bin: exists"),
        pytest.param(
            ["--output", "new.zip", "--license", "mine"],
            "BioImage.IO refuses it",
            marks=pytest.mark.slow,
        ),
        (["--format", "torch"], "invalid choice"),
        (["none"], "no such run or model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    outputs, tmp_path, monkeypatch, capfd, flags, words
):
    monkeypatch.chdir(tmp_path)
    for name in ("taken.zip", "small.bin"):
        (tmp_path / name).write_text("mine")
    assert run(export, *([] if "none" in flags else ["small"]), *flags) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("export.py: error: ") and words in lines[0]
    assert len(lines[0]) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.bin", "taken.zip"]
    assert (tmp_path / "taken.zip").read_text() == (tmp_path / "small.bin").read_text() == "mine"


def test_an_unfinished_run_is_refused(outputs, tmp_path, capsys):
    record = json.loads((outputs / "small/run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(
        json.dumps(
            {key: record[key] for key in ("format", "finished", "synthetic", "flags", "ended")}
        )
    )
    assert run(export, tmp_path / "run", "--output", tmp_path / "run.zip") == 2
    assert "--resume" in capsys.readouterr().err


def test_a_missing_library_is_named_with_what_installs_it(outputs, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else found(name)
    )
    assert run(export, "small", "--format", "onnx", "--output", tmp_path / "a.onnx") == 2
    assert "tf2onnx is not installed" in capsys.readouterr().err
