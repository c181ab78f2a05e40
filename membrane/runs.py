"""Runs, the folders that trainings leave behind; and the folders for masks."""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from membrane.errors import UserError
from membrane.io.pixel_size import PLAUSIBLE
from membrane.io.writers import write_json

ROOT = Path(__file__).parent.parent
OUTPUTS = ROOT / "outputs"
PRETRAINED, LARGE = "pretrained", "large"  # these ship with the repository
METADATA_DIR = "about"  # in a folder of masks: the prediction's record, pictures and state
SYNTHETIC_NOTE = "trained on synthetic slices, to try this program; it knows nothing of tissue"
SYNTHETIC_SLICES = "synthetic-slices"  # the data set of --data synthetic
FORMAT = 1  # of run.json; a newer one is refused


def make_folder(wanted: str | None, default: Path) -> Path:
    """Creates the folder that the user wants, or a new one: nothing is written among other files.

    The new one is `default`, with -2, -3, … appended where that is taken.

    Raises:
        UserError: the wanted folder is a file, cannot be written, or holds anything.
    """
    if wanted is None:
        return _new_folder(default)
    path = Path(wanted)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not any(path.iterdir()):
            return path
        reason = "not empty, and nothing is overwritten"
    except FileExistsError:
        reason = "a file, not a folder"
    except OSError as error:
        reason = error.strerror
    raise UserError(f"{path}: {reason}; name another --output")


def read_run(folder: Path) -> dict:
    """Returns the contents of a run's run.json.

    Raises:
        UserError: it is missing, damaged, or of a newer format.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] > FORMAT:
            raise UserError(f"{path}: written by a newer version of this program; update it")
        _check_record(record)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is {folder} a run?") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: damaged; remove that run, or choose another one") from None
    return record


def find_run(name: str | None) -> Path:
    """Returns the run, or bare .keras file, to predict with.

    Its name is a path, or a bare name for `outputs/NAME`; None stands for the newest finished run
    on real slices, or else the one that ships with the repository.

    Raises:
        UserError: there is none.
    """
    if name is not None:
        path = Path(name)
        if not path.exists() and len(path.parts) == 1:
            path = OUTPUTS / path
        if not path.exists():
            raise UserError(f"{name}: no such run or model; there are: {_names()}")
        return path
    found = []
    for path in OUTPUTS.glob("*/run.json"):
        if path.parent.name not in (PRETRAINED, LARGE):
            record = read_run(path.parent)
            if record["finished"] and not record["synthetic"]:
                found.append((record["ended"], path.parent))
    if found:
        return max(found)[1]
    if (OUTPUTS / PRETRAINED / "run.json").exists():
        return OUTPUTS / PRETRAINED
    raise UserError(
        f"no finished training on real slices in {display_path(OUTPUTS)}; run python train.py, "
        f"or name a model with --model (there are: {_names()})"
    )


def open_run(name: str | None) -> tuple[Path, dict, Path]:
    """Returns what `find_run` finds, its record (of a bare .keras file none), and its model."""
    path = find_run(name)
    if path.is_dir():
        return path, read_run(path), path / "model.keras"
    return path, {}, path


def open_unfinished(name: str) -> tuple[Path, dict]:
    """Returns the folder and record of a run to resume.

    Raises:
        UserError: it is finished, or as for `find_run` and `read_run`.
    """
    folder = find_run(name)
    record = read_run(folder)
    if record["finished"]:
        raise UserError(f"{folder}: this training is finished; leave out --resume for a new one")
    return folder, record


def claim_output(wanted: str | None, source: Path, about: dict) -> Path:
    """Returns the folder for the masks of `source`, with `about`, the record of this prediction.

    It is the one that the user wants or, for None, a new one; it is empty, or left unfinished by
    the same command.

    Raises:
        UserError: the folder lies in the input, or as for `make_folder`.
    """
    default = OUTPUTS / "masks" / output_name(source)
    path = default if wanted is None else Path(wanted)
    if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{path}: lies in the input folder; name another --output")
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = json.loads((path / METADATA_DIR / "prediction.json").read_text("utf-8"))
        if known | {"model": about["model"]} == about:  # its hash says which, its path from where
            print(f"Going on with the unfinished masks in {display_path(path)}")
            return path
    folder = make_folder(wanted, default)
    write_json(folder / METADATA_DIR / "prediction.json", about)
    return folder


def output_name(source: Path) -> str:
    """Returns the name for the masks of a folder, file or Zarr."""
    source = source.resolve()
    return source.name.removesuffix(".zarr") if source.is_dir() else source.stem


def fingerprint(files: list[Path]) -> str:
    """Returns a string that changes when the name, size or time of one of the files does."""
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def display_path(path: Path) -> str:
    """Returns a path as one would type it in the working directory."""
    relative = os.path.relpath(path) if path.anchor in ("", Path.cwd().anchor) else str(path)
    return path.as_posix() if relative.startswith("..") else Path(relative).as_posix()


def now() -> str:
    """Returns the time in UTC, for run.json."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_versions() -> dict[str, str | None]:
    """Returns the versions of what a training depends on, for run.json."""
    return {
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
        "keras": version("keras"),
        "commit": _git_commit(),
    }


def _check_record(record: dict) -> None:
    """Raises if what other commands take from a record is not what it must be."""
    record["finished"], record["synthetic"], record["flags"].get("data")
    scaling = {"mean": 0.5, "deviation": 0.5} | record.get("scaling", {})
    thresholds = [record.get(key, 0.5) for key in ("threshold", "threshold_without_tta")]
    shares = all(0 < number < 1 for number in [*thresholds, *scaling.values()])
    low, high = PLAUSIBLE
    if not shares or len(scaling) > 2 or not low <= (record.get("pixel_size") or low) <= high:
        raise ValueError


def _new_folder(path: Path) -> Path:
    for number in itertools.count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # of an earlier or another command
            continue
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}; name a folder with --output") from None


def _names() -> str:
    return ", ".join(sorted(path.parent.name for path in OUTPUTS.glob("*/run.json"))) or "none"


def _git_commit() -> str | None:
    """Returns the commit of this checkout, or None without git or outside one."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()
    return None
