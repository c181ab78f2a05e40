"""Slices and stacks on disk: formats, polarity, grey values, whole-or-nothing files.

Everything that touches an image file goes through here, so that polarity (0 = membrane,
255 = cell interior, also when a TIFF stores it inverted) and scaling are decided once.
"""

import contextlib
import csv
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

INTERIOR = 255
TIFF_SUFFIXES = {".tif", ".tiff"}
SUFFIXES = TIFF_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp"}
MAX_PIXELS = 2**30  # of one slice; what claims more is refused before it is decoded
PHOTOMETRICS = {
    tifffile.PHOTOMETRIC[name] for name in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE")
}
NANOMETRES = {  # per unit of length, as ImageJ, OME, OME-Zarr and TIFF's tags name it
    **{"å": 0.1, "angstrom": 0.1, "mm": 1e6, "millimeter": 1e6, "cm": 1e7, "inch": 2.54e7},
    **dict.fromkeys(("nm", "nanometer"), 1.0),
    **dict.fromkeys(("µm", "μm", "um", "\\u00b5m", "micron", "microns", "micrometer"), 1e3),
}
UNITS = {2: "inch", 3: "cm"}  # by the number in TIFF's tag ResolutionUnit
PIXEL_SIZES = (0.2, 200)  # nm; what a file says beyond is a scanner's or screen's dots per inch


class UserError(Exception):
    """A fault that the user can mend; its message says what, where and what to do."""


class UnreadableError(UserError):
    """One file is no usable image; others may be."""


def natural_key(name: str) -> list:
    """Returns a sort key that puts "2" before "10"."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)]


def is_zarr(path: Path) -> bool:
    """Tells whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def list_images(folder: Path) -> list[Path]:
    """Returns the image files directly in `folder`, in natural order, hidden ones left out.

    Raises:
        UserError: there is no such folder, or it holds no image.
    """
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); name a folder") from None
    files = [path for path in files if not path.name.startswith(".") and path.is_file()]
    if not files:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise UserError(f"{folder}: no image in this folder; put slices there ({kinds})")
    return sorted(files, key=lambda path: (natural_key(path.name), path.name))


def count_pages(path: Path, max_pixels: int = MAX_PIXELS) -> int:
    """Returns how many slices `path` holds: the pages of a TIFF, otherwise 1."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return 1
    with _reading(path), _open_tiff(path) as tiff:
        return sum(count for _, count in _tiff_series(tiff, max_pixels))


def read_pixel_size(path: Path) -> float | None:
    """Returns the side of a pixel in nm as a TIFF states it (ImageJ, OME or the plain tags).

    None where it says nothing, or what no electron micrograph has (such as 72 dots per inch).
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return None
    with _reading(path), _open_tiff(path) as tiff:
        page = tiff.pages.first
        try:
            if page.is_ome:
                pixels = ElementTree.fromstring(page.description).find(".//{*}Pixels")
                unit, size = pixels.get("PhysicalSizeXUnit", "µm"), pixels.get("PhysicalSizeX", 0)
            else:
                unit = (tiff.imagej_metadata or {}).get("unit")
                unit = unit or UNITS.get(page.resolutionunit, "")
                size = 1 / page.resolution[0] if page.resolution[0] else 0
            size = float(size) * NANOMETRES.get(unit.lower(), 0)
        except (AttributeError, TypeError, ValueError, ElementTree.ParseError):
            return None  # metadata that make no sense cost no slice
    return size if PIXEL_SIZES[0] <= size <= PIXEL_SIZES[1] else None


def read_pages(
    path: Path, max_pixels: int = MAX_PIXELS, start: int = 0, stop: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the slices of an image file, one at a time.

    Args:
        path: PNG, TIFF (also multi-page), JPEG or BMP.
        max_pixels: of one slice; what claims more is refused before it is decoded.
        start: the number of the first slice that is wanted, from 0.
        stop: that of the first one that is not; None for all.

    Yields:
        Arrays (height, width), or (height, width, 3) for colour, in the file's own dtype (1-bit
        files as bool or 0 and 255); bright is high even where a TIFF stores white as zero.

    Raises:
        UnreadableError: the file is no image, is damaged, or holds NaN or infinity.
    """
    read = _read_tiff if path.suffix.lower() in TIFF_SUFFIXES else _read_picture
    for page in read(path, max_pixels, slice(start, stop)):
        if page.ndim not in (2, 3) or not page.size:
            raise UnreadableError(
                f"{path}: an image of shape {page.shape}; expected (height, width)"
            )
        if page.dtype.kind == "c":
            raise UnreadableError(f"{path}: complex numbers; save its grey values instead")
        if page.dtype.kind == "f" and not np.isfinite(page).all():
            raise UnreadableError(f"{path}: holds NaN or infinity; replace those pixels first")
        yield page


def read_named(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, pixels) of every slice in a folder, stack or single file, in natural order.

    The name is the file's without suffix, with [2] appended for the second page of a stack.

    Raises:
        UserError: there is nothing, two files have one name, or as `read_pages`.
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
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; moves it there when the block succeeds.

    An interruption at any moment leaves the old file, or none, never half of one.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")  # savers go by the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, nbytes: int = 0) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that writes uint8 (height, width) arrays, whole file or none.

    Args:
        path: one PNG, or a TIFF that each array becomes a page of.
        nbytes: about how many they will be in all; the form of a huge TIFF is another one.
    """
    with whole_file(path) as part:
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
def writing_labels(
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
    dtype = np.uint16 if imagej else np.uint32
    known = {"metadata": {"axes": "ZYX" if shape[0] > 1 else "YX"}} if imagej else {}
    if pixel_size and imagej:
        known["metadata"]["unit"] = "nm"
        known |= {"resolution": (1 / pixel_size, 1 / pixel_size)}
    elif pixel_size:
        known |= {
            "resolution": (1e7 / pixel_size, 1e7 / pixel_size),
            "resolutionunit": "CENTIMETER",
        }
    with whole_file(path) as part:
        shape = shape if shape[0] > 1 else shape[1:]
        pages = tifffile.memmap(part, shape=shape, dtype=dtype, imagej=imagej, **known)
        places = iter(pages if len(shape) == 3 else [pages])

        def write(page: np.ndarray) -> None:
            next(places)[:] = page

        yield write
        pages.flush()


@contextlib.contextmanager
def writing_maps(path: Path, count: int) -> Iterator[Callable[[np.ndarray], None]]:
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
                part = files.enter_context(whole_file(path))
                tiff = tifffile.TiffWriter(part, bigtiff=count * page.nbytes > 2**31)
                writers.append(files.enter_context(tiff))
            writers[0].write(page, photometric="minisblack", metadata=None)

        yield write


@contextlib.contextmanager
def writing_table(path: Path) -> Iterator[Callable[[dict[str, np.ndarray]], None]]:
    """Gives a function that appends columns of equal length to a CSV, whole file or none."""
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)

        def write(columns: dict[str, np.ndarray]) -> None:
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))

        yield write


