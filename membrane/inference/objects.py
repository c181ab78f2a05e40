"""The cells of a series as objects: one number through all slices, in labels, pictures, tables."""

import contextlib
import csv
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from membrane.inference.entries import cut_windows, file_suffix
from membrane.inference.linking import Linker
from membrane.inference.sources import Source
from membrane.inference.tiling import full_region, shape_of
from membrane.io.pixel_size import Size, read_pixel_size
from membrane.io.readers import read_pages
from membrane.io.writers import atomic_write, open_labels, open_table
from membrane.viewer.page import (
    LABELS,
    MASK,
    NUMBERS,
    draw_labels,
    is_editable,
    list_numbers,
    picture_path,
)

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

    def read():
        for source in sources:
            path = source.output(folder, "labels")
            yield from _read(path) if path.exists() else [None] * source.pages

    numbers, slices = link(read())
    with Tables(folder / "labels", slices, thickness) as tables:
        for source in sources:
            if source.output(folder, "labels").exists():
                size = override or read_pixel_size(source.file)
                own = numbers[source.first : source.first + source.pages]
                _renumber(folder, source, own, len(slices), size)
                tables.add(cells_path(folder, source), own, source.name, size)
    return slices[1:]


def link(pages: Iterable[np.ndarray | None]) -> tuple[list[np.ndarray], np.ndarray]:
    """Links the cells of slices in order.

    Returns:
        What `Linker.link` gives; and int64 (objects + 1,), in how many slices each object lies.
    """
    linker = Linker()
    for page in pages:
        linker.add(page)
    numbers = linker.link()
    found = np.concatenate([*(np.unique(own[own > 0]) for own in numbers), []]).astype(int)
    return numbers, np.bincount(found, minlength=1)


def cells_path(folder: Path, source: Source) -> Path:
    """Returns the table of a source's cells, as each slice has numbered them by itself."""
    return source.output(folder, "labels").with_suffix(".csv")


def _renumber(
    folder: Path, source: Source, numbers: Sequence[np.ndarray], largest: int, size: Size | None
) -> None:
    """Writes a source's labels, and the pictures of them, with the numbers of objects."""
    path = source.output(folder, "labels")
    shape = (source.pages, *next(_read(path)).shape)
    with open_labels(folder / "labels" / path.name, shape, largest, size) as write:
        masks = _read(source.output(folder, "mask"))
        for number, (own, page, mask) in enumerate(zip(numbers, _read(path), masks, strict=True)):
            labels = own[page]
            write(labels)
            file = source.picture_name(number)
            if picture_path(folder, file, MASK).exists():  # it is shown on the page
                show_numbers(folder, file, labels, mask)


def show_numbers(folder: Path, file: str, labels: np.ndarray, mask: np.ndarray) -> None:
    """Writes what the page shows of the numbers of a slice's cells, and in its windows.

    Args:
        folder: of the masks.
        file: the start of the slice's pictures' names.
        labels: integers (height, width), 0 = on no cell.
        mask: uint8 likewise, 255 = interior.
    """
    whole = full_region(labels.shape)
    for place, window in ({"": whole} | cut_windows(whole, labels.shape)).items():
        name = file + file_suffix(place)
        shown = {LABELS: draw_labels(labels[window])}
        if is_editable(shape_of(window)):  # else no cell is clicked
            shown[NUMBERS] = list_numbers(name, labels[window], mask[window])
        for end, content in shown.items():
            with atomic_write(picture_path(folder, name, end)) as part:
                part.write_bytes(content)


def _read(path: Path) -> Iterator[np.ndarray]:
    """Yields the labels of a file that was written here, so of any size."""
    return read_pages(path, sys.maxsize)


class Tables:
    """The tables of cells and of objects, whole files or none, beside the labels in `folder`.

    `slices` is what `link` returns, `thickness` that of a slice in nm, None where not known.
    """

    def __init__(self, folder: Path, slices: np.ndarray, thickness: float | None):
        self.folder, self.slices, self.thickness = folder, slices, thickness
        self.objects = {}
        self.opened = contextlib.ExitStack()

    def __enter__(self):
        self.write = self.opened.enter_context(open_table(self.folder / CELLS))
        return self

    def __exit__(self, *error):
        if error == (None, None, None):
            with open_table(self.folder / OBJECTS) as write:
                for _, row in sorted(self.objects.items()):
                    write({name: [value] for name, value in row.items()})
        return self.opened.__exit__(*error)

    def add(
        self,
        path: Path,
        numbers: Sequence[np.ndarray],
        name: Callable[[int], str],
        size: Size | None,
    ) -> None:
        """Adds a table of cells, as each slice has numbered them by itself.

        Args:
            path: of the table, with a column `page` that counts from 1.
            numbers: of the objects, of each page.
            name: what to call a page, by its number from 0.
            size: of its pixels, nm, for columns in µm.
        """
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                page = int(row.pop("page")) - 1
                label = int(numbers[page][int(row.pop("label"))])
                row = {"slice": name(page), "label": label, "slices": self.slices[label]} | row
                if size:
                    row["area_um2"] = round(int(row["area_px"]) * math.prod(size) / 1e6, 6)
                    if size[0] == size[1]:
                        row["perimeter_um"] = round(float(row["perimeter_px"]) * size[0] / 1e3, 6)
                self.write({name: [value] for name, value in row.items()})
                self._count(row, size)

    def _count(self, row: dict, size: Size | None) -> None:
        """Adds a cell to the row of its object."""
        known = {"label": row["label"], "slices": row["slices"], "first_slice": row["slice"]}
        known = self.objects.setdefault(row["label"], known)
        known["last_slice"] = row["slice"]
        known["volume_voxels"] = known.get("volume_voxels", 0) + int(row["area_px"])
        if size and self.thickness:
            volume = known["volume_voxels"] * math.prod(size) * self.thickness / 1e9
            known["volume_um3"] = round(volume, 6)
