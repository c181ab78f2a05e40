"""Folders of output: a new one, or one that an interrupted command left; locked, nothing mixed."""

import contextlib
import hashlib
import itertools
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from membrane import runs
from membrane.errors import UserError
from membrane.io.containers import split_inner_path
from membrane.io.locks import LOCK, LockedError, lock_folder
from membrane.io.writers import write_json


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


def claim_output(
    wanted: str | None, inputs: Sequence[Path], about: dict, files: Sequence[Path]
) -> Path:
    """Returns the folder for masks, now locked, with `about`, the record of this prediction.

    It is the one that the user wants or, for None, a new one; it is empty, or left unfinished by
    the same command.

    Args:
        wanted: the folder that the user wants.
        inputs: what is predicted: folders, files, a Zarr.
        about: the record; gets the state of the files, and an `id`, by which browsers know it.
        files: that are predicted; those that failed before may have changed since.

    Raises:
        UserError: the folder lies in an input, or as for `make_folder`.
    """
    default = runs.OUTPUTS / "masks" / output_name(inputs)
    path = default if wanted is None else Path(wanted)
    check_not_in(path, inputs, "--output")
    about["input_state"] = fingerprint(files)
    for folder in [path] if wanted is not None else _numbered(default):
        if not folder.exists():
            break
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads((folder / runs.METADATA_DIR / "prediction.json").read_text("utf-8"))
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
                about["id"] = known["id"]
                print(f"Going on with the unfinished masks in {runs.display_path(folder)}")
                return folder
    folder = make_folder(wanted, default)
    about["id"] = secrets.token_hex(8)
    write_json(folder / runs.METADATA_DIR / "prediction.json", about)
    return folder


@contextlib.contextmanager
def removed_if_nothing_is_done(folder: Path) -> Iterator[None]:
    """Removes a claimed folder of masks at the end of the block if there is no mask in it."""
    try:
        yield
    finally:
        others = [path for path in folder.iterdir() if path.name not in (runs.METADATA_DIR, LOCK)]
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
