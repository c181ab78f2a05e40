"""Measures in 3-D how well cells keep their number from slice to slice, and writes the table.

python benchmarks/linking.py RAW.tif NEURONS.npz --pixel-size 10

RAW.tif is a stack and NEURONS.npz holds its true neurons, integers (z, y, x), 0 = unknown, such as
the FIB-SEM volume of the neuroproof examples. The constants of the linking were chosen on its
first half; the second half is scored by itself.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from result_tables import HERE, draw_table, write_tables
from skimage.measure import label as connected_components
from skimage.metrics import adapted_rand_error, variation_of_information

from membrane import cli, runs

RESULT = HERE / "linking.json"
EVERY = 5  # slices, of which one is left in the second measurement


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="linking.py", description=__doc__)
    parser.add_argument("raw", type=cli.path, metavar="RAW.tif")
    parser.add_argument("neurons", type=cli.path, metavar="NEURONS.npz")
    parser.add_argument("--pixel-size", type=cli.positive(float), required=True, metavar="NM")
    return cli.run(measure, parser.parse_args(argv), "linking.py")


def measure(args: argparse.Namespace) -> int:
    """Scores the linking of true cells and of masks; writes result and table."""
    with np.load(args.neurons) as file:
        (true,) = (file[name].astype(np.int64) for name in file.files)
    rows, half = [], len(true) // 2
    for name, part in (("all slices", true), (f"every {EVERY}th slice", true[::EVERY])):
        cells = [connected_components(one, connectivity=1) for one in part]
        rows.append(score(f"true cells, {name}", link(cells), part))
        begin = len(part) // 2
        rows.append(score(f"true cells, {name}, second half", link(cells[begin:]), part[begin:]))
    for model in (runs.PRETRAINED, "large"):
        labels = predict(args.raw, model, args.pixel_size)
        rows.append(score(f"masks of outputs/{model}", labels, true))
        rows.append(score(f"masks of outputs/{model}, second half", labels[half:], true[half:]))
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_tables(draw_tables())
    return 0


def link(cells: list[np.ndarray]) -> np.ndarray:
    """Returns cells, numbered slice by slice, with the numbers of objects, (z, y, x)."""
    from membrane.inference import objects

    numbers, _ = objects.link(cells)
    return np.stack([own[one] for own, one in zip(numbers, cells, strict=True)])


def predict(raw: Path, model: str, pixel_size: float) -> np.ndarray:
    """Returns the numbered cells, (z, y, x), that predict.py writes of a stack."""
    import tifffile

    import predict

    with tempfile.TemporaryDirectory() as folder:
        flags = ["--labels", "--pixel-size", str(pixel_size), "--output", f"{folder}/masks"]
        if predict.main([str(raw), "--model", model, *flags]):
            raise SystemExit(1)
        return tifffile.imread(f"{folder}/masks/labels/{raw.stem}.tif").astype(np.int64)


def score(name: str, labels: np.ndarray, true: np.ndarray) -> dict:
    """Returns a row: adapted Rand error, and the variation of information by false joins, splits.

    Voxels without a true neuron do not count.
    """
    known = true > 0
    error, _, _ = adapted_rand_error(true[known], labels[known])
    splits, joins = variation_of_information(true[known], labels[known])
    return {"cells": name, "error": error, "joined": joins, "split": splits}


def draw_tables() -> dict[str, str]:
    """Returns the table of the last measurement by its name."""
    rows = json.loads(RESULT.read_text(encoding="utf-8"))
    header = "cells", "adapted Rand error", "VI, falsely joined", "VI, falsely split"
    lines = [[row["cells"], *(f"{v:.3f}" for v in list(row.values())[1:])] for row in rows]
    return {"linking": draw_table(header, lines)}


if __name__ == "__main__":
    sys.exit(main())
