"""Measures speed and memory beside what people would use instead: Keras, PyTorch, ONNX, OpenVINO.

pip install -r requirements/bench.txt
python benchmarks/speed.py            every engine; writes speed.json and the table in speed.md
python benchmarks/speed.py --quick    what the ratios need, in under five minutes; writes nothing

Every engine has the weights of outputs/pretrained, the same slices, and a process of its own. The
processes take turns, one works while the others wait, and the median of the rounds counts: a noisy
machine is unfair to none. Before any timing all must give the same P(interior). An engine that
dies or is not installed has a row that says so; the others are measured.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import engines
import numpy as np
from result_tables import HERE, ROOT, draw_table, write_tables

sys.path.insert(0, str(ROOT))

from membrane import cli
from membrane.errors import UserError

RESULT = HERE / "speed.json"
CONTEXT = multiprocessing.get_context("spawn")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of P(interior), at most
SLICES, QUICK_SLICES = 24, 8
ROUNDS = {"network": 5, "pipeline": 5, "training": 9}
UNITS = {"network": "Mpixel/s", "pipeline": "Mpixel/s", "training": "tiles/s"}


class Job(NamedTuple):
    """An engine to measure, and the function of `engines` that prepares it."""

    kind: str
    engine: str
    precision: str  # "" where there is no choice
    prepare: Callable[[str, Path], engines.Prepared]


OURS, KERAS, PYTORCH = "ours", "Keras model.predict", "PyTorch"
CHANNELS_LAST = "PyTorch channels_last"  # its quicker layout, which must be asked for
OPENVINO = "OpenVINO throughput"
COPIED = "Keras, U-Net of 31 M parameters"  # as most tutorials have it
PLAIN, CONSTANT, NAIVE = "ours, --plain", "ours, one constant batch", "naive Keras"
LOADERS = {
    OURS: engines.load_ours,
    KERAS: engines.load_keras_predict,
    PYTORCH: engines.load_pytorch,
    CHANNELS_LAST: partial(engines.load_pytorch, layout="channels_last"),
    "PyTorch compiled": partial(engines.load_pytorch, layout="channels_last", compiled=True),
    "ONNX Runtime": engines.load_onnx_runtime,
    "OpenVINO latency": partial(engines.load_openvino, hint="LATENCY"),
    OPENVINO: partial(engines.load_openvino, hint="THROUGHPUT"),
}
ONLY = {"ONNX Runtime": "float32", "OpenVINO latency": "bfloat16", OPENVINO: "bfloat16"}
JOBS = [
    *(
        Job("network", engine, precision, partial(engines.prepare_network, load))
        for engine, load in LOADERS.items()
        for precision in TOLERANCE
        if ONLY.get(engine, precision) == precision
    ),
    *(Job("network", COPIED, precision, engines.prepare_copied_unet) for precision in TOLERANCE),
    Job("pipeline", PLAIN, "", partial(engines.prepare_pipeline, threshold=0.9, plain=True)),
    Job("pipeline", OURS, "", partial(engines.prepare_pipeline, threshold=0.5, plain=False)),
    Job("pipeline", NAIVE, "", engines.prepare_naive_pipeline),
    Job("training", OURS, "bfloat16", engines.prepare_training),
    Job("training", CONSTANT, "bfloat16", partial(engines.prepare_training, constant=True)),
    Job("training", CHANNELS_LAST, "bfloat16", engines.prepare_pytorch_training),
    Job("training", "our tiles alone, per core", "", engines.prepare_tiles),
]
REFERENCE = "network", KERAS, "float32"  # whose P(interior) all others must give
NETWORK = "network", OURS, "bfloat16"
RATIOS = {  # how many times as fast the first is as the second
    "network_vs_openvino": (NETWORK, ("network", OPENVINO, "bfloat16")),
    "network_vs_pytorch": (NETWORK, ("network", CHANNELS_LAST, "bfloat16")),
    "network_vs_pytorch_as_it_comes": (NETWORK, ("network", PYTORCH, "bfloat16")),
    "pipeline_vs_naive_keras": (("pipeline", PLAIN, ""), ("pipeline", NAIVE, "")),
    "pipeline_of_whole_borders_vs_naive_keras": (("pipeline", OURS, ""), ("pipeline", NAIVE, "")),
    "training_vs_pytorch": (
        ("training", OURS, "bfloat16"),
        ("training", CHANNELS_LAST, "bfloat16"),
    ),
}
STARTS = "import tensorflow", "predict.py, one slice"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = cli.Parser(prog="speed.py", description=__doc__)
    parser.add_argument("--data", default="kaggle", help="as for train.py; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer engines and slices, no table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(measure, parse_args(argv), "speed.py")


def measure(args: argparse.Namespace) -> int:
    """Measures every engine, writes the table, prints the ratios; returns the exit status."""
    needed = {REFERENCE, *(key for pair in RATIOS.values() for key in pair)}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        engines.write_inputs(args.data, QUICK_SLICES if args.quick else SLICES, folder)
        for kind, rounds in ROUNDS.items():
            jobs = [job for job in JOBS if job.kind == kind]
            if args.quick and kind == "network":
                jobs = [job for job in jobs if job[:3] in needed]
            rows += take_turns(jobs, folder, rounds)
        rows += time_starts(folder)
    result = {"cpu": describe_cpu(), "rows": rows}
    if args.quick:
        print(draw(result))
    else:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        write_tables(draw_tables())
    print("", *draw_ratios(rows), sep="\n")
    return int(any("failure" in row and row["engine"].startswith(OURS) for row in rows))


def take_turns(jobs: Sequence[Job], folder: Path, rounds: int) -> list[dict]:
    """Starts an engine per job, lets them work in turn, and returns a row for each."""
    started = []
    try:
        for job in jobs:
            started.append(Engine(job, folder))
        check_agreement(started)
        for _ in range(rounds):
            for engine in started:
                engine.take_turn()
        return [engine.make_row() for engine in started]
    finally:
        for engine in started:
            engine.stop()


class Engine:
    """A process that works when told to.

    Args:
        job: what it is.
        folder: what `engines.write_inputs` has filled.
    """

    def __init__(self, job: Job, folder: Path):
        self.job, self.turns, self.failure = job, [], None
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, job, folder, time.time()))
        self.process.start()
        theirs.close()
        self.ready = self.receive()

    def receive(self):
        """Returns its next message; None if none will come, and why not is its `failure`."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            message = f"died with status {self.process.exitcode}"
        if isinstance(message, str):
            self.failure = message
            return None
        return message

    def take_turn(self) -> None:
        """Lets it do each of its rounds once, unless it has failed."""
        if self.failure is None:
            with contextlib.suppress(OSError):  # it has died since its last turn
                self.connection.send("go")
            self.turns.append(self.receive())

    def make_row(self) -> dict:
        """Returns what is known of it."""
        row = dict(zip(("kind", "engine", "precision"), self.job, strict=False))
        if self.failure is not None:
            return row | {"failure": self.failure}
        rates = {
            shape: work / statistics.median(turn["seconds"][shape] for turn in self.turns)
            for shape, work in self.ready["work"].items()
        }
        best = max(rates, key=rates.get)
        row |= {"best": best, "rate": rates[best], "rates": rates}
        return row | {"first": self.ready["first"], "peak_mib": self.turns[-1]["peak_mib"]}

    def stop(self) -> None:
        """Ends it."""
        self.connection.close()
        self.process.join()


