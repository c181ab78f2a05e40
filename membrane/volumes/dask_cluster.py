"""The workers of a running Dask cluster as a pool for the blocks of a volume."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from functools import lru_cache, partial
from pathlib import Path

import cloudpickle
from distributed import Client, KilledWorker, get_worker
from distributed.comm import CommClosedError

from membrane import cli
from membrane.errors import UserError, first_line
from membrane.inference.loading import load_network
from membrane.inference.precision import choose_precision, with_dtype
from membrane.inference.predictor import Predictor
from membrane.runs import ROOT
from membrane.volumes import store
from membrane.volumes.blocks import predict_block
from membrane.volumes.jobs import Block, Job
from membrane.volumes.scheduler import Pool

CONNECT_SECONDS = 10  # for the scheduler to answer
OPENING = threading.Lock()


@contextlib.contextmanager
def open_cluster(job: Job, address: str) -> Iterator[Pool]:
    """Gives the workers of a Dask scheduler, who come and go.

    Raises:
        UserError: none answers there.
    """
    for name in list(logging.root.manager.loggerDict):  # else a lost connection fills the terminal
        if name.startswith(("distributed", "tornado", "asyncio")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there ({first_line(error)}); start "
            "one by: dask scheduler"
        ) from None
    # Of the functions of a script, such as threshold_map, the workers get the code.
    cloudpickle.register_pickle_by_value(sys.modules[job.threshold_map.__module__])

    def count_tasks() -> int:
        """Returns how many tasks keep the workers busy."""
        if client.status == "closed":  # what was in flight is not always told so
            raise CommClosedError
        return max(1, 2 * sum(client.nthreads().values()))

    with client:
        if not client.nthreads():
            print(f"Note: no worker there yet; start some by: dask worker {address}", flush=True)
        yield Pool(
            predict=partial(predict_on_worker, job),
            submit=partial(_submit, client.get_executor(pure=False)),
            max_in_flight=count_tasks,
            killed=(KilledWorker,),
            lost=(CancelledError, CommClosedError),
        )


def predict_on_worker(job: Job, block: Block) -> dict:
    """Predicts a block in a Dask worker, which opens volume and model once."""
    with OPENING:
        source = _open_volume(job.state, job.source, job.flags.max_pixels, job.flags.channel)
        state, threads = job.model.stat().st_mtime_ns, get_worker().state.nthreads
        predictor = _open_model(state, job.model, job.flags.tta, threads)
    return predict_block(job, source, predictor, block)


def _submit(executor: Executor, function: Callable, block: Block) -> Future:
    """Starts a function on a block in a Dask worker.

    Neither scheduler nor worker need know this repository, which must only lie where it lies here:
    the task travels as bytes, and what unpacks them travels by value, being no module's function.
    It comes last on the worker's path, so no file of it hides a module of somebody else's.
    """

    def work(home: str, task: bytes):
        import os
        import pickle
        import sys

        os.environ["KERAS_BACKEND"] = "tensorflow"  # before anything imports Keras
        if home not in sys.path:
            sys.path.append(home)
        return pickle.loads(task)()  # noqa: S301 all that Dask sends is pickled

    return executor.submit(work, str(ROOT), cloudpickle.dumps(partial(function, block)))


@lru_cache(maxsize=1)
def _open_volume(state: str, path: Path, max_pixels: int, channel: int | None) -> store.Volume:
    return store.open_volume(path, max_pixels, channel)


@lru_cache(maxsize=1)
def _open_model(state: int, path: Path, tta: bool, threads: int) -> Predictor:
    cli.start_tensorflow()
    cli.share_cores(threads)
    network = with_dtype(load_network(path), choose_precision()[0])
    return Predictor(network, tta, workers=threads)
