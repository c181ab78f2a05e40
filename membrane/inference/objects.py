"""The cells of a series as objects: one number through all slices, in labels, pictures, tables."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from membrane.inference.linking import Linker
from membrane.inference.sources import Source
from membrane.io.pixel_size import Size, read_pixel_size
from membrane.io.readers import read_pages
from membrane.io.writers import atomic_write, open_labels, open_table
from membrane.viewer.page import LABELS, draw_labels, picture_path

CELLS, OBJECTS = "cells.csv", "objects.csv"  # beside the labels


def number_objects(
    folder: Path,
    sources: Sequence[Source],
    override: Size | None = None,
    thickness: float | None = None,
) -> np.ndarray:
    """Links the cells of all slices, and writes labels, pictures and tables with their numbers.

    What each slice has numbered by itself is read twice; no more than three slices are held.

    Args:
        folder: of the masks.
        sources: of the slices; those that have no labels there are lost.
        override: the pixel size of all of them, nm of y and x, instead of what the files say.
        thickness: of a slice, nm, for volumes in µm³.

    Returns:
        int64 (objects,), the number of slices that each object lies in.
    """
    linker = Linker()
    for source in sources:
        path = source.output(folder, "labels")
        for page in read_pages(path) if path.exists() else [None] * source.pages:
            linker.add(page)
    numbers = linker.link()
    found = np.concatenate([*(np.unique(own[own > 0]) for own in numbers), []]).astype(int)
    slices, objects = np.bincount(found, minlength=1), {}
    with open_table(folder / "labels" / CELLS) as write:
        for source in sources:
            if source.output(folder, "labels").exists():
                size = override or read_pixel_size(source.file)
                own = numbers[source.first : source.first + source.pages]
                _renumber(folder, source, own, len(slices), size)
                for row in _cells(folder, source, own, slices, size):
                    write({name: np.array([value]) for name, value in row.items()})
                    _count(objects, row, size, thickness)
    with open_table(folder / "labels" / OBJECTS) as write:
        for _, row in sorted(objects.items()):
            write({name: np.array([value]) for name, value in row.items()})
    return slices[1:]


def cells_path(folder: Path, source: Source) -> Path:
    """Returns the table of a source's cells, as each slice has numbered them by itself."""
    return source.output(folder, "labels").with_suffix(".csv")


def _renumber(
    folder: Path, source: Source, numbers: Sequence[np.ndarray], largest: int, size: Size | None
) -> None:
    """Writes a source's labels, and the pictures of them, with the numbers of objects."""
    path = source.output(folder, "labels")
    first = next(read_pages(path))
    with open_labels(
        folder / "labels" / path.name, (source.pages, *first.shape), largest, size
    ) as write:
        for number, (own, page) in enumerate(zip(numbers, read_pages(path), strict=True)):
            labels = own[page]
            write(labels)
            picture = picture_path(folder, source.first + number, LABELS)
            if picture.exists():
                with atomic_write(picture) as part:
                    part.write_bytes(draw_labels(labels))


def _cells(
    folder: Path,
    source: Source,
    numbers: Sequence[np.ndarray],
    slices: np.ndarray,
    size: Size | None,
) -> Iterator[dict]:
    """Yields the rows of a source's cells, with the numbers of objects; µm where they are known."""
    with open(cells_path(folder, source), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            page = int(row.pop("page"))
            label = int(numbers[page - 1][int(row.pop("label"))])
            row = {"slice": source.name(page - 1), "label": label, "slices": slices[label]} | row
            if size:
                row["area_um2"] = round(int(row["area_px"]) * math.prod(size) / 1e6, 6)
                if size[0] == size[1]:
                    row["perimeter_um"] = round(float(row["perimeter_px"]) * size[0] / 1e3, 6)
            yield row


def _count(objects: dict, row: dict, size: Size | None, thickness: float | None) -> None:
    """Adds a row of `_cells` to the row of its object."""
    known = {"label": row["label"], "slices": row["slices"], "first_slice": row["slice"]}
    known = objects.setdefault(row["label"], known)
    known["last_slice"] = row["slice"]
    known["volume_voxels"] = known.get("volume_voxels", 0) + int(row["area_px"])
    if size and thickness:
        volume = known["volume_voxels"] * math.prod(size) * thickness / 1e9
        known["volume_um3"] = round(volume, 6)
