"""EM-like slices with exact labels, for tests, README's picture and `--data synthetic`.

Curved cells between membranes of varying width and darkness, with mitochondria and vesicles that
must not be taken for membranes, seen through blur and shot noise. They are for a first run without
Kaggle and no substitute for real slices: a network trained on them knows nothing of tissue.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from membrane.io.labels import INTERIOR
from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write, write_pages

DATA_SET, DATA_SET_SIDE = {"train": 20, "test": 5}, 512  # slices in each part; px
CELL = 52  # px between cell centres, about that of ISBI-2012 at 4 nm
SYNTHETIC_MARKER = "SYNTHETIC.txt"  # in the root of a data set of such slices


def make_slice(height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a slice of any size in px; the same seed and size give the same slice.

    Returns:
        image: uint8 (height, width), membranes dark.
        interior: bool (height, width), the exact label, False = membrane.
    """
    rng = np.random.default_rng([seed, height, width])
    rows, cols = np.mgrid[:height, :width].astype(np.float64)
    warped = np.stack([rows + 8 * _field(rng, rows, 45), cols + 8 * _field(rng, rows, 45)], -1)
    count = int(1.6 * (height / CELL + 2) * (width / CELL + 2))
    seeds = rng.uniform(-CELL, (height + CELL, width + CELL), (count, 2))
    owners = rng.integers(0, max(2, 5 * count // 6), count)  # a cell of several seeds is not convex
    cells = owners[cKDTree(seeds).query(warped)[1]]

    edge = ndimage.maximum_filter(cells, 3) != ndimage.minimum_filter(cells, 3)
    distance = ndimage.distance_transform_edt(~edge) if edge.any() else np.full(cells.shape, 99.0)
    thickness = np.clip(1.5 + 0.6 * _field(rng, rows, 25), 0.6, 3)  # half of the membrane, px
    interior = distance > thickness

    image = 0.66 + 0.05 * _field(rng, rows, 30) + 0.05 * _field(rng, rows, 2)
    for _ in range(height * width // 16000 + 1):
        _draw_mitochondrion(rng, image, distance, rows, cols)
    for _ in range(height * width // 1200):
        _draw_vesicle(rng, image, distance, rows, cols)
    darkness = np.clip(0.42 + 0.09 * _field(rng, rows, 20), 0.16, 0.6)
    image -= darkness / (1 + np.exp((distance - thickness) / 0.6))
    image = ndimage.gaussian_filter(image, rng.uniform(0.6, 1.0))
    image = rng.poisson(np.clip(image, 0.02, 1) * 130) / 130  # photons per pixel at full white
    return to_bytes(np.clip(image, 0, 1)), interior


def write_data_set(folder: Path) -> None:
    """Writes a data set of synthetic slices with labels; the marker comes last."""
    slices = [(part, n) for part, count in DATA_SET.items() for n in range(1, count + 1)]
    for seed, (part, number) in enumerate(slices):
        image, interior = make_slice(DATA_SET_SIDE, DATA_SET_SIDE, seed)
        name = f"synthetic_{number:04d}.png"
        write_pages(folder / part / "imgs" / name, [image])
        write_pages(folder / part / "labels" / name, [interior * np.uint8(INTERIOR)])
    with atomic_write(folder / SYNTHETIC_MARKER) as marker:
        marker.write_text("Drawn by membrane/synthetic.py; no microscope saw these slices.\n")


def _field(rng: np.random.Generator, like: np.ndarray, scale: float) -> np.ndarray:
    """Returns smooth noise of about zero mean and unit deviation, features of `scale` px."""
    small = rng.normal(size=[int(np.ceil(n / scale)) + 4 for n in like.shape])
    grid = np.indices(like.shape) / scale + 1.5
    return 1.5 * ndimage.map_coordinates(small, grid, order=3, mode="reflect")


def _draw_mitochondrion(rng, image, distance, rows, cols) -> None:
    """Darkens an ellipse with a rim and cristae, where it lies inside cells."""
    row, col = rng.uniform((0, 0), image.shape)
    angle, long, short = rng.uniform(0, np.pi), rng.uniform(14, 30), rng.uniform(8, 14)
    along = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
    across = (cols - col) * np.cos(angle) - (rows - row) * np.sin(angle)
    radius = np.hypot(along / long, across / short)
    inside = (radius < 1) & (distance > 5)
    shade = 0.17 + 0.06 * np.sin(along * rng.uniform(0.7, 1.2)) + 0.14 * (radius > 0.88)
    image[inside] -= shade[inside]


def _draw_vesicle(rng, image, distance, rows, cols) -> None:
    """Darkens a small ring, where it lies inside a cell."""
    row, col = rng.integers(0, image.shape)
    radius = rng.uniform(2.0, 4.5)
    if distance[row, col] < radius + 4:
        return
    near = np.s_[max(0, row - 7) : row + 8, max(0, col - 7) : col + 8]
    ring = np.abs(np.hypot(rows[near] - row, cols[near] - col) - radius)
    image[near] -= rng.uniform(0.1, 0.3) * np.exp(-(ring**2))
