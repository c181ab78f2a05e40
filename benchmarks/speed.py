"""Measures speed and memory beside what people would use instead: Keras, PyTorch, ONNX, OpenVINO.

pip install -r requirements/bench.txt
python benchmarks/speed.py            every engine; writes speed.json, and this CPU's table
python benchmarks/speed.py --quick    what the ratios need, in under five minutes; writes nothing

Every engine has the weights of outputs/pretrained, the same slices, and a process of its own. They
take turns, round by round, and the median of the rounds counts: a noisy machine is unfair to none.
All must give the same P(interior). An engine that dies or is not installed has a row that says so;
the others are measured. Needs Linux, which tells the kind of CPU and the memory.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import NamedTuple

import engines
from result_tables import HERE, draw_table, write_tables

from membrane import cli
from membrane.errors import UserError

RESULT = HERE / "speed.json"
CONTEXT = multiprocessing.get_context("spawn")
SLICES, ROUNDS = 24, 3
QUICK = 8, 2  # slices and rounds
REPEATS = 3  # of the work, in each round
TIMEOUT = 900  # s, for a round of one engine
OURS = "ours", "predict.py"  # how the names of our own engines begin
UNITS = {"network": "Mpixel/s", "pipeline": "Mpixel/s", "training": "tiles/s"}


class Job(NamedTuple):
    """An engine to measure, and the function of engines.py that prepares it."""

    kind: str
    engine: str
    precision: str  # "" where there is no choice
    prepare: Callable[[str, Path], dict]


BOTH = "bfloat16", "float32"
CHANNELS_LAST = partial(engines.pytorch, layout="channels_last")  # it must be asked for
PLAIN, BORDERS = ["--no-tta", "--plain", "--threshold", "0.9"], ["--no-tta", "--threshold", "0.5"]
IMPORT, PREDICT = ["-c", "import tensorflow"], [engines.ROOT / "predict.py"]
ENGINES = [
    ("network", "ours", BOTH, engines.ours),
    ("network", "Keras model.predict", BOTH, engines.keras_predict),
    ("network", "PyTorch", BOTH, engines.pytorch),
    ("network", "PyTorch channels_last", BOTH, CHANNELS_LAST),
    ("network", "PyTorch compiled", BOTH, partial(CHANNELS_LAST, compiled=True)),
    ("network", "ONNX Runtime", ["float32"], engines.onnx_runtime),
    ("network", "OpenVINO", ["bfloat16"], engines.openvino),
    ("network", "Keras, U-Net of 31 M parameters", BOTH, engines.large_unet),
    ("pipeline", "ours, --plain", [""], partial(engines.pipeline, flags=PLAIN)),
    ("pipeline", "ours", [""], partial(engines.pipeline, flags=BORDERS)),
    ("pipeline", "naive Keras", ["float32"], engines.naive_pipeline),
    ("training", "ours", ["bfloat16"], engines.training),
    ("training", "ours, one batch", ["bfloat16"], partial(engines.training, constant=True)),
    ("training", "PyTorch channels_last", ["bfloat16"], engines.pytorch_training),
    ("training", "ours, tiles alone, per core", [""], engines.tiles),
    ("start", "import tensorflow", [""], partial(engines.start, command=IMPORT)),
    ("start", "predict.py, one slice", [""], partial(engines.start, command=PREDICT)),
]
JOBS = [
    Job(kind, engine, precision, prepare)
    for kind, engine, precisions, prepare in ENGINES
    for precision in precisions
]
RATIOS = {  # of the speed of the first to that of the second
    "network_vs_openvino": ["network ours bfloat16", "network OpenVINO bfloat16"],
    "network_vs_pytorch": ["network ours bfloat16", "network PyTorch channels_last bfloat16"],
    "pipeline_vs_naive_keras": ["pipeline ours, --plain", "pipeline naive Keras float32"],
    "training_vs_pytorch": ["training ours bfloat16", "training PyTorch channels_last bfloat16"],
    "overhead_of_augmentation": ["training ours, one batch bfloat16", "training ours bfloat16"],
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="speed.py", description=__doc__)
    parser.add_argument("--data", default="kaggle", help="as for train.py; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer engines and slices, no table")
    return cli.run(measure, parser.parse_args(argv), "speed.py")


def measure(args: argparse.Namespace) -> int:
    """Measures every engine, writes the table, prints the ratios; returns the exit status."""
    jobs, slices, rounds = JOBS, SLICES, ROUNDS
    if args.quick:
        needed = {name for pair in RATIOS.values() for name in pair}
        jobs = [job for job in JOBS if job.kind == "start" or name_row(job._asdict()) in needed]
        slices, rounds = QUICK
    with tempfile.TemporaryDirectory() as scratch:
        engines.write_inputs(args.data, slices, Path(scratch))
        rows = take_turns(jobs, Path(scratch), rounds)
    if args.quick:
        print(draw(describe_cpu(), rows))
    else:
        results = json.loads(RESULT.read_text(encoding="utf-8")) | {describe_cpu(): rows}
        RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_tables(draw_tables())
    print("", *draw_ratios(rows), sep="\n")
    return int(any("failure" in row and row["engine"].startswith(OURS) for row in rows))


def take_turns(jobs: Sequence[Job], folder: Path, rounds: int) -> list[dict]:
    """Measures every job once per round, in turn; returns a row for each."""
    results = []
    for number in range(rounds):
        print(f"Round {number + 1} of {rounds}", flush=True)
        results.append([measure_apart(job, folder) for job in jobs])
    return [make_row(*columns) for columns in zip(jobs, *results, strict=True)]


def measure_apart(job: Job, folder: Path) -> dict:
    """Returns what `measure_engine` sends from a process of its own, or how that died."""
    connection, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=measure_engine, args=(theirs, job, folder))
    process.start()
    theirs.close()
    try:
        if connection.poll(TIMEOUT):
            return connection.recv()
        return {"failure": f"no result in {TIMEOUT} s"}
    except EOFError:
        process.join()
        return {"failure": f"died with status {process.exitcode}"}
    finally:
        process.kill()  # some engines wait for their own threads when they end
        process.join()


def measure_engine(connection: Connection, job: Job, folder: Path) -> None:
    """Sends the rates of an engine by shape, and its peak memory in MiB; or why there are none."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    rates = {}
    try:
        for shape, (work, run) in job.prepare(job.precision, folder).items():
            run()
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - began)
            rates["×".join(map(str, shape))] = work / median(seconds)
    except ModuleNotFoundError as error:
        return connection.send({"failure": f"{error.name} not installed"})
    except UserError as error:
        return connection.send({"failure": str(error)})
    # `resource` would give the peak of the process that started this one, where that is higher
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    connection.send({"rates": rates, "peak_mib": int(peak[1]) / 1024})


