"""Reads slices and stacks, page by page: PNG, TIFF, JPEG, BMP, MRC, DM3, HDF5 of any bit depth.

All image files are read here, so bright is high also where a TIFF stores white as zero.
"""

import contextlib
import functools
import logging
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image

from membrane.errors import UnreadableError, UserError, first_line
from membrane.io.containers import CONTAINERS, is_container, open_container

TIFF_SUFFIXES = {".tif", ".tiff"}
SUFFIXES = TIFF_SUFFIXES | CONTAINERS | {".png", ".jpg", ".jpeg", ".bmp"}
AS_TIFF = "not read; save its slices as TIFF, in Fiji by File > Save As"
OTHERS = {  # what people have, and what to do with it
    **dict.fromkeys((".czi", ".nd2", ".lif", ".ims", ".am", ".vsi", ".oir", ".gif"), AS_TIFF),
    ".npz": "holds several arrays; save the one that is meant as .npy or TIFF",
    ".zip": "an archive; unpack it and name the folder",
    ".keras": "a model, not slices; give it as --model",
}
MAX_PIXELS = 2**30  # of one slice; what claims more is refused before it is decoded
PHOTOMETRICS = (0, 1, 2, 3, 6)  # as TIFF has them: white or black is zero, RGB, palette, YCbCr
COLOURS_ALIKE = 0.9  # correlation of the colours of a micrograph; of neighbouring slices it is less
MOST_CHANNELS = 4  # what tifffile calls channels beyond are slices that nobody told it the axes of
NOT_A_SLICE = 1 | 4  # bits of TIFF's NewSubfileType: a smaller copy, a mask


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


def count_pages(path: Path, max_pixels: int = MAX_PIXELS, channel: int | None = None) -> int:
    """Returns how many slices `path` holds: the pages of a stack, otherwise 1."""
    with _open_slices(path, max_pixels, channel) as (count, _):
        return count


def read_pages(
    path: Path,
    max_pixels: int = MAX_PIXELS,
    start: int = 0,
    stop: int | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields the slices of an image file one at a time: those that [start:stop] takes of them.

    Args:
        path: of the file; of an array in an HDF5 file, `FILE.h5:/path/in/it`.
        max_pixels: in a slice.
        start: number of the first slice, from 0.
        stop: number after the last one.
        channel: which one, from 1, where a file has several; 0 takes them for slices.

    Yields:
        Arrays (height, width), or (height, width, 3) for colour, in the file's own dtype (1-bit
        files as bool or 0 and 255); bright is high even where a TIFF stores white as zero.

    Raises:
        UnreadableError: the file is no image, is damaged, has several channels or times, or claims
            to have more than `max_pixels` in a slice.
    """
    with _open_slices(path, max_pixels, channel) as (count, read):
        for number in range(count)[start:stop]:
            page = read(number)
            if page.ndim not in (2, 3) or not page.size:
                shape = f"has the shape {page.shape}; expected (height, width)"
                raise UnreadableError(f"{path}: {shape}")
            if page.dtype.kind == "c":
                raise UnreadableError(f"{path}: complex numbers; save its grey values instead")
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
        stem = unicodedata.normalize("NFC", file.stem)  # a Mac stores accents apart
        if stem in seen:
            raise UserError(f"{seen[stem]} and {file.name} have one name; which one is meant?")
        seen[stem] = file
        alone = count_pages(file) == 1
        for number, page in enumerate(read_pages(file), start=1):
            yield stem if alone else f"{stem}[{number}]", page


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one line about `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error
        raise UnreadableError(f"{path}: cannot be read as an image ({first_line(error)})") from None


@contextlib.contextmanager
def _open_slices(path: Path, max_pixels: int, channel: int | None) -> Iterator[tuple]:
    """Gives how many slices a file has, and a function from their number to their pixels."""
    with reading(path):
        if is_container(path):
            opened = open_container(path)
        else:
            path.stat()  # a link may lead nowhere
            if path.suffix.lower() in OTHERS:
                raise UnreadableError(f"{path}: {OTHERS[path.suffix.lower()]}")
            is_tiff = path.suffix.lower() in TIFF_SUFFIXES
            opened = open_tiff(path) if is_tiff else contextlib.nullcontext()
        with opened as file:
            if is_container(path):
                stack = file[0]
                _check_size(path, stack.shape[1:], max_pixels)
                count, read = len(stack), lambda number: np.asarray(stack[number])
            elif file:
                pages = _tiff_pages(file, max_pixels, channel)
                count, read = len(pages), lambda number: _as_shown(*pages[number])
            else:
                count, read = 1, lambda number: _read_picture(path, max_pixels)
            if not count:
                raise UnreadableError(f"{path}: holds no slice")
            yield count, read


def _read_picture(path: Path, max_pixels: int) -> np.ndarray:
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is that of photographs
    with Image.open(path) as picture:
        _check_size(path, picture.size, max_pixels)
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a camera's thumbnail
            raise UnreadableError(f"{path}: has {picture.n_frames} frames; save them as a TIFF")
        if picture.format != "PNG" or "exif" in picture.info:  # else it would be decoded for that
            if picture.getexif().get(ExifTags.Base.Orientation, 1) > 1:
                raise UnreadableError(f"{path}: is marked as turned (EXIF); save it upright")
        interlaced = picture.info.get("interlace")  # which imagecodecs grumbles at
        if picture.format == "PNG" and not interlaced:  # Pillow drops the low bytes of deep colour
            return _without_alpha(imagecodecs.png_decode(path.read_bytes()))
        grey = picture.mode in ("1", "L", "I;16", "I", "F")
        return _without_alpha(np.asarray(picture if grey else picture.convert("RGB")))


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


def _tiff_pages(tiff: tifffile.TiffFile, max_pixels: int, channel: int | None) -> list[tuple]:
    """Returns of each slice of a TIFF what reads it as it is stored, and its tags."""
    path = Path(tiff.filehandle.path)
    found = [one for one in tiff.series if not one.keyframe.subfiletype & NOT_A_SLICE]
    if len({(_plane(series), series.dtype) for series in found}) > 1:
        raise UnreadableError(f"{path}: its pages differ in size or kind; save them separately")
    slices = []
    for series in found:
        tags = series.keyframe
        _check_size(path, tags.shape[:2], max_pixels)
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


def _as_shown(read: Callable[[], np.ndarray], tags: tifffile.TiffPage) -> np.ndarray:
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
    return _without_alpha(page)
