"""What all commands share: refusals in one line, types of flags, a quiet start."""

import argparse
import contextlib
import importlib.util
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from membrane.errors import UserError
from membrane.io.locks import release_locks

LESS_MEMORY = (
    "train.py: a lower --batch-size; predict.py: --no-tta, smaller slices, or --zarr for a stack"
)
PYTHON = "Python 3.11 to 3.13"


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one line, not with a page of usage."""

    def __init__(self, **kwargs):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=style, **kwargs)

    def error(self, message: str) -> None:
        """Exits with status 2 and one line."""
        self.exit(2, f"{self.prog}: error: {message}; see python {self.prog} --help\n")


def _number(kind: type, lowest: float, highest: float, expected: str) -> Callable:
    """Returns a flag's type: numbers of a kind between two others, both excluded."""

    def parse(text: str) -> int | float:
        with contextlib.suppress(ValueError):
            if lowest < (value := kind(text)) < highest:
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


fraction = _number(float, 0, 1, "a number between 0 and 1")
seed = _number(int, -1, 2**32, "a whole number below 2**32")  # as every random generator takes


def positive(kind: type) -> Callable[[str], int | float]:
    """Returns a flag's type: finite numbers of a kind, above zero."""
    return _number(kind, 0, math.inf, "a number above 0")


def channel(value: str) -> int:
    """Returns a flag's channel: a number from 1, or 0 for "all"."""
    return 0 if value == "all" else positive(int)(value)


def text(value: str) -> str:
    """Returns a flag's text, `~` expanded; an empty one, as of an unset variable, is refused."""
    if not value.strip():
        raise argparse.ArgumentTypeError("expected a name, got nothing")
    return os.path.expanduser(value)


def path(value: str) -> Path:
    """Returns a flag's path, as `text`."""
    return Path(text(value))


def run(work: Callable[[argparse.Namespace], int], args: argparse.Namespace, prog: str) -> int:
    """Runs a command's work and turns a user's mistake into one line on stderr.

    Returns the exit status: of `work` (0 = all done, 1 = part of it), or 2 when it was refused.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: else the next files would take its number
            setattr(sys, name, open(os.devnull, mode))
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no fault
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 whoever has an older one learns it
            raise UserError(f"needs {PYTHON}, this is {sys.version.split()[0]}")
        with _terminated_like_interrupted():
            return work(args)
    except UserError as error:
        message = " ".join(str(error).split())
    except MemoryError:
        message = f"out of memory; {LESS_MEMORY}"
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed; pip install -r requirements.txt ({PYTHON})"
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read what is printed has gone, such as head
        _discard_output()
        return 141
    except OSError as error:  # the machine's fault, not that of a user's file
        message = f"{error.filename or 'cannot go on'}: {error.strerror or error}"
        _discard_output()
    except Exception as error:
        if type(error).__name__ != "ResourceExhaustedError":  # TensorFlow's, of a GPU
            raise
        message = f"out of the device's memory; {LESS_MEMORY}"
    finally:
        release_locks()
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Lets SIGTERM, as a cluster's queue sends it, end the work as Ctrl-C does."""
    with contextlib.ExitStack() as afterwards:
        with contextlib.suppress(ValueError):  # not the main thread
            before = signal.signal(signal.SIGTERM, signal.default_int_handler)
            afterwards.callback(signal.signal, signal.SIGTERM, before)
        yield


def _discard_output() -> None:
    """Drops what is still to be printed if it cannot be, else Python fails at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the chatter of libraries from the terminal; if they fail, all of it is shown.

    Some of it comes from C++ before any log level counts, so the descriptors are diverted.
    """
    streams = {1: sys.stdout, 2: sys.stderr}
    for stream in streams.values():
        stream.flush()
    kept = {number: os.dup(number) for number in streams}
    with tempfile.TemporaryFile() as chatter:
        for number in kept:
            os.dup2(chatter.fileno(), number)
        try:
            yield
        except (UserError, OSError, KeyboardInterrupt):
            raise
        except BaseException:
            chatter.seek(0)
            os.write(kept[2], chatter.read())
            raise
        finally:
            for number, descriptor in kept.items():
                streams[number].flush()
                os.dup2(descriptor, number)
                os.close(descriptor)


def check_installed(packages: tuple[str, ...], requirements: str) -> None:
    """Refuses to go on without one of the packages, and names the file that installs them."""
    for name in packages:
        with contextlib.suppress(ModuleNotFoundError):  # of the part before the dot
            if importlib.util.find_spec(name):
                continue
        raise UserError(f"{name} is not installed; pip install -r {requirements}")


def start_tensorflow(training: bool = False) -> None:
    """Imports TensorFlow without its start-up chatter.

    GPU memory is taken as needed, not all at once; that must be said before anything is computed.
    A training asks for oneDNN, which TensorFlow leaves out on CPUs without AVX-512: there it
    halves the time of a step, but prediction takes a tenth longer.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever else the user's Keras is used with
    if training:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet():
        import tensorflow

        tensorflow.get_logger().setLevel("ERROR")
        for gpu in tensorflow.config.list_physical_devices("GPU"):
            tensorflow.config.experimental.set_memory_growth(gpu, True)


def share_cores(most: int | None = None) -> int:
    """Lets several computations run at once, each on one core, which is quicker than one on all.

    Returns how many: `most`, else the cores that this process may use. A GPU is left as it is.
    """
    import tensorflow

    if not tensorflow.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # TensorFlow has computed before, in a test
            tensorflow.config.threading.set_intra_op_parallelism_threads(1)
            tensorflow.config.threading.set_inter_op_parallelism_threads(most or 0)  # 0: by itself
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return most or cores
