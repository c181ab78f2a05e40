"""ISBI-2012 from Kaggle, through kagglehub, once.

kagglehub keeps what it has downloaded, and takes anything that an archive holds; what is refused
here is not kept.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kagglehub
import requests
from kagglehub.config import get_cache_folder

from slices import UserError, first_line

HANDLE = "hamzamohiuddin/isbi-2012-challenge"
UNPACKED_BYTES = 2**31  # of the data set, at most; ISBI-2012 has 3e7
BY_HAND = (
    f"get it by hand from https://www.kaggle.com/datasets/{HANDLE}, or the organisers' "
    "ISBI-2012-challenge.zip, unpack it and give the folder as --data DIR; "
    "or try everything on drawn slices with --data synthetic"
)


def download() -> tuple[Path, bool]:
    """Returns the folder of ISBI-2012 in kagglehub's cache, and whether it has just been filled.

    The network is asked only where the cache has nothing.

    Raises:
        UserError: it cannot be had; says how else to get it.
    """
    home = _cache()
    cached = [path.stem for path in home.glob("*.complete")]
    handle = f"{HANDLE}/versions/{max(cached, key=int)}" if cached else HANDLE
    try:
        with _limit_unpacking():
            return Path(kagglehub.dataset_download(handle)), not cached
    except requests.ConnectionError:
        reason = "no connection to it"
    except requests.RequestException as error:  # what has arrived is kept: the next try goes on
        reason = first_line(error)
    except Exception as error:  # an archive that is none, a cache that cannot be written: anything
        reason = first_line(error)
        for archive in home.glob("*.archive"):  # kagglehub would append the next try to it
            archive.unlink()
    raise UserError(f"{HANDLE} cannot be downloaded from Kaggle ({reason}); {BY_HAND}")


@contextlib.contextmanager
def forgotten_if_refused(fresh: bool) -> Iterator[None]:
    """Lets the next command download the data set again if what has just come is refused.

    One that was in the cache stays: it has been good before, so the disk is to blame.
    """
    try:
        yield
    except UserError as error:
        if not fresh:
            raise
        for mark in _cache().glob("*.complete"):
            mark.unlink(missing_ok=True)
        raise UserError(f"{error}; the next try downloads it again, or {BY_HAND}") from None


def _cache() -> Path:
    """Returns where kagglehub keeps the data set, its archives and its marks of completeness."""
    return Path(get_cache_folder(), "datasets", HANDLE)


@contextlib.contextmanager
def _limit_unpacking() -> Iterator[None]:
    """Lets zipfile unpack no more than there can be.

    kagglehub downloads and unpacks in one call, and has no limit of its own.
    """
    unpack = zipfile.ZipFile.extractall

    def check(archive: zipfile.ZipFile, *args, **kwargs):
        size = sum(member.file_size for member in archive.infolist())
        if size > UNPACKED_BYTES:
            raise ValueError(f"an archive of {size:,} bytes when unpacked, over {UNPACKED_BYTES:,}")
        return unpack(archive, *args, **kwargs)

    zipfile.ZipFile.extractall = check
    try:
        yield
    finally:
        zipfile.ZipFile.extractall = unpack
