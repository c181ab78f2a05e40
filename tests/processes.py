"""Commands as processes of their own: started, killed, and run on a small disk."""

import contextlib
import os
import random
import subprocess
import sys
import time

import pytest
from conftest import PRETRAINED

from membrane.runs import ROOT

KILLS = 4  # of a command, at random moments
MADE = ("*.png", "labels/*", "probability/*", "about/page/*")  # of a prediction, but its record


def command(name, *args):
    """Returns the command line of train, predict, evaluate or export."""
    return [sys.executable, str(ROOT / f"{name}.py"), *map(str, args)]


def predict_command(source, output, *flags):
    """Returns that of predict, with the model that ships."""
    return command("predict", source, "--model", PRETRAINED, "--output", output, *flags)


def start(*args):
    """Starts a process that nobody sees the output of."""
    return subprocess.Popen([*map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(args):
    """Runs a command to its end, checks that all is well and returns what it printed."""
    answer = subprocess.run(args, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stderr == "", answer.stderr
    return answer.stdout


def wait_for(condition, process=None):
    """Waits until a condition holds, not longer than a minute, nor than a process lives."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends and (process is None or process.poll() is None)
        time.sleep(0.01)


def kill(process):
    """Kills a process and waits until it is gone."""
    process.kill()
    process.communicate()


def kill_at_random(args, longest, seed):
    """Starts a command and kills it after a random time, if it has not ended by then."""
    process = start(*args)
    try:
        process.communicate(timeout=random.Random(seed).uniform(0.1, longest))
    except subprocess.TimeoutExpired:
        kill(process)
    return process.returncode


def contents(folder, *patterns):
    """Returns the content of files by their paths in a folder."""
    paths = [path for pattern in patterns for path in folder.glob(pattern)]
    paths = [path for path in paths if not path.name.startswith(".part-")]  # of the killed
    return {path.relative_to(folder): path.read_bytes() for path in paths}


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
