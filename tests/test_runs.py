"""Runs and folders of masks: which one is taken, which are refused, none is overwritten."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import PRETRAINED, check_refusal, fail_at, run, run_predict
from PIL import Image

import train
from membrane import folders, runs
from membrane.errors import UserError
from membrane.inference import outputs as outputs_module
from membrane.io.locks import release_locks

GOOD = {"format": 1, "finished": True, "synthetic": False, "flags": {}, "threshold": 0.5}
GOOD |= {"ended": "2026-01-01"}


@pytest.mark.parametrize("record, words", [
    (None, "cannot be read"), ("", "damaged"), ('{"a', "damaged"), ("[]", "damaged"),
    (b"\xff\xfe", "damaged"), (GOOD | {"format": 99}, "newer version"),
    (GOOD | {"format": "1"}, "damaged"), (GOOD | {"threshold": "abc"}, "damaged"),
    (GOOD | {"threshold": 5}, "damaged"), (GOOD | {"threshold": 1}, "damaged"),
    (GOOD | {"threshold": None}, "damaged"),
    (GOOD | {"scaling": {"mean": None}}, "damaged"), (GOOD | {"scaling": None}, "damaged"),
    (GOOD | {"scaling": {"deviation": -1}}, "damaged"), (GOOD | {"flags": []}, "damaged"),
    (GOOD | {"pixel_size": -4}, "damaged"), (GOOD | {"ended": None}, "damaged"),
    ({key: GOOD[key] for key in GOOD if key != "threshold"}, "no calibrated threshold"),
])  # fmt: skip
def test_a_record_that_cannot_be_trusted_is_refused(
    trained, one_slice, tmp_path, capsys, record, words
):
    (tmp_path / "run").mkdir()
    shutil.copy(trained / "small/model.keras", tmp_path / "run")
    if record is not None:
        text = json.dumps(record) if isinstance(record, dict) else record
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "run/run.json").write_bytes(content)
    assert run_predict(one_slice, "--model", tmp_path / "run", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words, str(tmp_path / "run"))
    assert not (tmp_path / "masks").exists()


def test_runs_are_of_the_format_that_ships():
    for name in (runs.PRETRAINED, "large"):
        assert runs.read_run(PRETRAINED.parent / name)["format"] == runs.FORMAT
    assert GOOD["format"] == runs.FORMAT


def write_run(outputs, name, **changes):
    record = {"format": 1, "finished": True, "synthetic": False, "flags": {}, "ended": "2026-01-01"}
    (outputs / name).mkdir(parents=True)
    (outputs / name / "run.json").write_text(json.dumps(record | changes))


def test_the_newest_finished_run_on_real_slices_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    with pytest.raises(UserError, match=r"run python train\.py"):
        runs.find_run(None)
    write_run(tmp_path, "pretrained")
    assert runs.find_run(None).name == "pretrained"
    write_run(tmp_path, "b-old")
    write_run(tmp_path, "a-new", ended="2026-02-02")
    write_run(tmp_path, "synthetic", ended="2026-03-03", synthetic=True)
    write_run(tmp_path, "cut", ended="2026-04-04", finished=False)
    assert runs.find_run(None).name == "a-new"
    assert runs.find_run("synthetic") == tmp_path / "synthetic"
    with pytest.raises(UserError, match="there are: a-new, b-old, cut, pretrained, synthetic"):
        runs.find_run("other")


def test_without_a_run_of_ones_own_the_shipped_one_predicts(
    trained, folder, tmp_path, monkeypatch, capsys
):
    outputs = tmp_path / "outputs"
    for name in (runs.PRETRAINED, runs.LARGE):
        shutil.copytree(trained / "small", outputs / name)
    monkeypatch.setattr(runs, "OUTPUTS", outputs)
    assert run_predict(folder, "--output", tmp_path / "a") == 0
    assert "outputs/pretrained (ships with this repository)" in capsys.readouterr().out
    assert run_predict(folder, "--model", "large", "--output", tmp_path / "b") == 0
    assert "outputs/large" in capsys.readouterr().out
    shutil.copytree(trained / "small", outputs / "mine")
    record = json.loads((outputs / "mine/run.json").read_text())
    for v_rand, words in ((0.1, "passed over: .*mine has V_rand 0.1"), (0.8, "Model: .*mine")):
        record["validation"]["leave_one_out"] = {"v_rand": v_rand}
        (outputs / "mine/run.json").write_text(json.dumps(record))
        assert run_predict(folder, "--output", tmp_path / f"{v_rand}") == 0
        assert re.search(words, capsys.readouterr().out)


def test_a_damaged_or_poor_run_is_passed_over_and_a_bad_one_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    write_run(tmp_path, "pretrained", cross_validation={"flips averaged": {"v_rand": 0.97}})
    write_run(tmp_path, "damaged", ended=None)
    write_run(tmp_path, "chance", validation={"oracle": {"v_rand": 0.3}})
    assert runs.find_run(None).name == "pretrained"
    printed = capsys.readouterr().out
    assert "passed over: " in printed and "damaged/run.json" in printed and "0.300" in printed
    for v_rand, named in ((0.96, False), (0.9, True)):
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        write_run(tmp_path, "mine", validation={"leave_one_out": {"v_rand": v_rand}})
        assert runs.find_run(None).name == "mine"
        assert ("compare with --model pretrained" in capsys.readouterr().out) == named


def test_a_folder_that_another_command_works_on_is_left_alone(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    fail_at(monkeypatch, outputs_module, "open_pages", 2, ZeroDivisionError)
    flags = (folder, "--model", PRETRAINED, "--output", tmp_path / "masks")
    with pytest.raises(ZeroDivisionError):
        run_predict(*flags)
    program = "import sys; from pathlib import Path; from membrane.io.locks import lock_folder; "
    program += "lock_folder(Path(sys.argv[1])); print(1, flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", program, tmp_path / "masks"], cwd=runs.ROOT,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    other.stdout.read(1)
    assert run_predict(*flags) == 2
    check_refusal(capsys, f"process {other.pid} on ", "is at work on it")
    other.kill()
    other.communicate()
    assert run_predict(*flags) == 0
    assert "Going on" in capsys.readouterr().out
    assert sorted(path.suffix for path in (tmp_path / "masks").iterdir()) == [
        "", ".html", ".png", ".png", ".png",
    ]  # fmt: skip


def test_work_is_continued_in_the_folder_that_was_interrupted(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    assert run_predict(folder, "--model", PRETRAINED) == 0
    fail_at(monkeypatch, outputs_module, "open_pages", 3, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run_predict(folder, "--model", PRETRAINED)
    assert run_predict(folder, "--model", PRETRAINED) == 0
    assert "Going on" in capsys.readouterr().out
    assert len(list((tmp_path / "outputs/masks").iterdir())) == 2


def test_a_run_on_synthetic_slices_is_reported_as_such(outputs, folder, tmp_path, capsys):
    synthetic = tmp_path / "synthetic"
    synthetic.mkdir()
    for path in (outputs / "small").iterdir():
        (synthetic / path.name).write_bytes(path.read_bytes())
    record = json.loads((synthetic / "run.json").read_text())
    (synthetic / "run.json").write_text(json.dumps(record | {"synthetic": True}))
    assert run_predict(folder, "--model", synthetic, "--output", tmp_path / "masks") == 0
    assert "trained on synthetic slices" in capsys.readouterr().out


def test_masks_are_never_overwritten(outputs, folder, tmp_path, capsys):
    assert run_predict(folder, "--output", tmp_path / "masks") == 0
    before = (tmp_path / "masks/a.png").stat().st_mtime_ns
    assert run_predict(folder, "--output", tmp_path / "masks") == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "masks/a.png").stat().st_mtime_ns == before


def test_the_input_folder_is_never_written_to(outputs, folder, capsys):
    for output in (folder, folder / "masks"):
        assert run_predict(folder, "--output", output) == 2
    assert "input folder" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 3


def test_unfinished_work_is_continued_also_where_no_output_was_named(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    fail_at(monkeypatch, outputs_module, "open_pages", 2, ZeroDivisionError)
    flags = (folder, "--model", PRETRAINED)
    with pytest.raises(ZeroDivisionError):
        run_predict(*flags)
    assert run_predict(*flags) == 0
    assert "Going on" in capsys.readouterr().out
    assert run_predict(*flags) == 0
    masks = tmp_path / "outputs/masks"
    assert sorted(path.name for path in masks.iterdir()) == ["my slices", "my slices-2"]


def test_its_own_unfinished_work_is_continued(outputs, folder, tmp_path, monkeypatch, capsys):
    fail_at(monkeypatch, outputs_module, "open_pages", 2, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run_predict(folder, "--output", tmp_path / "masks")
    before = (tmp_path / "masks/a.png").stat().st_mtime_ns
    assert run_predict(folder, "--output", tmp_path / "masks", "--threshold", "0.123") == 2
    assert run_predict(folder, "--output", tmp_path / "masks") == 0
    assert "Going on" in capsys.readouterr().out
    assert (tmp_path / "masks/a.png").stat().st_mtime_ns == before
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    record = json.loads((tmp_path / "masks/about/prediction.json").read_text())
    assert record["finished"] and list(record["membrane"]) == ["a.png", "b 2.tif", "c.jpg"]
    assert (tmp_path / "masks/about/contact_sheet.png").exists()


def test_changed_slices_are_not_mixed_into_unfinished_work(
    outputs, folder, tmp_path, monkeypatch, capsys
):
    fail_at(monkeypatch, outputs_module, "open_pages", 2, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run_predict(folder, "--output", tmp_path / "masks")
    Image.new("L", (40, 50)).save(folder / "a.png")
    assert run_predict(folder, "--output", tmp_path / "masks") == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_slice_that_changed_without_changing_its_size_is_another_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1234")
    before = folders.fingerprint([tmp_path / "a.png"])
    assert folders.fingerprint([tmp_path / "a.png"]) == before
    os.utime(tmp_path / "a.png", ns=(0, 10**18))
    assert folders.fingerprint([tmp_path / "a.png"]) != before


def test_folders_above_a_new_one_are_made_and_a_taken_name_gets_a_number(tmp_path):
    wanted = tmp_path / "a/b/c"
    assert folders.make_folder(str(wanted), tmp_path) == wanted and wanted.is_dir()
    (wanted / "x").touch()
    release_locks()
    assert folders.make_folder(None, wanted) == tmp_path / "a/b/c-2"
    assert folders.make_folder(None, wanted) == tmp_path / "a/b/c-3"
    release_locks()
    assert list((tmp_path / "a/b/c-2").iterdir()) == []


def test_a_run_is_never_overwritten(data_set, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(train, "--data", data_set, "--output", tmp_path) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resuming_a_finished_run_is_refused(trained, capsys):
    assert run(train, "--resume", trained / "small") == 2
    assert "finished" in capsys.readouterr().err
