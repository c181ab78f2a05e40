"""Writes files whole or not at all: masks, maps, labels, tables, JSON."""

import contextlib
import csv
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from membrane.errors import UserError
from membrane.io.readers import TIFF_SUFFIXES

HELD_SECONDS = (0.1, 0.4, 1.5)  # between tries to replace a file that another program has open


class HeldError(UserError):
    """A file cannot be replaced while another program has it open, as on Windows."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; moves it there when the block succeeds.

    An interruption at any moment leaves the old file, or none, never half of one. A power cut can
    leave an empty one: nothing waits for the disk.

    Raises:
        UserError: it cannot be written; a `HeldError` if another program has it open.
    """
    # the suffix tells savers the format; a name has 255 bytes at most, a character up to 4
    part = path.with_name(f".part-{os.getpid()}-{path.name[-50:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _replace(part, path)
    except BrokenPipeError:  # of the terminal, not of this file
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _replace(part: Path, path: Path) -> None:
    """Moves a file; tries again for a while if another program has the old one open."""
    for delay in (*HELD_SECONDS, None):
        try:
            os.replace(part, path)
            return
        except PermissionError:
            if not (path.is_file() and os.access(path.parent, os.W_OK)):
                raise
            if delay is None:
                raise HeldError(f"{path}: another program has it open") from None
            time.sleep(delay)


@contextlib.contextmanager
def open_pages(
    path: Path, nbytes: int = 0, pixel_size: tuple[float, float] | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that writes uint8 (height, width) arrays, whole file or none.

    A PNG takes one array, a TIFF one per page, with the pixel size, nm of y and x, in its plain
    tags; with more than 2 GiB in all it is a BigTIFF.
    """
    with atomic_write(path) as part:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffWriter(part, bigtiff=nbytes > 2**31) as tiff:
                kind = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
                if pixel_size:
                    kind |= {"resolution": _per_cm(pixel_size), "resolutionunit": "CENTIMETER"}
                yield partial(tiff.write, **kind)
        else:  # run lengths make a mask's file as small as zlib's default does, in half the time
            kind = {"format": "PNG", "compress_type": zlib.Z_RLE}
            yield lambda page: Image.fromarray(page).save(part, **kind)


@contextlib.contextmanager
def open_labels(
    path: Path, shape: tuple[int, int, int], largest: int, pixel_size: tuple[float, float] | None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that writes (height, width) labels into a TIFF, whole file or none.

    Fiji and napari open it with its pixel size, nm of y and x: as ImageJ's own kind of 16-bit TIFF,
    or, where that does not hold the `largest` label, as a plain one of 32 bits. The shape is
    (pages, height, width).
    """
    imagej = largest < 2**16
    dtype = np.dtype(">u2" if imagej else ">u4")
    shape = shape if shape[0] > 1 else shape[1:]
    options = {"photometric": "minisblack", "imagej": imagej, "byteorder": ">"}
    if imagej:
        unit = {"unit": "nm"} if pixel_size else {}
        options["metadata"] = {"axes": "ZYX"[-len(shape) :], **unit}
    if pixel_size:
        nanometres = [1 / side for side in reversed(pixel_size)]
        options["resolution"] = nanometres if imagej else _per_cm(pixel_size)
        options["resolutionunit"] = None if imagej else "CENTIMETER"
    with atomic_write(path) as part:
        place, _ = tifffile.imwrite(part, shape=shape, dtype=dtype, returnoffset=True, **options)
        with open(part, "r+b") as file:  # no map of it: a full disk would end the program
            file.seek(place)
            yield lambda page: file.write(page.astype(dtype).tobytes())


@contextlib.contextmanager
def open_maps(path: Path, count: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends float32 (height, width) pages to a TIFF, whole file or none.

    Raises:
        UserError: the pages differ in size.
    """
    shapes, writers = set(), []
    with contextlib.ExitStack() as files:

        def write(page: np.ndarray) -> None:
            shapes.add(page.shape)
            if len(shapes) > 1:
                raise UserError(f"{path}: the slices differ in size, so they are no stack")
            if not writers:
                part = files.enter_context(atomic_write(path))
                tiff = tifffile.TiffWriter(part, bigtiff=count * page.nbytes > 2**31)
                writers.append(files.enter_context(tiff))
            writers[0].write(page, photometric="minisblack", metadata=None)

        yield write


@contextlib.contextmanager
def open_table(path: Path) -> Iterator[Callable[[dict[str, Sequence]], None]]:
    """Gives a function that appends columns of equal length to a CSV, whole file or none.

    What no text can hold, such as a file's name of odd bytes, is written by its code.
    """
    text = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic_write(path) as part, open(part, "w", **text) as file:
        writer = csv.writer(file)

        def write(columns: dict[str, np.ndarray]) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            values = (np.asarray(column).tolist() for column in columns.values())
            writer.writerows(zip(*values, strict=True))

        yield write


def _per_cm(pixel_size: tuple[float, float]) -> tuple[float, float]:
    """Returns how many pixels a cm has, across and down, as TIFF has it."""
    return 1e7 / pixel_size[1], 1e7 / pixel_size[0]


def write_pages(path: Path, pages: Sequence[np.ndarray]) -> None:
    """Writes uint8 (height, width) arrays as one PNG or, if `path` is a TIFF, as its pages."""
    with open_pages(path, sum(page.nbytes for page in pages)) as write:
        for page in pages:
            write(page)


def write_json(path: Path, content: dict) -> None:
    """Writes `content` as indented JSON, NaN as null, whole or not at all."""
    content = json.loads(json.dumps(content), parse_constant={"NaN": None}.__getitem__)
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
