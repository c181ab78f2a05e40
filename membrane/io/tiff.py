"""TIFF files: which of their pages are slices, and their pixels with bright = high."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tifffile

from membrane.errors import UnreadableError
from membrane.io.decoding import check_size, without_alpha

PHOTOMETRICS = (0, 1, 2, 3, 6)  # as TIFF has them: white or black is zero, RGB, palette, YCbCr
COLOURS_ALIKE = 0.9  # correlation of the colours of a micrograph; of neighbouring slices it is less
MOST_CHANNELS = 4  # what tifffile calls channels beyond are slices that nobody told it the axes of
NOT_A_SLICE = 1 | 4  # bits of TIFF's NewSubfileType: a smaller copy, a mask


@contextlib.contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Gives an open TIFF; of one that was cut short, tifffile would silently give fewer pages."""
    faults, watch = [], logging.Handler(logging.ERROR)
    watch.emit = lambda record: faults.append(record.getMessage())
    tifffile.logger().addHandler(watch)
    try:
        with contextlib.ExitStack() as files:
            tiff = files.enter_context(tifffile.TiffFile(path))
            pages = [page for series in tiff.series for page in series.pages]  # looks at every page
            if any("invalid page offset" in fault for fault in faults):
                raise UnreadableError(f"{path}: cut short, pages are missing; get the file again")
            if any(series.is_multifile for series in tiff.series) or None in pages:
                # read as OME, each file of a set would have all pages of the set
                tiff = files.enter_context(tifffile.TiffFile(path, is_ome=False))
            yield tiff
    finally:
        tifffile.logger().removeHandler(watch)


def tiff_pages(tiff: tifffile.TiffFile, max_pixels: int, channel: int | None) -> list[tuple]:
    """Returns of each slice of a TIFF what reads it as it is stored, and its tags."""
    path = Path(tiff.filehandle.path)
    found = [one for one in tiff.series if not one.keyframe.subfiletype & NOT_A_SLICE]
    if len({(_plane(series), series.dtype) for series in found}) > 1:
        raise UnreadableError(f"{path}: its pages differ in size or kind; save them separately")
    slices = []
    for series in found:
        tags = series.keyframe
        check_size(path, tags.shape[:2], max_pixels)
        if tags.photometric not in PHOTOMETRICS:
            kind = getattr(tags.photometric, "name", tags.photometric)
            raise UnreadableError(f"{path}: its colours are {kind}; save it as grey or RGB")
        if tags.tags.valueof("Orientation", 1) > 1:
            raise UnreadableError(f"{path}: is marked as turned (Orientation); save it upright")
        inner = len(_plane(series))
        wanted = _choose_channel(path, series.axes[:-inner], series.shape[:-inner], channel)
        if len(series.pages) == series.size // math.prod(_plane(series)):
            pages = [series.pages[number] for number in wanted.tolist()]
            kinds = [getattr(page, "subfiletype", 0) & NOT_A_SLICE for page in pages]
            slices += [(p.asarray, tags) for p, kind in zip(pages, kinds, strict=True) if not kind]
        else:  # ImageJ and others can store many slices under one page
            stack = functools.cache(partial(_read_stack, series))
            slices += [(lambda n=n, stack=stack: stack()[n], tags) for n in wanted.tolist()]
    return slices


def _read_stack(series: tifffile.TiffPageSeries) -> np.ndarray:
    """Returns all slices of a series; mapped from the disk if they are not compressed."""
    mapped = "memmap" if series.dataoffset is not None else None
    return series.asarray(out=mapped).reshape(-1, *_plane(series))


def _choose_channel(path: Path, axes: str, shape: Sequence[int], channel: int | None) -> np.ndarray:
    """Returns the numbers of the slices of a series, in order, that are of one channel and time."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    sides = dict(zip(axes, shape, strict=True))
    if sides.get("T", 1) > 1:
        raise UnreadableError(f"{path}: has the axes {sides}; save one time as a file of its own")
    channels = sides.get("C", 1)
    if channels > 1 and channel != 0 and not (channel is None and channels > MOST_CHANNELS):
        if channel is None:
            raise UnreadableError(
                f"{path}: has the axes {sides}; say which channel is the micrograph: --channel N, "
                "or --channel all where they are slices"
            )
        if channel > channels:
            raise UnreadableError(f"{path}: --channel {channel}: it has {channels} channels")
        numbers = numbers.take(channel - 1, axes.index("C"))
    return numbers.ravel()


def _plane(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    """Returns the shape of one slice of a series."""
    named = zip(series.shape, series.axes, strict=True)
    return tuple(length for length, axis in named if axis in "YXS")


def as_shown(read: Callable[[], np.ndarray], tags: tifffile.TiffPage) -> np.ndarray:
    """Returns (height, width[, 3]), bright = high, of a slice of a TIFF."""
    page = read()
    bits = page.dtype == np.bool_ and tags.parent.is_shaped  # tifffile's: True = 1, not 0
    if tags.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not bits:
        page = ~page if page.dtype.kind in "bui" else page.max() - page
    if tags.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return np.moveaxis(tags.colormap[:, page], 0, -1)
    if page.ndim == 3 and tags.axes.startswith("S"):
        alike = np.nan_to_num(np.corrcoef(page[:3].reshape(len(page[:3]), -1)), nan=1.0)
        if alike.min() < COLOURS_ALIKE:
            raise UnreadableError(
                f"{tags.parent.filehandle.path}: {len(page)} planes, marked as colours, as "
                'tifffile marks 3 or 4 slices; save slices with photometric="minisblack"'
            )
        page = np.moveaxis(page, 0, -1)
    return without_alpha(page)
