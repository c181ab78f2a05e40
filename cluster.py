"""Runs the blocks of a volume: in this process, or in the workers of a Dask cluster.

The same functions on the same blocks; only who calls them differs. Never more blocks are under way
than keep everybody busy.
"""

import contextlib
import logging
import math
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    wait,
)
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
from distributed import Client, KilledWorker, get_worker
from distributed.comm import CommClosedError

import doors
import unet
import volume
from areas import pixels_of
from blocks import predict_block, shrink_block
from inference import Predictor, load_network
from jobs import Block, Job, read_marker
from pipeline import PIXELS_IN_FLIGHT, open_threads
from slices import UnreadableError, UserError, first_line

CONNECT_SECONDS, LOOK_SECONDS = 10, 5  # for the scheduler to answer; between looks at it
OPENING = threading.Lock()


def predict_volume(
    job: Job,
    source: volume.Volume,
    predictor: Predictor,
    workers: int,
    scheduler: str | None,
    progress: Callable[[float], object],
) -> tuple[dict[str, float], list[str], set[str]]:
    """Predicts those blocks of a volume that are not done yet, then draws the pyramid.

    Args:
        job: what to do.
        source: the volume.
        predictor: the network, for this process.
        workers: how many blocks this process predicts at once, while they are small.
        scheduler: address of a Dask scheduler whose workers do it instead, or None.
        progress: is told how many megapixels more are done.

    Returns:
        The membrane fraction of each slice; what could not be done; and the number formats that
        the blocks were computed in. Without pyramid where something could not be done: it can be
        mended, and the rest done by the same call.
    """
    for path in job.outputs:
        volume.create_volume(path, source.voxel, job.levels, job.block)
    area = math.prod(source.shape[1:])
    membrane, seen, failed = np.zeros(source.shape[0]), np.zeros(source.shape[0]), []
    formats = set()
    with _open_pool(scheduler, workers, job, predictor) as (submit, at_once):
        if scheduler:
            function = partial(predict_on_worker, job)
        else:
            function = partial(predict_block, job, source, predictor)
        for one, result in _finish(job, 0, function, submit, at_once):
            if isinstance(result, UnreadableError):
                failed.append(str(result))
                continue
            membrane[one.z] += result["membrane"]
            formats.add(result["computed_in"])
            pixels = pixels_of(one.area)
            seen[one.z] += pixels
            progress(pixels * (one.stop[0] - one.start[0]) / 1e6)
        for level in range(1, 1 if failed else len(job.levels)):
            for _ in _finish(job, level, partial(shrink_block, job), submit, at_once):
                pass
    whole_slices = np.flatnonzero(seen == area).tolist()
    return {f"z {z}": float(membrane[z] / area) for z in whole_slices}, failed, formats


def _finish(job: Job, level: int, function, submit, at_once) -> Iterator[tuple]:
    """Yields each block of a level with what its task returned, in an earlier run or now."""
    missing = []
    for block in job.cut(level):
        marker = read_marker(job, block)
        if marker is None:
            missing.append(block)
        else:
            yield block, marker
    yield from run(function, missing, submit, at_once)


def run(
    function: Callable[[Block], dict],
    blocks: Iterable[Block],
    submit: Callable[[Callable, Block], Future],
    at_once: Callable[[], int],
) -> Iterator[tuple[Block, dict | UnreadableError]]:
    """Runs a function on blocks, some at once, and yields what it returned as they finish.

    Args:
        function: that raises `UnreadableError` where the rest can go on without a block.
        blocks: not more of them are taken than are under way.
        submit: starts the function on a block.
        at_once: says how many may be under way at this moment.

    Raises:
        UserError: what the function raised, when there is no going on.
    """
    blocks, running = iter(blocks), {}
    try:
        while True:
            for block in islice(blocks, max(0, at_once() - len(running))):
                running[submit(function, block)] = block
            if not running:
                return
            for future in wait(running, LOOK_SECONDS, FIRST_COMPLETED).done:
                block = running.pop(future)
                try:
                    yield block, future.result()
                except UnreadableError as error:
                    yield block, error
                except KilledWorker as error:
                    text = f"{error.last_worker.address} and others died on it; out of memory?"
                    yield block, UnreadableError(f"block {block.name}: {text}")
    except (CancelledError, CommClosedError):
        raise UserError("the Dask scheduler is gone; run the same command again to go on") from None
    finally:
        for future in running:
            future.cancel()


@contextlib.contextmanager
def _open_pool(scheduler: str | None, workers: int, job: Job, predictor: Predictor):
    """Gives a function that starts another one on a block, and one that says how many at once."""
    if scheduler:
        with connect(scheduler) as client:
            pool = client.get_executor(pure=False)
            yield partial(_submit, pool), partial(_count_tasks, client)
        return
    count = max(1, min(workers, PIXELS_IN_FLIGHT // math.prod(job.block[1:])))
    with open_threads(count, predictor) as pool:
        yield pool.submit, lambda: count


def _count_tasks(client: Client) -> int:
    """Returns how many tasks keep the cluster's workers busy, who come and go."""
    if client.status == "closed":  # what was under way is not always told so
        raise CommClosedError
    return max(1, 2 * sum(client.nthreads().values()))


def _submit(pool: Executor, function: Callable, block: Block) -> Future:
    """Starts a function on a block in a Dask worker.

    Neither scheduler nor worker need know this repository, which must only lie where it lies here:
    the task travels as bytes, and what unpacks them travels by value, being no module's function.
    """

    def work(home: str, task: bytes):
        import pickle
        import sys

        if home not in sys.path:
            sys.path.insert(0, home)
        return pickle.loads(task)()  # noqa: S301 all that Dask sends is pickled

    return pool.submit(work, str(Path(__file__).parent), pickle.dumps(partial(function, block)))


def connect(address: str) -> Client:
    """Returns a client of a running Dask scheduler.

    Raises:
        UserError: none answers there.
    """
    for name in list(logging.root.manager.loggerDict):  # else a lost connection fills the terminal
        if name.startswith(("distributed", "tornado", "asyncio")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there ({first_line(error)}); start "
            "one by: dask scheduler"
        ) from None


def predict_on_worker(job: Job, block: Block) -> dict:
    """Predicts a block in a Dask worker, which opens volume and model once."""
    with OPENING:
        source = _open_volume(job.state, job.source, job.max_pixels)
        state, threads = job.model.stat().st_mtime_ns, get_worker().state.nthreads
        predictor = _open_model(state, job.model, job.tta, threads)
    return predict_block(job, source, predictor, block)


@lru_cache(maxsize=1)
def _open_volume(state: str, path: Path, max_pixels: int) -> volume.Volume:
    return volume.open_volume(path, max_pixels)


@lru_cache(maxsize=1)
def _open_model(state: int, path: Path, tta: bool, threads: int) -> Predictor:
    doors.import_tensorflow_quietly()
    doors.share_cores(threads)
    network = unet.with_dtype(load_network(path), unet.choose_dtype()[0])
    return Predictor(network, tta, workers=threads)
