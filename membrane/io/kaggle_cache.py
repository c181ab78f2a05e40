"""Guards around kagglehub: its cache keeps nothing that was refused, and nothing too large.

kagglehub downloads and unpacks in one call, keeps whatever an archive holds, and asks the network
again for a handle without a version, even if the data set is in the cache.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from kagglehub.config import get_cache_folder

from membrane.errors import UserError

MAX_UNPACKED_BYTES = 2**31  # of a data set; ISBI-2012 has 3e7


def cached_version(handle: str) -> str:
    """Returns the handle with the newest version that is complete in the cache, else as it is."""
    versions = [int(mark.stem) for mark in _cache(handle).glob("*.complete")]
    return f"{handle}/versions/{max(versions)}" if versions else handle


@contextlib.contextmanager
def guarded_download(handle: str) -> Iterator[None]:
    """Refuses to unpack a data set that is too large, and keeps no download that is no archive."""
    unpack = zipfile.ZipFile.extractall

    def check(archive: zipfile.ZipFile, *args, **kwargs):
        size = sum(member.file_size for member in archive.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise ValueError(f"{size:,} bytes when unpacked, over {MAX_UNPACKED_BYTES:,}")
        return unpack(archive, *args, **kwargs)

    zipfile.ZipFile.extractall = check
    try:
        yield
    except OSError:  # of the connection, mostly: what has arrived is kept, the next try goes on
        raise
    except Exception:
        for archive in _cache(handle).glob("*.archive"):  # kagglehub would append to it
            archive.unlink()
        raise
    finally:
        zipfile.ZipFile.extractall = unpack


@contextlib.contextmanager
def invalidate_cache_on_error(handle: str, fresh: bool, advice: str) -> Iterator[None]:
    """Lets the next command download a data set again if a fresh one is refused.

    One that was in the cache before stays: it was good then, so the disk is to blame.
    """
    try:
        yield
    except UserError as error:
        if not fresh:
            raise
        for mark in _cache(handle).glob("*.complete"):
            mark.unlink(missing_ok=True)
        raise UserError(f"{error}; the next try downloads it again, or {advice}") from None


def _cache(handle: str) -> Path:
    """Returns the folder of a data set: versions, N.archive while loading, N.complete when done."""
    return Path(get_cache_folder(), "datasets", handle)
