"""Volumes whose processes are killed, here and in a cluster: python -m pytest -m slow."""

import contextlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import zarr
from processes import check_full, finish, kill, predict_command, small_disk, start, wait_for

from membrane import synthetic

pytestmark = pytest.mark.slow


def command_of(source, masks, *flags):
    return predict_command(source, masks, "--no-tta", *flags)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A volume of eight blocks whose slices are neighbours, and its undisturbed masks."""
    folder = tmp_path_factory.mktemp("stack")
    tissue = synthetic.make_slice(288, 288, 0)[0]
    slices = np.stack([tissue[z:, z:][:160, :160] for z in range(128)])
    noise = np.random.default_rng(0).normal(0, 40, slices.shape)
    slices = np.clip(slices + noise, 0, 255).astype(np.uint8)  # each with faults of its own
    zarr.create_array(str(folder / "stack.zarr"), data=slices, chunks=(16, 96, 96))
    finish(command_of(folder / "stack.zarr", folder / "masks"))
    finish(command_of(folder / "stack.zarr", folder / "alone", "--no-neighbours"))
    assert not np.array_equal(read(folder / "alone"), read(folder / "masks"))
    return folder / "stack.zarr", read(folder / "masks")


def read(masks):
    """Returns all voxels of the masks."""
    return zarr.open_group(str(masks / "stack.zarr"), mode="r")["0"][:]


def count(masks):
    """Returns how many blocks are done."""
    return len(list((masks / "about/blocks").glob("0-*.json")))


def start_and_wait_for(blocks, source, masks, *flags):
    """Starts a prediction and returns it when so many blocks are done."""
    process = start(*command_of(source, masks, *flags))
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
            kill(process)


def test_a_killed_driver_goes_on_where_it_was(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    process = start_and_wait_for(3, source, masks)
    kill(process)
    done = {path.name: path.stat().st_mtime_ns for path in (masks / "about/blocks").iterdir()}
    assert 3 <= len(done) < 8
    files = {path: path.stat().st_mtime_ns for path in (masks / "stack.zarr/0/c").rglob("*")}
    again = subprocess.run(command_of(source, masks), capture_output=True, text=True)
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
        printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, printed
    assert np.array_equal(read(masks), whole)


def test_a_driver_killed_beside_its_cluster_goes_on_with_two_workers(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    with cluster(tmp_path) as (address, start_worker):
        start_worker()
        start_worker()
        process = start_and_wait_for(2, source, masks, "--scheduler", address)
        kill(process)
        again = command_of(source, masks, "--scheduler", address)
        again = subprocess.run(again, capture_output=True, text=True)
    assert again.returncode == 0 and "Going on" in again.stdout, again.stderr
    assert np.array_equal(read(masks), whole)


def test_a_scheduler_without_workers_is_said_and_waited_for(stack, tmp_path):
    source, whole = stack
    with cluster(tmp_path) as (address, start_worker):
        flags = [tmp_path / "masks", "--scheduler", address]
        process = start(*command_of(source, *flags))
        while b"no worker there yet; start some by: dask worker" not in process.stdout.readline():
            assert process.poll() is None
        start_worker()
        assert process.wait(timeout=120) == 0
    assert np.array_equal(read(tmp_path / "masks"), whole)


def test_a_scheduler_that_dies_is_reported_in_one_line(stack, tmp_path):
    source, whole = stack
    masks = tmp_path / "masks"
    with cluster(tmp_path) as (address, start_worker):
        start_worker()
        process = start_and_wait_for(2, source, masks, "--scheduler", address)
    printed = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 2, printed
    assert "the Dask scheduler is gone" in printed and "Traceback" not in printed
    assert subprocess.run(command_of(source, masks), capture_output=True).returncode == 0
    assert np.array_equal(read(masks), whole)


def test_a_full_disk_is_reported_and_what_was_done_is_kept(stack, tmp_path):
    source, whole = stack
    disk = tmp_path / "disk"
    with small_disk(disk, "80k") as enlarge:
        check_full(command_of(source, disk / "masks"))
        assert count(disk / "masks") < 8
        enlarge()
        assert "Going on" in finish(command_of(source, disk / "masks"))
        assert np.array_equal(read(disk / "masks"), whole)
