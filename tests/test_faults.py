"""Real processes, killed for real, and on full disks: python -m pytest -m slow."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import read_history, read_weights, write_data_set
from PIL import Image
from processes import (
    KILLS,
    MADE,
    check_full,
    command,
    contents,
    finish,
    kill,
    kill_at_random,
    predict_command,
    small_disk,
    start,
    wait_for,
)

from membrane import synthetic
from membrane.runs import ROOT

pytestmark = pytest.mark.slow
SLICES, FLAGS = 30, ("--labels", "--probability", "--no-tta")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of slices, and the undisturbed masks and labels of it."""
    root = tmp_path_factory.mktemp("many")
    (root / "slices").mkdir()
    for seed in range(SLICES):
        picture = Image.fromarray(synthetic.make_slice(200, 216, seed)[0])
        picture.save(root / "slices" / f"{seed}.png")
    began = time.monotonic()
    finish(predict_command(root / "slices", root / "masks", *FLAGS))
    masks = contents(root / "masks", *MADE)
    assert len(masks) == (3 + 7) * SLICES + 2  # with what the page shows and corrects
    return root / "slices", masks, time.monotonic() - began


def test_a_prediction_killed_again_and_again_ends_like_an_undisturbed_one(many, tmp_path):
    source, whole, seconds = many
    masks, killed = tmp_path / "masks", 0
    args = predict_command(source, masks, *FLAGS)
    for seed in range(5 * KILLS):
        status = kill_at_random(args, seconds, seed)
        assert status <= 0
        killed += status < 0
        known = contents(masks, *MADE)
        assert all(whole[name] == content for name, content in known.items())
        record = masks / "about" / "prediction.json"
        ended = record.exists() and json.loads(record.read_text())["finished"]
        assert ended or status < 0
        if ended:  # perhaps killed after its last word: all is there
            assert known == whole
            shutil.rmtree(masks)
        if killed == KILLS:
            break
    assert killed == KILLS
    finish(args)
    assert contents(masks, *MADE) == whole


def test_a_killed_training_can_be_resumed(data_set, tmp_path):
    run, flags = tmp_path / "run", ["--epochs", 3, "--filters", 2, 2, "--batch-size", 16]
    process = start(*command("train", "--data", data_set, *flags, "--output", run))
    wait_for((run / "history.csv").exists, process)
    kill(process)
    known = read_history(run)
    assert 1 <= len(known) < 3
    printed = finish(command("train", "--resume", run))
    assert "Epoch 1/3" not in printed and "Epoch 3/3" in printed
    assert read_history(run)[: len(known)] == known and len(read_history(run)) == 3


def test_a_training_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path):
    data = write_data_set(tmp_path / "set")
    flags = ["--epochs", 5, "--filters", 2, 2, "--batch-size", 16, "--seed", 3, "--data", data]
    began = time.monotonic()
    finish(command("train", *flags, "--output", tmp_path / "whole"))
    seconds, run, killed, resumed = time.monotonic() - began, tmp_path / "run", 0, 0
    whole = read_weights(tmp_path / "whole")
    for seed in range(5 * KILLS):
        if (run / "checkpoint.npz").exists():
            args = command("train", "--resume", run)
            resumed += 1
        else:  # it had done no epoch, or all: nothing is lost by starting again
            shutil.rmtree(run, ignore_errors=True)
            args = command("train", *flags, "--output", run)
        status = kill_at_random(args, seconds, seed)
        assert status <= 0
        killed += status < 0
        if (run / "run.json").exists() and json.loads((run / "run.json").read_text())["finished"]:
            assert all(map(np.array_equal, read_weights(run), whole))
            shutil.rmtree(run)
        if killed >= KILLS and resumed >= 2:
            break
    assert killed >= KILLS and resumed >= 2
    if (run / "checkpoint.npz").exists():
        finish(command("train", "--resume", run))
        assert all(map(np.array_equal, read_weights(run), whole))


