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
from result_tables import HERE, ROOT, draw_table, write_tables

sys.path.insert(0, str(ROOT))

from membrane import cli
from membrane.errors import UserError

RESULT = HERE / "speed.json"
CONTEXT = multiprocessing.get_context("spawn")
SLICES, QUICK_SLICES = 24, 8
ROUNDS = {"network": 5, "pipeline": 5, "training": 9}
UNITS = {"network": "Mpixel/s", "pipeline": "Mpixel/s", "training": "tiles/s"}


class Job(NamedTuple):
    """An engine to measure, and the function of engines.py that prepares it."""

    kind: str
    engine: str
    precision: str  # "" where there is no choice
    prepare: Callable[[str, Path], dict]


F32, BF16 = "float32", "bfloat16"
CHANNELS_LAST = partial(engines.load_pytorch, layout="channels_last")  # must be asked for
COMPILED = partial(CHANNELS_LAST, compiled=True)
LOADERS = [
    ("ours", (BF16, F32), engines.load_ours),
    ("Keras model.predict", (F32, BF16), engines.load_keras_predict),
    ("PyTorch", (F32, BF16), engines.load_pytorch),
    ("PyTorch channels_last", (F32, BF16), CHANNELS_LAST),
    ("PyTorch compiled", (F32, BF16), COMPILED),
    ("ONNX Runtime", (F32,), engines.load_onnx_runtime),
    ("OpenVINO", (BF16,), engines.load_openvino),
]
COPIED = "Keras, U-Net of 31 M parameters"  # as most tutorials have it
PLAIN = ["--no-tta", "--plain", "--threshold", "0.9"]
BORDERS = ["--no-tta", "--threshold", "0.5"]
JOBS = [
    *(
        Job("network", engine, precision, partial(engines.network, load))
        for engine, precisions, load in LOADERS
        for precision in precisions
    ),
    *(Job("network", COPIED, precision, engines.copied_unet) for precision in (F32, BF16)),
    Job("pipeline", "ours, --plain", "", partial(engines.pipeline, flags=PLAIN)),
    Job("pipeline", "ours", "", partial(engines.pipeline, flags=BORDERS)),
    Job("pipeline", "naive Keras", F32, engines.naive_pipeline),
    Job("training", "ours", BF16, engines.training),
    Job("training", "ours, one constant batch", BF16, partial(engines.training, constant=True)),
    Job("training", "PyTorch channels_last", BF16, engines.pytorch_training),
    Job("training", "our tiles alone, per core", "", engines.tiles),
]
RATIOS = {  # of the first one's speed to the second one's
    "network_vs_openvino": [("network", "ours", BF16), ("network", "OpenVINO", BF16)],
    "network_vs_pytorch": [("network", "ours", BF16), ("network", "PyTorch channels_last", BF16)],
    "pipeline_vs_naive_keras": [
        ("pipeline", "ours, --plain", ""),
        ("pipeline", "naive Keras", F32),
    ],
    "training_vs_pytorch": [("training", "ours", BF16), ("training", "PyTorch channels_last", BF16)],
    "training_on_one_batch_vs_training": [
        ("training", "ours, one constant batch", BF16),
        ("training", "ours", BF16),
    ],
}
