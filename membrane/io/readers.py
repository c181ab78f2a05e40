"""Reads slices and stacks, page by page: PNG, TIFF, JPEG, BMP of any bit depth.

All image files are read here, so bright is high also where a TIFF stores white as zero.
"""

import contextlib
import logging
import math
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image

from membrane.errors import UnreadableError, UserError, first_line

TIFF_SUFFIXES = {".tif", ".tiff"}
SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp"}
MAX_PIXELS = 2**30  # of one slice; what claims more is refused before it is decoded
PHOTOMETRICS = range(4)  # as TIFF numbers them: white is zero, black is zero, RGB, palette


def natural_key(name: str) -> list:
    """Returns a sort key that puts "2" before "10"."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]


def is_zarr(path: Path) -> bool:
    """Tells whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def is_image(name: str) -> bool:
    """Tells by its name whether a file is taken for slices."""
    return Path(name).suffix.lower() in SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder`, in natural order, hidden ones left out.

    Raises:
        UserError: there is no such folder, or it holds no image.
    """
    try:
        files = [path for path in folder.iterdir() if is_image(path.name) and path.name[0] != "."]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); name a folder") from None
    files = [path for path in files if path.is_file() or not path.exists()]  # or a link to nothing
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UserError(f"{folder}: no image in this folder; put slices there ({kinds})")
    return sorted(files, key=lambda path: (natural_key(path.name), path.name))


def count_pages(path: Path, max_pixels: int = MAX_PIXELS) -> int:
    """Returns how many slices `path` holds: the pages of a TIFF, otherwise 1."""
    with reading(path):
        path.stat()  # a link may lead nowhere
        if path.suffix.lower() not in TIFF_SUFFIXES:
            return 1
        with open_tiff(path) as tiff:
            return sum(count for _, count in _tiff_series(tiff, max_pixels))


def read_pages(
    path: Path, max_pixels: int = MAX_PIXELS, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the slices of an image file one at a time: those that [start:stop] takes of them.

    Yields:
        Arrays (height, width), or (height, width, 3) for colour, in the file's own dtype (1-bit
        files as bool or 0 and 255); bright is high even where a TIFF stores white as zero.

    Raises:
        UnreadableError: the file is no image, is damaged, holds NaN or infinity, or claims to have
            more than `max_pixels` in a slice.
    """
    read = _read_tiff if path.suffix.lower() in TIFF_SUFFIXES else _read_picture
    for page in read(path, max_pixels, slice(start, stop)):
        if page.ndim not in (2, 3) or not page.size:
            raise UnreadableError(f"{path}: has the shape {page.shape}; expected (height, width)")
        if page.dtype.kind == "c":
            raise UnreadableError(f"{path}: complex numbers; save its grey values instead")
        if page.dtype.kind == "f" and not np.isfinite(page).all():
            raise UnreadableError(f"{path}: holds NaN or infinity; replace those pixels first")
        yield page


def read_named(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, pixels) of every slice in a folder, stack or single file, in natural order.

    The name is the file's without its suffix; that of a stack's second page ends in [2].

    Raises:
        UserError: there is nothing, two files have one name, or as for `read_pages`.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    seen = {}
    for file in list_images(path) if path.is_dir() else [path]:
        if file.stem in seen:
            raise UserError(f"{seen[file.stem]} and {file.name} have one name; which one is meant?")
        seen[file.stem] = file
        alone = count_pages(file) == 1
        for number, page in enumerate(read_pages(file), start=1):
            yield file.stem if alone else f"{file.stem}[{number}]", page


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        raise UnreadableError(f"{path}: cannot be read as an image ({first_line(error)})") from None


def _read_picture(path: Path, max_pixels: int, wanted: slice) -> Iterator[np.ndarray]:
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is that of photographs
    with reading(path), Image.open(path) as picture:
        _check_size(path, picture.size, max_pixels)
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a camera's thumbnail
            raise UnreadableError(f"{path}: has {picture.n_frames} frames; save them as a TIFF")
        if picture.format != "PNG" or "exif" in picture.info:  # else it would be decoded for that
            if picture.getexif().get(ExifTags.Base.Orientation, 1) > 1:
                raise UnreadableError(f"{path}: is marked as turned (EXIF); save it upright")
        interlaced = picture.info.get("interlace")  # which imagecodecs grumbles at
        if picture.format == "PNG" and not interlaced:  # Pillow drops the low bytes of deep colour
            image = imagecodecs.png_decode(path.read_bytes())
        else:
            grey = picture.mode in ("1", "L", "I;16", "I", "F")
            image = np.asarray(picture if grey else picture.convert("RGB"))
    yield from [_without_alpha(image)][wanted]


def _check_size(path: Path, size: Sequence[int], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        raise UnreadableError(
            f"{path}: {'x'.join(map(str, size))} px, over {max_pixels:,}; cut it into smaller "
            "ones, or raise predict.py's --max-pixels"
        )


def _without_alpha(image: np.ndarray) -> np.ndarray:
    """Returns (height, width) or (height, width, 3)."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] > 2 else image[..., 0]


@contextlib.contextmanager
def open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Gives an open TIFF; of one that was cut short, tifffile would silently give fewer pages."""
    faults, watch = [], logging.Handler(logging.ERROR)
    watch.emit = lambda record: faults.append(record.getMessage())
    tifffile.logger().addHandler(watch)
    try:  # read as OME, each file of a set would have all pages of the set
        with tifffile.TiffFile(path, is_ome=False) as tiff:
            len(tiff.series)  # looks at every page
            if any("invalid page offset" in fault for fault in faults):
                raise UnreadableError(f"{path}: cut short, pages are missing; get the file again")
            yield tiff
    finally:
        tifffile.logger().removeHandler(watch)


def _tiff_series(tiff: tifffile.TiffFile, max_pixels: int) -> list[tuple]:
    """Returns each series of slices in an open TIFF with its number of slices."""
    path = Path(tiff.filehandle.path)
    if len({(_plane(series), series.dtype) for series in tiff.series}) != 1:
        raise UnreadableError(f"{path}: its pages differ in size or kind; save them separately")
    for series in tiff.series:
        _check_size(path, series.keyframe.shape[:2], max_pixels)
        colours = series.keyframe.photometric
        if colours not in PHOTOMETRICS:
            kind = getattr(colours, "name", colours)
            raise UnreadableError(f"{path}: its colours are {kind}; save it as grey or RGB")
    return [(series, series.size // math.prod(_plane(series))) for series in tiff.series]


def _plane(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    """Returns the shape of one slice of a series."""
    named = zip(series.shape, series.axes, strict=True)
    return tuple(length for length, axis in named if axis in "YXS")


def _read_tiff(path: Path, max_pixels: int, wanted: slice) -> Iterator[np.ndarray]:
    with reading(path), open_tiff(path) as tiff:
        pages = []
        for series, count in _tiff_series(tiff, max_pixels):
            if len(series.pages) == count:
                pages += [(series, page.asarray) for page in series.pages]
            else:  # ImageJ and others can store many slices under one page
                mapped = "memmap" if series.dataoffset is not None else None
                stack = series.asarray(out=mapped).reshape(count, *_plane(series))
                pages += [(series, partial(stack.__getitem__, number)) for number in range(count)]
        for series, read in pages[wanted]:
            yield _as_shown(read(), series.keyframe)


def _as_shown(page: np.ndarray, tags: tifffile.TiffPage) -> np.ndarray:
    """Returns (height, width[, 3]), bright = high, of a TIFF page as it is stored."""
    if tags.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        page = ~page if page.dtype.kind in "bui" else page.max() - page
    if tags.photometric == tifffile.PHOTOMETRIC.PALETTE:
        return np.moveaxis(tags.colormap[:, page], 0, -1)
    if page.ndim == 3 and tags.axes.startswith("S"):
        page = np.moveaxis(page, 0, -1)
    return _without_alpha(page)