def write_pages(path: Path, pages: Sequence[np.ndarray]) -> None:
    """Writes uint8 (height, width) arrays as one PNG or, if `path` is a TIFF, as its pages."""
    with writing(path, sum(page.nbytes for page in pages)) as write:
        for page in pages:
            write(page)


def write_json(path: Path, content: dict) -> None:
    """Writes `content` as indented JSON, NaN as null, whole or not at all."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    with whole_file(path) as part:
        part.write_text(text + "\n", encoding="utf-8")


def first_line(error: Exception) -> str:
    """Returns what an exception says, short enough for one line."""
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return reason.splitlines()[0][:150]


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        raise UnreadableError(f"{path}: cannot be read as an image ({first_line(error)})") from None


def _read_picture(path: Path, max_pixels: int, wanted: slice) -> Iterator[np.ndarray]:
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is that of photographs
    with _reading(path), Image.open(path) as picture:
        _check_size(path, picture.size, max_pixels)
        if picture.format == "PNG":  # of which Pillow drops the low bytes of 16-bit colour
            image = imagecodecs.png_decode(path.read_bytes())
        else:
            grey = picture.mode in ("1", "L", "I;16", "I", "F")
            image = np.asarray(picture if grey else picture.convert("RGB"))
    yield from [_without_alpha(image)][wanted]


def _check_size(path: Path, size: Sequence[int], max_pixels: int) -> None:
    if math.prod(size) > max_pixels:
        claim = "x".join(map(str, size))
        raise UnreadableError(
            f"{path}: {claim} px, over {max_pixels:,}; cut it into smaller ones, or raise "
            "predict.py's --max-pixels"
        )


def _without_alpha(image: np.ndarray) -> np.ndarray:
    """Returns (height, width) or (height, width, 3)."""
    if image.ndim == 2:
        return image
    return image[..., :3] if image.shape[-1] > 2 else image[..., 0]


@contextlib.contextmanager
def _open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    """Gives an open TIFF; of one that was cut short, tifffile would silently give fewer pages."""
    faults, watch = [], logging.Handler(logging.ERROR)
    watch.emit = lambda record: faults.append(record.getMessage())
    tifffile.logger().addHandler(watch)
    try:  # as OME, each file of a set would have all pages of the set
        tiff = tifffile.TiffFile(path, is_ome=False)
        with contextlib.closing(tiff):
            len(tiff.series)  # looks at every page
            if any("invalid page offset" in fault for fault in faults):
                raise UnreadableError(f"{path}: cut short, pages are missing; get the file again")
            yield tiff
    finally:
        tifffile.logger().removeHandler(watch)


def _tiff_series(
    tiff: tifffile.TiffFile, max_pixels: int
) -> list[tuple[tifffile.TiffPageSeries, int]]:
    """Returns each series of slices in an open TIFF with its number of slices."""
    path = Path(tiff.filehandle.path)
    if len({(_plane(series), series.dtype) for series in tiff.series}) != 1:
        raise UnreadableError(f"{path}: its pages differ in size or kind; save them separately")
    for series in tiff.series:
        _check_size(path, series.keyframe.shape[:2], max_pixels)
        if series.keyframe.photometric not in PHOTOMETRICS:
            kind = getattr(series.keyframe.photometric, "name", series.keyframe.photometric)
            raise UnreadableError(f"{path}: its colours are {kind}; save it as grey or RGB")
    return [(series, series.size // math.prod(_plane(series))) for series in tiff.series]


def _plane(series: tifffile.TiffPageSeries) -> tuple[int, ...]:
    """Returns the shape of one slice of a series."""
    named = zip(series.shape, series.axes, strict=True)
    return tuple(length for length, axis in named if axis in "YXS")


def _read_tiff(path: Path, max_pixels: int, wanted: slice) -> Iterator[np.ndarray]:
    with _reading(path), _open_tiff(path) as tiff:
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