def make_row(job: Job, *results: dict) -> dict:
    """Returns the median of an engine's rounds, and the shape at which it is fastest."""
    row = {"kind": job.kind, "engine": job.engine, "precision": job.precision}
    for result in results:
        if "failure" in result:
            return row | result
    shapes = results[0]["rates"]
    rates = {shape: median(result["rates"][shape] for result in results) for shape in shapes}
    if job.kind == "start":
        return row | {"seconds": 1 / rates[""]}
    best, peak = max(rates, key=rates.get), max(result["peak_mib"] for result in results)
    return row | {"best": best, "rate": rates[best], "rates": rates, "peak_mib": peak}


def describe_cpu() -> str:
    """Returns the processor's name, its cores, and what it has for bfloat16, as Linux says."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.+)", text, re.MULTILINE)
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16 without AMX"}
    native = [name for flag, name in known.items() if flag in text.split()]
    native.append("neither AMX nor AVX512-BF16")
    return f"{model[1] if model else os.uname().machine}, {os.cpu_count()} cores, {native[0]}"


def name_row(row: dict) -> str:
    """Returns how `RATIOS` names an engine."""
    return f"{row['kind']} {row['engine']} {row['precision']}".rstrip()


def draw_tables() -> dict[str, str]:
    """Returns the tables of all CPUs, each of its last measurement, by their name."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    return {"speed": "\n\n".join(draw(cpu, rows) for cpu, rows in results.items())}


def draw(cpu: str, rows: list[dict]) -> str:
    """Returns the kind of CPU and the table in Markdown."""
    lines = []
    for row in rows:
        if "rate" in row:
            speed = f"{row['rate']:.3g} {UNITS[row['kind']]}"
            cells = speed, f"{row['best']} px", f"{row['peak_mib']:.0f} MiB"
        else:
            cells = row.get("failure") or f"{row['seconds']:.1f} s", "", ""
        lines.append((row["kind"], row["engine"], row["precision"], *cells))
    header = "what", "engine", "precision", "speed or time", "at", "peak memory"
    return f"CPU: {cpu}.\n\n{draw_table(header, lines)}"


def draw_ratios(rows: list[dict]) -> list[str]:
    """Returns how many times as fast as others this repository is, one line each."""
    rates, lines = {name_row(row): row.get("rate") for row in rows}, []
    for name, pair in RATIOS.items():
        one, other = map(rates.get, pair)
        if not (one and other):
            shown = "none"
        elif name == "overhead_of_augmentation":
            shown = f"{one / other - 1:.1%}"
        else:
            shown = f"{one / other:.2f}"
        lines.append(f"{name}: {shown}")
    start, mask = (row.get("seconds", math.nan) for row in rows if row["kind"] == "start")
    return [*lines, f"first_mask_vs_import_tensorflow: {mask / start:.2f} (+ {mask - start:.1f} s)"]


if __name__ == "__main__":
    sys.exit(main())
