"""Writes files whole or not at all: masks, maps, labels, tables, JSON."""

import contextlib
import csv
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from membrane.errors import UserError
from membrane.io.readers import TIFF_SUFFIXES


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; moves it there when the block succeeds.

    An interruption at any moment leaves the old file, or none, never half of one.
    """
    # savers go by the suffix; a name has 255 bytes at most, a character up to 4
    part = path.with_name(f".part-{os.getpid()}-{path.name[-50:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except BrokenPipeError:  # of the terminal, not of this file
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def open_pages(path: Path, nbytes: int = 0) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that writes uint8 (height, width) arrays, whole file or none.

    Args:
        path: one PNG, or a TIFF that each array becomes a page of.
        nbytes: about how many they will be in all; the form of a huge TIFF is another one.
    """
    with atomic_write(path) as part:
        if path.suffix.lower() in TIFF_SUFFIXES:
            with tifffile.TiffWriter(part, bigtiff=nbytes > 2**31) as tiff:
                kind = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
                yield partial(tiff.write, **kind)
        else:
            # run lengths make a mask's file as small as zlib's default does, in half the time
            yield lambda page: Image.fromarray(page).save(
                part, format="PNG", compress_type=zlib.Z_RLE
            )


@contextlib.contextmanager
def open_labels(
    path: Path, shape: tuple[int, int, int], largest: int, pixel_size: float | None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that writes (height, width) labels into a TIFF, whole file or none.

    Fiji and napari open it with its pixel size: as ImageJ's own kind of 16-bit TIFF, or, where that
    does not hold the numbers, as a plain one of 32 bits.

    Args:
        path: of the TIFF.
        shape: (pages, height, width).
        largest: a label that none exceeds.
        pixel_size: nm, or None.
    """
    imagej = largest < 2**16
    dtype = np.dtype(np.uint16 if imagej else np.uint32)
    known = {"metadata": {"axes": "ZYX" if shape[0] > 1 else "YX"}} if imagej else {}
    if pixel_size and imagej:
        known["metadata"]["unit"] = "nm"
        known |= {"resolution": (1 / pixel_size, 1 / pixel_size)}
    elif pixel_size:
        known |= {
            "resolution": (1e7 / pixel_size, 1e7 / pixel_size),
            "resolutionunit": "CENTIMETER",
        }
    with atomic_write(path) as part:
        shape = shape if shape[0] > 1 else shape[1:]
        options = {"photometric": "minisblack", "imagej": imagej, "byteorder": ">", **known}
        place, _ = tifffile.imwrite(part, shape=shape, dtype=dtype, returnoffset=True, **options)
        with open(part, "r+b") as file:  # no map of it: a full disk would end the program
            file.seek(place)
            yield lambda page: file.write(page.astype(dtype.newbyteorder(">")).tobytes())


@contextlib.contextmanager
def open_maps(path: Path, count: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that appends float32 (height, width) pages to a TIFF, whole file or none.

    Args:
        path: of the TIFF.
        count: how many pages there will be.

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
def open_table(path: Path) -> Iterator[Callable[[dict[str, np.ndarray]], None]]:
    """Gives a function that appends columns of equal length to a CSV, whole file or none."""
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def write(columns: dict[str, np.ndarray]) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

        yield write


def write_pages(path: Path, pages: Sequence[np.ndarray]) -> None:
    """Writes uint8 (height, width) arrays as one PNG or, if `path` is a TIFF, as its pages."""
    with open_pages(path, sum(page.nbytes for page in pages)) as write:
        for page in pages:
            write(page)


def write_json(path: Path, content: dict) -> None:
    """Writes `content` as indented JSON, NaN as null, whole or not at all."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    with atomic_write(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
