import os
import subprocess
import sys
from pathlib import Path

import pytest

from membrane import cli

ROOT = Path(cli.__file__).parent.parent
COMMANDS = ["train", "predict", "evaluate", "export"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_importing_anything_heavy(command):
    code = (
        f"import sys, {command}\n"
        f"try: {command}.main(['--help'])\n"
        "except SystemExit as stop: print('status', stop.code)\n"
        "print(sorted({'numpy', 'tensorflow', 'keras', 'PIL', 'skimage'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.endswith("status 0\n[]\n")
    assert f"python {command}.py" in answer.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_flag_is_refused_in_one_line(command):
    typed = [sys.executable, f"{command}.py", "--wrong"]
    answer = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.startswith(f"{command}.py: error: ") and answer.stderr.count("\n") == 1


def test_a_missing_library_is_named_with_what_to_install(capsys):
    def work(args):
        raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

    assert cli.run(work, None, "train.py") == 2
    assert "tensorflow is not installed; pip install -r requirements.txt" in capsys.readouterr().err


def test_what_tensorflow_prints_when_it_fails_is_shown(capfd, monkeypatch):
    import os

    class Broken:
        def __getattr__(self, name):
            os.write(2, b"libcuda is broken\n")
            raise ImportError("no libcuda")

    monkeypatch.setitem(sys.modules, "tensorflow", Broken())
    with pytest.raises(ImportError):
        cli.start_tensorflow()
    assert "libcuda is broken" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["0", "1", "-1", "nan", "inf", "abc", ""])
def test_a_threshold_lies_between_0_and_1(text):
    with pytest.raises(cli.argparse.ArgumentTypeError):
        cli.fraction(text)
    assert cli.fraction("0.5") == 0.5


def test_as_many_computations_run_at_once_as_there_are_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7), raising=False)
    assert cli.share_cores() == 7 and cli.share_cores(3) == 3