def serve(connection: Connection, job: Job, folder: Path, began: float) -> None:
    """Is one engine: prepares, then works whenever a message comes in.

    Args:
        connection: sends why it cannot be measured, a str, or what is known of it, a dict; then,
            for each message, the seconds of each round and the memory used so far.
        job: what it is.
        folder: what `engines.write_inputs` has filled.
        began: when the process was started, seconds since the epoch.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    try:
        rounds, probability = job.prepare(job.precision, folder)
        first = None if probability is None else time.time() - began
        for _, run in rounds.values():
            run()
    except ModuleNotFoundError as error:
        return connection.send(f"{error.name} not installed")
    except UserError as error:
        return connection.send(str(error))
    work = {shape: amount for shape, (amount, _) in rounds.items()}
    connection.send({"work": work, "probability": probability, "first": first})
    with contextlib.suppress(EOFError):  # the end
        while connection.recv():
            seconds = {}
            for shape, (_, run) in rounds.items():
                begun = time.perf_counter()
                run()
                seconds[shape] = time.perf_counter() - begun
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            connection.send({"seconds": seconds, "peak_mib": peak})


def check_agreement(started: Sequence[Engine]) -> None:
    """Lets those fail whose P(interior) is not that of Keras in float32.

    Raises:
        UserError: there is nothing to compare with.
    """
    maps = {one: one.ready["probability"] for one in started if one.failure is None}
    maps = {one: probability for one, probability in maps.items() if probability is not None}
    reference = [probability for one, probability in maps.items() if one.job[:3] == REFERENCE]
    if maps and not reference:
        raise UserError(f"{KERAS} failed, so there is no P(interior) to compare others with")
    for one, probability in maps.items():
        error = float(np.abs(probability - reference[0]).max())
        if not error <= TOLERANCE[one.job.precision]:
            one.failure = f"P(interior) differs by {error:.2g}"


def time_starts(folder: Path) -> list[dict]:
    """Returns how long a fresh process takes to import TensorFlow, and to make a first mask."""
    rows, first = [], min((folder / "slices").iterdir())
    for what in STARTS:
        seconds = []
        for number in range(ROUNDS["network"]):
            output = ["--model", "pretrained", "--output", str(folder / f"masks-{number}")]
            mask = [str(ROOT / "predict.py"), str(first), *output]
            begun = time.perf_counter()
            command = ["-c", what] if what == STARTS[0] else mask
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begun)
        first_seconds = statistics.median(seconds)
        rows.append({"kind": "start", "engine": what, "precision": "", "first": first_seconds})
    return rows


def describe_cpu() -> str:
    """Returns the processor's name, its cores, and what it has for bfloat16, as Linux says."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16 without AMX"}
    native = [name for flag, name in known.items() if flag in text.split()]
    name = named[1] if named else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {(native or ['no native bfloat16'])[0]}"


