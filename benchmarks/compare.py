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
import tifffile
from PIL import Image

ROOT = Path(__file__).parent.parent


def main(argv: list[str] | None = None) -> int:
    """Predicts everything in both checkouts; returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout of this repository")
    parser.add_argument("inputs", type=Path, nargs="+", help="folders of slices, or stacks")
    args = parser.parse_args(argv)
    files = differing = 0
    for path, model, flips in product(args.inputs, ("pretrained", "large"), ("--tta", "--no-tta")):
        with tempfile.TemporaryDirectory() as scratch:
            ours, theirs = Path(scratch, "ours"), Path(scratch, "theirs")
            for checkout, output in ((ROOT, ours), (args.other, theirs)):
                flags = ["--model", checkout.resolve() / "outputs" / model, flips, "--probability"]
                flags += ["--submission", output / "exact.tif", "--output", output / "masks"]
                command = [sys.executable, checkout.resolve() / "predict.py", path.resolve()]
                subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
            made = [one for one in ours.rglob("*") if one.suffix in (".png", ".tif")]
            for file in sorted(one for one in made if "about" not in one.parts):
                same = np.array_equal(read(file), read(theirs / file.relative_to(ours)))
                files, differing = files + 1, differing + (not same)
                if not same:
                    print(f"{path.name}, {model}, {flips}: {file.relative_to(ours)} differs")
    print(f"{files} files, {differing} differ")
    return int(differing > 0)


def read(path: Path) -> np.ndarray:
    """Returns the pixels of a PNG or of all pages of a TIFF."""
    return tifffile.imread(path) if path.suffix == ".tif" else np.asarray(Image.open(path))


if __name__ == "__main__":
    sys.exit(main())
