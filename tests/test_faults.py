"""Real processes, killed for real; takes minutes: python -m pytest -m slow."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import zarr
from conftest import write_data_set
from PIL import Image

import predict
from membrane import synthetic

ROOT = Path(predict.__file__).parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A volume of eight blocks, and the folder of its undisturbed masks."""
    folder = tmp_path_factory.mktemp("stack")
    tall = np.concatenate([synthetic.make_slice(96, 1536, seed)[0] for seed in range(8)], axis=1)
    slices = tall.reshape(96, 128, 96).swapaxes(0, 1)
    zarr.create_array(str(folder / "stack.zarr"), data=slices, chunks=(16, 96, 96))
    subprocess.run(command(folder / "stack.zarr", folder / "masks"), check=True, cwd=folder)
    return folder / "stack.zarr", read(folder / "masks")


def door(name, *args):
    """Returns the command line of a door."""
    return [sys.executable, str(ROOT / f"{name}.py"), *map(str, args)]


def command(source, output, *flags):
    model = ("--model", ROOT / "outputs/pretrained")
    return door("predict", source, *model, "--output", output, *flags)


def read(masks):
    return zarr.open_group(str(masks / "stack.zarr"), mode="r")["0"][:]


def start(*args):
    return subprocess.Popen([*map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def count(masks):
    return len(list((masks / "about/blocks").glob("0-*.json")))


def wait_for(condition, process=None):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends and (process is None or process.poll() is None)
        time.sleep(0.01)


def start_and_wait_for(blocks, source, masks, *flags):
    """Starts a prediction and returns it when so many blocks are done."""
    process = start(*command(source, masks, *flags))
    wait_for(lambda: count(masks) >= blocks, process)
    return process


@contextlib.contextmanager
def cluster(folder):
    """Gives the address of a new scheduler and a function that starts workers of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = [sys.executable, "-m", "dask"]
    processes = [start(*dask, "scheduler", "--host", address, "--no-dashboard")]

    def start_worker():
        flags = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", folder]
        processes.append(start(*dask, "worker", address, *flags))
        return processes[-1]

    try:
        yield address, start_worker
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@contextlib.contextmanager
def small_disk(folder, size):
    """Gives a folder that holds no more than `size`, and a function that enlarges it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=60m", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def check_full(args):
    """A command that ends for want of space says so in one line."""
    full = subprocess.run(args, capture_output=True, text=True)
    assert full.returncode == 2 and len(full.stderr.splitlines()) == 1, full.stderr
    assert "No space left on device" in full.stderr


def test_a_killed_driver_goes_on_where_it_was(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    process = start_and_wait_for(3, source, masks)
    process.kill()
    process.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in (masks / "about/blocks").iterdir()}
    assert 3 <= len(done) < 8
    files = {path: path.stat().st_mtime_ns for path in (masks / "stack.zarr/0/c").rglob("*")}
    again = subprocess.run(command(source, masks), capture_output=True, text=True)
    assert again.returncode == 0 and "Going on" in again.stdout
    chunks = [masks / f"stack.zarr/0/c/{int(name.split('-')[1]) // 16}/0/0" for name in done]
    assert all(chunk.stat().st_mtime_ns == files[chunk] for chunk in chunks)
    assert np.array_equal(read(masks), whole)


def test_a_killed_worker_and_one_that_joins_late_change_nothing(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    with cluster(tmp_path) as (address, start_worker):
        first = start_worker()
        process = start_and_wait_for(2, source, masks, "--scheduler", address)
        start_worker()
        first.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, said
    assert np.array_equal(read(masks), whole)


def test_a_driver_killed_beside_its_cluster_goes_on_with_two_workers(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    with cluster(tmp_path) as (address, start_worker):
        start_worker()
        start_worker()
        process = start_and_wait_for(2, source, masks, "--scheduler", address)
        process.kill()
        process.communicate()
        flags = ["--scheduler", address]
        again = subprocess.run(command(source, masks, *flags), capture_output=True, text=True)
    assert again.returncode == 0 and "Going on" in again.stdout, again.stderr
    assert np.array_equal(read(masks), whole)


def test_a_scheduler_that_dies_is_said_in_one_line(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    with cluster(tmp_path) as (address, start_worker):
        start_worker()
        process = start_and_wait_for(2, source, masks, "--scheduler", address)
    said = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 2, said
    assert "the Dask scheduler is gone" in said and "Traceback" not in said
    assert subprocess.run(command(source, masks), capture_output=True).returncode == 0
    assert np.array_equal(read(masks), whole)


def test_a_full_disk_is_said_and_what_was_done_is_kept(stack, tmp_path):
    source, whole = stack
    disk = tmp_path / "disk"
    with small_disk(disk, "80k") as enlarge:
        check_full(command(source, disk / "masks"))
        assert count(disk / "masks") < 8
        enlarge()
        assert "Going on" in finish(command(source, disk / "masks"))
        assert np.array_equal(read(disk / "masks"), whole)


KILLS = 20
MADE = ("*.png", "labels/*", "probability/*", "about/page/*")  # of a prediction, but its record


def kill_at_random(args, longest, seed):
    """Starts a command and kills it after a random time, if it has not ended by then."""
    process = start(*args)
    try:
        process.communicate(timeout=random.Random(seed).uniform(0.1, longest))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode


def contents(folder, *patterns):
    """Returns the content of files by their paths in a folder."""
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    paths = [path for path in paths if not path.name.startswith(".part-")]  # of the killed
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def finish(args):
    """Runs a command to its end and checks that all is well."""
    answer = subprocess.run(args, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stderr == "", answer.stderr
    return answer.stdout


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of slices, and the undisturbed masks and labels of it."""
    root = tmp_path_factory.mktemp("many")
    (root / "slices").mkdir()
    for seed in range(60):
        picture = Image.fromarray(synthetic.make_slice(200, 216, seed)[0])
        picture.save(root / "slices" / f"{seed}.png")
    began = time.monotonic()
    finish(command(root / "slices", root / "masks", "--labels", "--probability"))
    masks = contents(root / "masks", *MADE)
    assert len(masks) == 240 + 240
    return root / "slices", masks, time.monotonic() - began


def test_a_prediction_killed_twenty_times_ends_like_an_undisturbed_one(many, tmp_path):
    source, whole, seconds = many
    masks, killed = tmp_path / "masks", 0
    args = command(source, masks, "--labels", "--probability")
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


def weights(run):
    return keras.saving.load_model(run / "model.keras", compile=False).get_weights()


def test_a_training_killed_twenty_times_ends_like_an_undisturbed_one(tmp_path):
    data = write_data_set(tmp_path / "set")
    flags = ["--epochs", 5, "--filters", 2, 2, "--batch-size", 16, "--seed", 3, "--data", data]
    began = time.monotonic()
    finish(door("train", *flags, "--output", tmp_path / "whole"))
    seconds, run, killed, resumed = time.monotonic() - began, tmp_path / "run", 0, 0
    whole = weights(tmp_path / "whole")
    for seed in range(5 * KILLS):
        if (run / "checkpoint.npz").exists():
            args = door("train", "--resume", run)
            resumed += 1
        else:  # it had done no epoch, or all: nothing is lost by starting again
            shutil.rmtree(run, ignore_errors=True)
            args = door("train", *flags, "--output", run)
        status = kill_at_random(args, seconds, seed)
        assert status <= 0
        killed += status < 0
        if (run / "run.json").exists() and json.loads((run / "run.json").read_text())["finished"]:
            assert all(map(np.array_equal, weights(run), whole))
            shutil.rmtree(run)
        if killed == KILLS:
            break
    assert killed == KILLS and resumed >= 5
    if (run / "checkpoint.npz").exists():
        finish(door("train", "--resume", run))
        assert all(map(np.array_equal, weights(run), whole))


@pytest.mark.parametrize("end, kills", [("zip", 6), ("onnx", KILLS - 6)])
def test_an_export_killed_twenty_times_leaves_a_whole_file_or_none(tmp_path, end, kills):
    path, killed = tmp_path / f"network.{end}", 0
    kind = {"zip": "bioimageio"}.get(end, end)
    args = door("export", "pretrained", "--format", kind, "--output", path)
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


ENVIRONMENTS = {
    "no HOME": ("env -u HOME", 0),
    "a HOME that cannot be written": ("env HOME=/proc/none", 0),
    "LANG=C": ("env LC_ALL=C PYTHONCOERCECLOCALE=0 PYTHONUTF8=0", 0),
    "no TMPDIR": ("env TMPDIR=/none", 0),
    "closed stdout": (">&-", 0),
    "closed stderr": ("2>&-", 0),
    "all closed": ("<&- >&- 2>&-", 0),
    "head": ("| head -n 1", 141),
    "a full log": ("> /dev/full", 2),
    "another Keras": ("env KERAS_BACKEND=jax TF_USE_LEGACY_KERAS=1", 0),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_prediction_needs_no_certain_environment(tmp_path, name):
    for picture in ("a", "bé☃"):
        image = Image.fromarray(synthetic.make_slice(60, 70, 3)[0])
        (tmp_path / "slices").mkdir(exist_ok=True)
        image.save(tmp_path / "slices" / f"{picture}.png")
    setting, expected = ENVIRONMENTS[name]
    flags = ("--no-tta", "--labels")
    args = " ".join(command("slices", "masks", *flags))
    line = f"{setting} {args}" if setting.startswith("env") else f"{args} {setting}"
    line = f"set -o pipefail; {line}"
    answer = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True)
    assert answer.returncode == expected, answer.stderr
    assert b"Traceback" not in answer.stderr and len(answer.stderr.splitlines()) <= 1
    if expected == 0:
        assert answer.stderr == b""
        made = {path.name for path in (tmp_path / "masks").glob("*.png")}
        assert made == {"a.png", "bé☃.png"}
    elif name == "head":  # what it had begun goes on
        assert "Going on" in finish(command(tmp_path / "slices", tmp_path / "masks", *flags))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_prediction_in_one_line_and_it_goes_on_later(many, tmp_path, number):
    source, whole, _ = many
    process = subprocess.Popen(
        command(source, tmp_path / "masks", "--labels", "--probability"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # nohup ignores it
    )
    wait_for(lambda: len(list((tmp_path / "masks").glob("*.png"))) >= 3, process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said == b"predict.py: interrupted\n"
    assert not [path for path in (tmp_path / "masks").rglob("*") if path.name.startswith(".part")]
    said = finish(command(source, tmp_path / "masks", "--labels", "--probability"))
    assert "Going on" in said
    again = contents(tmp_path / "masks", *MADE)
    assert again == whole


def test_two_predictions_and_two_trainings_at_once_do_not_meet(many, tmp_path):
    source, whole, _ = many
    clone = tmp_path / "clone"
    ignore = shutil.ignore_patterns(".git", "quality", "masks", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignore)
    data = write_data_set(tmp_path / "set")
    train = [sys.executable, "train.py", "--data", data, "--epochs", 1, "--filters", 2, 2]
    guess = [sys.executable, "predict.py", source, "--model", "pretrained", "--labels"]
    processes = [
        subprocess.Popen([*map(str, args)], cwd=clone, stdout=subprocess.PIPE, text=True)
        for args in (train, train, guess, guess)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    runs = [path.parent for path in (clone / "outputs").glob("2*/run.json")]
    assert len(runs) == 2
    for one, other in zip(weights(runs[0]), weights(runs[1]), strict=True):
        assert np.array_equal(one, other)  # the same seed
    for folder in (clone / "outputs/masks").iterdir():
        masks = contents(folder, "*.png", "labels/*")
        assert masks == {name: whole[name] for name in masks} and len(masks) == 180


@pytest.mark.parametrize("size", ["40k", "200k", "600k", "1200k"])
def test_a_disk_that_fills_up_costs_nothing_that_was_done(many, tmp_path, size):
    source, whole, _ = many
    disk = tmp_path / "disk"
    with small_disk(disk, size) as enlarge:
        args = command(source, disk / "masks", "--labels", "--probability")
        check_full(args)
        known = contents(disk / "masks", *MADE)
        assert all(whole[name] == content for name, content in known.items())
        enlarge()
        assert "Going on" in finish(args) or size == "40k"
        assert contents(disk / "masks", *MADE) == whole


@pytest.mark.parametrize("size", ["40k", "1400k"])
def test_a_training_on_a_full_disk_keeps_its_epochs(tmp_path, size):
    data, run = write_data_set(tmp_path / "set"), tmp_path / "disk/run"
    with small_disk(tmp_path / "disk", size) as enlarge:
        check_full(door("train", "--data", data, "--epochs", 2, "--output", run))
        enlarge()
        if size == "1400k":  # the first epoch was whole
            assert "Epoch 1/2" not in finish(door("train", "--resume", run))
            assert json.loads((run / "run.json").read_text())["finished"]


@pytest.mark.parametrize("kind, end", [("bioimageio", "zip"), ("onnx", "onnx")])
def test_an_export_to_a_full_disk_leaves_nothing(tmp_path, kind, end):
    path = tmp_path / f"disk/network.{end}"
    args = door("export", "pretrained", "--format", kind, "--output", path)
    with small_disk(tmp_path / "disk", "300k") as enlarge:
        check_full(args)
        assert not any((tmp_path / "disk").iterdir())
        enlarge()
        finish(args)


def test_twenty_thousand_slices_take_no_more_than_the_first_thousand(tmp_path):
    folder, masks = tmp_path / "slices", tmp_path / "masks"
    folder.mkdir()
    drawn = [synthetic.make_slice(64, 64, seed)[0] for seed in range(50)]
    for number in range(20_000):
        name = folder / f"{number:05d}.png"
        Image.fromarray(np.roll(drawn[number % 50], number // 50, axis=1)).save(name)
    process = subprocess.Popen(command(folder, masks, "--no-tta"), stdout=subprocess.DEVNULL)
    rows = []
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # it may just have ended
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            memory = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            rows.append((len(list(masks.glob("*.png"))), memory, files))
        time.sleep(1)
    assert process.returncode == 0 and len(list(masks.glob("*.png"))) == 20_000
    early = [row for row in rows if 1000 <= row[0] < 6000]
    late = [row for row in rows if 15_000 <= row[0] < 20_000]
    assert early and late
    for column, growth in ((1, 1.05), (2, 1.0)):
        first, last = (np.median([row[column] for row in part]) for part in (early, late))
        assert last <= growth * first + (2 if column == 2 else 0), rows