@pytest.mark.parametrize("end, kills", [("zip", 1), ("onnx", KILLS - 1)])
def test_an_export_killed_again_and_again_leaves_a_whole_file_or_none(tmp_path, end, kills):
    path, killed = tmp_path / f"network.{end}", 0
    kind = {"zip": "bioimageio"}.get(end, end)
    args = command("export", "pretrained", "--format", kind, "--output", path)
    began = time.monotonic()
    finish(args)
    seconds, size = time.monotonic() - began, path.stat().st_size
    for seed in range(5 * kills):
        path.unlink(missing_ok=True)
        status = kill_at_random(args, seconds, seed)
        killed += status < 0
        assert path.exists() or status < 0
        assert not path.exists() or abs(path.stat().st_size - size) < 2000
        if killed == kills:
            break
    path.unlink(missing_ok=True)
    assert killed == kills
    finish(args)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_prediction_in_one_line_and_it_goes_on_later(many, tmp_path, number):
    source, whole, _ = many
    process = subprocess.Popen(
        predict_command(source, tmp_path / "masks", *FLAGS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # nohup ignores it
    )
    wait_for(lambda: len(list((tmp_path / "masks").glob("*.png"))) >= 3, process)
    process.send_signal(number)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and printed == b"predict.py: interrupted\n"
    assert not [path for path in (tmp_path / "masks").rglob("*") if path.name.startswith(".part")]
    again = finish(predict_command(source, tmp_path / "masks", *FLAGS))
    assert "Going on" in again
    assert contents(tmp_path / "masks", *MADE) == whole


def test_two_predictions_and_two_trainings_at_once_do_not_meet(many, tmp_path):
    source, whole, _ = many
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns(".git", "quality", "masks", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignore)
    data = write_data_set(tmp_path / "set")
    train = [sys.executable, "train.py", "--data", data, "--epochs", 1, "--filters", 2, 2]
    guess = [sys.executable, "predict.py", source, "--model", "pretrained", "--labels", "--no-tta"]
    processes = [
        subprocess.Popen([*map(str, args)], cwd=clone, stdout=subprocess.PIPE, text=True)
        for args in (train, train, guess, guess)
    ]
    printed = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    runs = [path.parent for path in (clone / "outputs").glob("2*/run.json")]
    assert len(runs) == 2
    for one, other in zip(read_weights(runs[0]), read_weights(runs[1]), strict=True):
        assert np.array_equal(one, other)  # the same seed
    for folder in (clone / "outputs/masks").iterdir():
        masks = contents(folder, "*.png", "labels/*")
        assert masks == {name: whole[name] for name in masks} and len(masks) == 2 * SLICES + 2


@pytest.mark.parametrize("size", ["40k", "200k", "600k"])
def test_a_disk_that_fills_up_costs_nothing_that_was_done(many, tmp_path, size):
    source, whole, _ = many
    disk = tmp_path / "disk"
    with small_disk(disk, size) as enlarge:
        args = predict_command(source, disk / "masks", *FLAGS)
        check_full(args)
        known = contents(disk / "masks", *MADE)
        assert all(whole[name] == content for name, content in known.items())
        enlarge()
        assert "Going on" in finish(args) or size in ("40k", "200k")
        assert contents(disk / "masks", *MADE) == whole


@pytest.mark.parametrize("size", ["40k", "120k"])
def test_a_training_on_a_full_disk_keeps_its_epochs(tmp_path, size):
    data, run = write_data_set(tmp_path / "set"), tmp_path / "disk/run"
    with small_disk(tmp_path / "disk", size) as enlarge:
        flags = ("--epochs", 2, "--filters", 8, 16, "--batch-size", 16, "--output", run)
        check_full(command("train", "--data", data, *flags))
        enlarge()
        if size == "120k":  # the first epoch was whole
            assert "Epoch 1/2" not in finish(command("train", "--resume", run))
            assert json.loads((run / "run.json").read_text())["finished"]


@pytest.mark.parametrize("kind, end", [("bioimageio", "zip"), ("onnx", "onnx")])
def test_an_export_to_a_full_disk_leaves_nothing(tmp_path, kind, end):
    path = tmp_path / f"disk/network.{end}"
    args = command("export", "pretrained", "--format", kind, "--output", path)
    with small_disk(tmp_path / "disk", "300k") as enlarge:
        check_full(args)
        assert not any((tmp_path / "disk").iterdir())
        enlarge()
        finish(args)
