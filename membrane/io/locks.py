"""Locks on folders of output: two commands at once never write into the same one.

The operating system takes a lock back when its process ends, however it ends.
"""

import contextlib
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from membrane.errors import UserError

LOCK = ".lock"  # in a folder while a command works on it; says which
_held: list[FileLock] = []


class LockedError(UserError):
    """Another command works on a folder."""


def lock_folder(folder: Path) -> None:
    """Locks a folder until `release_locks`.

    Raises:
        LockedError: another command has locked it; says whose process it is.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = (folder / LOCK).read_text("utf-8") or "another process"
        text = f"{folder}: {owner} is at work on it; wait for it, or name another folder"
        raise LockedError(text) from None
    except (OSError, NotImplementedError):  # a disk that knows no locks
        return
    _held.append(lock)
    with contextlib.suppress(OSError):  # a full disk
        (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")


def release_locks() -> None:
    """Releases all locks of this process."""
    while _held:
        lock = _held.pop()
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
