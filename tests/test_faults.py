"""Real processes, killed for real; takes minutes: python -m pytest -m slow."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import predict
import synthetic

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


def command(source, output, *flags):
    flags = ["--model", ROOT / "outputs/pretrained", "--output", output, *flags]
    return [sys.executable, str(ROOT / "predict.py"), str(source), *map(str, flags)]


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
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small disk")
    try:
        full = subprocess.run(command(source, disk / "masks"), capture_output=True, text=True)
        assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
        assert "No space left on device" in full.stderr and len(full.stderr.splitlines()) == 1
        assert count(disk / "masks") < 8
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        again = subprocess.run(command(source, disk / "masks"), capture_output=True, text=True)
        assert again.returncode == 0 and "Going on" in again.stdout, again.stderr
        assert np.array_equal(read(disk / "masks"), whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
