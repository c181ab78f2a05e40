"""Runs the blocks of a volume, in this process or wherever a pool of workers is.

The same functions on the same blocks; only who calls them differs. Never more blocks are in flight
than keep everybody busy.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from membrane.errors import UnreadableError, UserError
from membrane.inference.batch import PIXELS_IN_FLIGHT, open_threads
from membrane.inference.entries import membrane_of_counts
from membrane.inference.predictor import Predictor
from membrane.volumes import labels, pyramid, store
from membrane.volumes.blocks import predict_block, shrink_block
from membrane.volumes.jobs import Block, Job, read_marker

WAIT_SECONDS = 5  # between two looks at who is there


@dataclass(frozen=True)
class Pool:
    """Workers that take blocks."""

    predict: Callable[[Block], dict]  # what predicts a block there
    submit: Callable[[Callable, Block], Future]  # starts a function on a block
    max_in_flight: Callable[[], int]  # how many blocks keep the workers busy at this moment
    killed: tuple[type[Exception], ...] = ()  # by which shows that workers died on a block
    lost: tuple[type[Exception], ...] = ()  # by which shows that nobody is left


@contextlib.contextmanager
def open_local(
    job: Job, source: store.Volume, predictor: Predictor, workers: int
) -> Iterator[Pool]:
    """Gives a pool of threads of this process."""
    count = max(1, min(workers, PIXELS_IN_FLIGHT // math.prod(job.block[1:])))
    with open_threads(count, predictor) as threads:
        predict = partial(predict_block, job, source, predictor)
        yield Pool(predict, threads.submit, lambda: count)


def run_job(
    job: Job,
    source: store.Volume,
    open_pool: AbstractContextManager[Pool],
    progress: Callable[[float], object],
) -> tuple[dict[str, float], dict[str, str], set[str], list[bool], list[dict]]:
    """Predicts those blocks of a volume that are not done yet, then draws the pyramid.

    The pool is that of `open_local` or `dask_cluster.open_cluster`; `progress` is told how many
    megapixels more are done.

    Returns:
        The membrane fraction of each slice, of its tissue; what could not be done, by block; the
        precisions that the blocks were computed in; whether slices agree with the one before, at
        least in part; and what the page says of what it corrects. Without pyramid where something
        could not be done: it can be mended, and the rest done by the same call.

    Raises:
        UserError: there is no going on.
    """
    for path in job.outputs:
        pyramid.create_volume(path, source.voxel, job.levels, job.block)
    if job.flags.labels:
        labels.create(job, source)
    depth = source.shape[0]
    interior, tissue = np.zeros((2, depth), int)
    lacking = np.zeros(depth, bool)
    failed, precisions, agreed, entries = {}, set(), {}, []
    with open_pool as pool:
        for block, result in _finish_level(job, 0, pool.predict, pool):
            if isinstance(result, UnreadableError):
                failed[block.name] = str(result)
                lacking[block.z] = True
                continue
            interior[block.z] += result["interior"]
            tissue[block.z] += result["tissue"]
            precisions.add(result["computed_in"])
            for z, agrees in result["agreed"]:
                agreed[z] = agreed.get(z, False) or agrees
            entries += result["entries"]
            progress(math.prod(np.subtract(block.stop, block.start)) / 1e6)
        for level in range(1, 1 if failed else len(job.levels)):
            for _ in _finish_level(job, level, partial(shrink_block, job), pool):
                pass
    fractions = membrane_of_counts(interior, tissue)
    done = {f"z {z}": float(fractions[z]) for z in np.flatnonzero(~lacking)}
    return done, failed, precisions, list(agreed.values()), entries


def _finish_level(job: Job, level: int, function: Callable, pool: Pool) -> Iterator[tuple]:
    """Yields each block of a level with what its task returned, in an earlier run or now.

    For a block that the rest can go on without, that is the `UnreadableError`.
    """
    missing, running = [], {}
    for block in job.cut(level):
        marker = read_marker(job, block)
        if marker is None:
            missing.append(block)
        else:
            yield block, marker
    missing = iter(missing)
    try:
        while True:
            for block in islice(missing, max(0, pool.max_in_flight() - len(running))):
                running[pool.submit(function, block)] = block
            if not running:
                return
            for future in wait(running, WAIT_SECONDS, FIRST_COMPLETED).done:
                block = running.pop(future)
                try:
                    yield block, future.result()
                except UnreadableError as error:
                    yield block, error
                except pool.killed as error:
                    text = f"{error.last_worker.address} and others died on it; out of memory?"
                    yield block, UnreadableError(f"block {block.name}: {text}")
    except pool.lost:
        raise UserError("the Dask scheduler is gone; run the same command again to go on") from None
    finally:
        for future in running:
            future.cancel()
