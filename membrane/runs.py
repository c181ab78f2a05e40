"""Runs, the folders that trainings leave behind."""

import argparse
import contextlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from membrane.errors import UserError
from membrane.io.locks import lock_folder
from membrane.io.pixel_size import PLAUSIBLE, check_pixel_size

ROOT = Path(__file__).parent.parent
OUTPUTS = ROOT / "outputs"
PRETRAINED, LARGE = "pretrained", "large"  # these ship with the repository
METADATA_DIR = "about"  # in a folder of masks: the prediction's record, pictures and state
SYNTHETIC_NOTE = "trained on synthetic slices, to try this program; it knows nothing of tissue"
SYNTHETIC_SLICES = "synthetic-slices"  # the data set of --data synthetic
FORMAT = 1  # of run.json; a newer one is refused
CHANCE = 0.5  # V_rand on its own validation slices up to which a run is not taken unasked
FAR_BELOW = 0.05  # V_rand; a run that is so much worse than the model that ships is named


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
    newest = max(_usable_runs(), default=None)
    shipped = OUTPUTS / PRETRAINED
    if newest is None and (shipped / "run.json").exists():
        return shipped
    if newest is None:
        raise UserError(
            f"no finished training on real slices in {display_path(OUTPUTS)}; run python train.py, "
            f"or name a model with --model (there are: {_names()})"
        )
    _, path, score = newest
    with contextlib.suppress(UserError, LookupError, ValueError):
        default, *_ = read_run(shipped)["cross_validation"].values()
        known = default["v_rand"]
        if score < known - FAR_BELOW:
            print(
                f"Note: {display_path(path)} has V_rand {score:.3f} on its validation slices, the "
                f"model that ships {known:.3f} on others: compare with --model {PRETRAINED}"
            )
    return path


def _usable_runs() -> Iterator[tuple[str, Path, float]]:
    """Yields end, folder and V_rand of the finished runs on real slices, and notes what is none."""
    for path in OUTPUTS.glob("*/run.json"):
        folder = path.parent
        if folder.name in (PRETRAINED, LARGE):
            continue
        try:
            record = read_run(folder)
        except UserError as error:
            print(f"Note: passed over: {error}")
            continue
        if record["finished"] and not record["synthetic"]:
            validation = record.get("validation") or {}
            quoted = validation.get("leave_one_out") or validation.get("oracle") or {}
            score = quoted.get("v_rand", 1.0)  # where nothing was held out, nothing is known
            if score > CHANCE:
                yield record["ended"], folder, score
            else:
                print(
                    f"Note: passed over: {display_path(folder)} has V_rand {score:.3f} on its own "
                    "validation slices; to take it all the same, name it with --model"
                )


def open_run(name: str | None) -> tuple[Path, dict, Path]:
    """Returns what `find_run` finds, its record (of a bare .keras file none), and its model."""
    path = find_run(name)
    if path.is_dir():
        return path, read_run(path), path / "model.keras"
    return path, {}, path


def settle_flags(args: argparse.Namespace, path: Path, record: dict) -> None:
    """Fills in the flags of predict.py that a run, or bare .keras file, has defaults for.

    Raises:
        UserError: it has no threshold, or does not know its pixel size, where that is needed.
    """
    args.tta = record.get("tta", True) if args.tta is None else args.tta
    own = record.get("threshold" if args.tta else "threshold_without_tta")
    args.threshold = args.threshold or own
    if args.threshold is None:
        raise UserError(f"{path}: has no calibrated threshold; give --threshold T")
    check_pixel_size(args.pixel_size)
    if args.pixel_size and not record.get("pixel_size"):
        raise UserError(
            f"{path}: does not know the pixel size it was trained at; leave out --pixel-size, or "
            'write that size, in nm, into its run.json: "pixel_size"'
        )


def open_unfinished(name: str) -> tuple[Path, dict]:
    """Returns the folder, now locked, and the record of a run to resume.

    Raises:
        UserError: it is finished, or as for `find_run` and `read_run`.
    """
    folder = find_run(name)
    record = read_run(folder)
    lock_folder(folder)
    if record["finished"]:
        raise UserError(f"{folder}: this training is finished; leave out --resume for a new one")
    return folder, record


def display_path(path: Path) -> str:
    """Returns a path as one would type it in the working directory."""
    relative = os.path.relpath(path) if path.anchor in ("", Path.cwd().anchor) else str(path)
    return path.as_posix() if relative.startswith("..") else Path(relative).as_posix()


def command(script: str, *args: str) -> str:
    """Returns the command line that runs a script of this repository from where one is now."""
    return shlex.join(["python", display_path(ROOT / script), *args])


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
    if record["finished"] and not isinstance(record["ended"], str):
        raise ValueError
    scaling = {"mean": 0.5, "deviation": 0.5} | record.get("scaling", {})
    thresholds = [record.get(key, 0.5) for key in ("threshold", "threshold_without_tta")]
    shares = all(0 < number < 1 for number in [*thresholds, *scaling.values()])
    low, high = PLAUSIBLE
    if not shares or len(scaling) > 2 or not low <= (record.get("pixel_size") or low) <= high:
        raise ValueError


def _names() -> str:
    return ", ".join(sorted(path.parent.name for path in OUTPUTS.glob("*/run.json"))) or "none"


def _git_commit() -> str | None:
    """Returns the commit of this checkout, or None without git or outside one."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.strip()
    return None
