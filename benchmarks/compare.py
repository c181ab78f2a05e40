"""Compares the masks and maps of two checkouts, bit for bit, of both models that ship.

python benchmarks/compare.py OTHER_CHECKOUT SLICES [STACK.tif ...]
"""

import argparse
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
from skimage.io import imread

ROOT = Path(__file__).parent.parent


def main() -> int:
    """Predicts everything in both checkouts; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("inputs", type=Path, nargs="+", help="folders of slices, or stacks")
    args = parser.parse_args()
    results = []
    for path, model, flips in product(args.inputs, ("pretrained", "large"), ("--tta", "--no-tta")):
        with tempfile.TemporaryDirectory() as scratch:
            ours, theirs = Path(scratch, "ours"), Path(scratch, "theirs")
            for checkout, output in ((ROOT, ours), (args.other, theirs)):
                flags = ["--model", checkout / "outputs" / model, flips, "--probability"]
                flags += ["--submission", output / "exact.tif", "--output", output / "masks"]
                command = [sys.executable, checkout / "predict.py", path, *flags]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for file in sorted([*ours.rglob("*.tif"), *ours.rglob("*.png")]):
                name = file.relative_to(ours)
                if "about" not in name.parts:
                    results.append(np.array_equal(imread(file), imread(theirs / name)))
                    if not results[-1]:
                        print(f"{path.name}, {model}, {flips}: {name} differs")
    print(f"{len(results)} files, {results.count(False)} differ")
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