def draw_tables() -> dict[str, str]:
    """Returns the table of the last measurement by its name, if there was one."""
    if not RESULT.exists():
        return {}
    return {"speed": draw(json.loads(RESULT.read_text(encoding="utf-8")))}


def draw(result: dict) -> str:
    """Returns the kind of CPU and the table in Markdown."""
    lines = []
    for row in result["rows"]:
        speed = shape = peak = ""
        if "rate" in row:
            speed = f"{row['rate']:.3g} {UNITS[row['kind']]}"
            shape, peak = f"{row['best']} px", f"{row['peak_mib']:.0f} MiB"
        first = f"{row['first']:.1f} s" if row.get("first") else ""
        about = row["kind"], row["engine"], row["precision"]
        lines.append((*about, row.get("failure", speed), shape, first, peak))
    header = "what", "engine", "precision", "speed", "at", "time", "peak memory"
    return f"CPU: {result['cpu']}.\n\n{draw_table(header, lines)}"


def draw_ratios(rows: list[dict]) -> list[str]:
    """Returns how many times as fast as others this repository is, one line each."""
    rate = {(row["kind"], row["engine"], row["precision"]): row.get("rate") for row in rows}

    def ratio(one, other):
        return rate[one] / rate[other] if rate.get(one) and rate.get(other) else None

    lines = {name: ratio(*pair) for name, pair in RATIOS.items()}
    lines = [
        f"{name}: {'none' if value is None else f'{value:.2f}'}" for name, value in lines.items()
    ]
    augmented = ratio(*(("training", engine, "bfloat16") for engine in (CONSTANT, OURS)))
    overhead = "none" if augmented is None else f"{augmented - 1:.1%}"
    start, mask = (next(r["first"] for r in rows if r["engine"] == what) for what in STARTS)
    return [
        *lines,
        f"pipeline_overhead_of_augmentation: {overhead}",
        f"first_mask_vs_import_tensorflow: {mask / start:.2f} (+ {mask - start:.1f} s)",
    ]


if __name__ == "__main__":
    sys.exit(main())
