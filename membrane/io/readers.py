"""Reads slices and stacks, page by page: PNG, TIFF, JPEG, BMP, MRC, DM3, HDF5 of any bit depth.

All image files are read here, so bright is high also where a TIFF stores white as zero.
"""

import contextlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import ExifTags, Image

from membrane.errors import UnreadableError, UserError
from membrane.io.containers import CONTAINERS, is_container, open_container, split_inner_path
from membrane.io.decoding import check_size, reading, without_alpha
from membrane.io.tiff import as_shown, open_tiff, tiff_pages

TIFF_SUFFIXES = {".tif", ".tiff"}
SUFFIXES = TIFF_SUFFIXES | CONTAINERS | {".png", ".jpg", ".jpeg", ".bmp"}
AS_TIFF = "not read; save its slices as TIFF, in Fiji by File > Save As"
OTHERS = {  # what people have, and what to do with it
    **dict.fromkeys((".czi", ".nd2", ".lif", ".ims", ".am", ".vsi", ".oir", ".gif"), AS_TIFF),
    ".npz": "holds arrays by their names; save the one that is meant as .npy or TIFF",
    ".zip": "an archive; unpack it and name the folder",
    ".keras": "a model, not slices; give it as --model",
}
MAX_PIXELS = 2**30  # of one slice; what claims more is refused before it is decoded


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
        raise UserError(f"{folder}: no image directly in this folder; put slices there ({kinds})")
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
            if page.ndim == 3 and channel:
                if channel > page.shape[2]:
                    raise UnreadableError(f"{path}: --channel {channel}: it has three colours")
                page = page[..., channel - 1]
            yield page


def read_named(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, pixels) of every slice in a folder, stack or single file, in natural order.

    The name is the file's without its suffix; that of a stack's second page ends in [2].

    Raises:
        UserError: there is nothing, two files have one name, or as for `read_pages`.
    """
    if not split_inner_path(path)[0].exists():
        raise UserError(f"{path}: no such file or folder")
    seen = {}
    for file in list_images(path) if path.is_dir() else [path]:
        # a Mac stores accents apart; the masks of a.ome.tif are called a.png
        stem = unicodedata.normalize("NFC", file.stem).removesuffix(".ome")
        if stem in seen:
            raise UserError(f"{seen[stem]} and {file.name} have one name; which one is meant?")
        seen[stem] = file
        alone = count_pages(file) == 1
        for number, page in enumerate(read_pages(file), start=1):
            yield stem if alone else f"{stem}[{number}]", page


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
                check_size(path, stack.shape[1:], max_pixels)
                count, read = len(stack), lambda number: np.asarray(stack[number])
            elif file:
                pages = tiff_pages(file, max_pixels, channel)
                count, read = len(pages), lambda number: as_shown(*pages[number])
            else:
                count, read = 1, lambda number: _read_picture(path, max_pixels)
            if not count:
                raise UnreadableError(f"{path}: holds no slice")
            yield count, read


def _read_picture(path: Path, max_pixels: int) -> np.ndarray:
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is that of photographs
    with Image.open(path) as picture:
        check_size(path, picture.size, max_pixels)
        if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":  # a camera's thumbnail
            raise UnreadableError(f"{path}: has {picture.n_frames} frames; save them as a TIFF")
        if picture.format != "PNG" or "exif" in picture.info:  # else it would be decoded for that
            if picture.getexif().get(ExifTags.Base.Orientation, 1) > 1:
                raise UnreadableError(f"{path}: is marked as turned (EXIF); save it upright")
        interlaced = picture.info.get("interlace")  # which imagecodecs grumbles at
        if picture.format == "PNG" and not interlaced:  # Pillow drops the low bytes of deep colour
            return without_alpha(imagecodecs.png_decode(path.read_bytes()))
        grey = picture.mode in ("1", "L", "I;16", "I", "F")
        return without_alpha(np.asarray(picture if grey else picture.convert("RGB")))
