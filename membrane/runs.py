"""Runs, the folders that trainings leave behind; and the folders for masks."""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from membrane.errors import UserError
from membrane.io.containers import split_inner_path
from membrane.io.locks import LOCK, LockedError, lock_folder
from membrane.io.pixel_size import PLAUSIBLE
from membrane.io.writers import write_json

ROOT = Path(__file__).parent.parent
OUTPUTS = ROOT / "outputs"
PRETRAINED, LARGE = "pretrained", "large"  # these ship with the repository
METADATA_DIR = "about"  # in a folder of masks: the prediction's record, pictures and state
SYNTHETIC_NOTE = "trained on synthetic slices, to try this program; it knows nothing of tissue"
SYNTHETIC_SLICES = "synthetic-slices"  # the data set of --data synthetic
FORMAT = 1  # of run.json; a newer one is refused
CHANCE = 0.5  # V_rand on its own validation slices up to which a run is not taken unasked
FAR_BELOW = 0.05  # V_rand; a run that is so much worse than the model that ships is named


def make_folder(wanted: str | None, default: Path) -> Path:
    """Creates and locks the folder that the user wants, or a new one.

    Nothing is written among other files. The new one is `default`, with -2, -3, … appended where
    that is taken.

    Raises:
        UserError: the wanted folder is a file, cannot be written, holds anything, or another
            command is at work on it.
    """
    if wanted is None:
        return _new_folder(default)
    path = Path(wanted)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock_folder(path)
        if all(other.name == LOCK for other in path.iterdir()):
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
    with contextlib.suppress(UserError, LookupError):
        known = read_run(shipped)["cross_validation"]["flips averaged"]["v_rand"]
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


def claim_output(
    wanted: str | None, inputs: Sequence[Path], about: dict, files: Sequence[Path]
) -> Path:
    """Returns the folder for masks, now locked, with `about`, the record of this prediction.

    It is the one that the user wants or, for None, a new one; it is empty, or left unfinished by
    the same command.

    Args:
        wanted: the folder that the user wants.
        inputs: what is predicted: folders, files, a Zarr.
        about: the record; gets the state of the files.
        files: that are predicted; those that failed before may have changed since.

    Raises:
        UserError: the folder lies in an input, or as for `make_folder`.
    """
    default = OUTPUTS / "masks" / output_name(inputs)
    path = default if wanted is None else Path(wanted)
    check_not_in(path, inputs, "--output")
    about["input_state"] = fingerprint(files)
    for folder in [path] if wanted is not None else _numbered(default):
        if not folder.exists():
            break
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads((folder / METADATA_DIR / "prediction.json").read_text("utf-8"))
            state = fingerprint([one for one in files if one.name not in known.get("failed", {})])
            ours = about | {"model": known["model"], "input_state": state}  # its hash says which
            if ours.items() <= known.items():
                try:
                    lock_folder(folder)
                except LockedError as error:
                    if wanted is not None:
                        raise
                    print(f"Note: {error}; this command takes another one")
                    continue
                print(f"Going on with the unfinished masks in {display_path(folder)}")
                return folder
    folder = make_folder(wanted, default)
    write_json(folder / METADATA_DIR / "prediction.json", about)
    return folder


@contextlib.contextmanager
def removed_if_nothing_is_done(folder: Path) -> Iterator[None]:
    """Removes a claimed folder of masks at the end of the block if there is no mask in it."""
    try:
        yield
    finally:
        others = [path for path in folder.iterdir() if path.name not in (METADATA_DIR, LOCK)]
        if not any(path.is_file() or any(path.iterdir()) for path in others):
            shutil.rmtree(folder, ignore_errors=True)


def check_not_in(path: Path, inputs: Sequence[Path], flag: str) -> None:
    """Refuses to write into a folder that is predicted."""
    for folder in inputs:
        if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: lies in the input folder; name another {flag}")


def output_name(inputs: Sequence[Path]) -> str:
    """Returns the name for the masks of a folder, file or Zarr, or of several files of a folder."""
    source = inputs[0].resolve() if len(inputs) == 1 else inputs[0].resolve().parent
    if source.is_dir():
        return source.name.removesuffix(".zarr")
    return Path(source.name.replace(":", "-")).stem


def fingerprint(files: Sequence[Path]) -> str:
    """Returns a string that changes when the name, size or time of one of the files does."""
    states = []
    for file in files:
        with contextlib.suppress(OSError):  # a link to nothing is reported where it is read
            about = split_inner_path(file)[0].stat()
            states.append((file.name, about.st_size, about.st_mtime_ns))
    return hashlib.sha256(repr(states).encode()).hexdigest()


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


def _numbered(path: Path) -> Iterator[Path]:
    """Yields a path, then the same with -2, -3, … appended."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def _new_folder(path: Path) -> Path:
    for folder in _numbered(path):
        try:
            folder.mkdir(parents=True)
            lock_folder(folder)
            return folder
        except (FileExistsError, LockedError):  # of an earlier or another command
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
