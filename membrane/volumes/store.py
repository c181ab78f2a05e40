"""Volumes (z, y, x) on disk: Zarr, stacks and folders, read part by part.

Needs requirements/cluster.txt. Nothing here holds more than the part that is asked for.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path

import numpy as np
import zarr
from ome_zarr.writer import get_metadata

from membrane.errors import UnreadableError, UserError, first_line
from membrane.inference.tiling import Region
from membrane.io.normalization import to_grey
from membrane.io.pixel_size import Size, plausible, read_pixel_size
from membrane.io.readers import count_pages, is_zarr, list_images, natural_key, read_pages
from membrane.io.units import to_nanometres

AXES = ("z", "y", "x")
NAMED = 8  # series, at most, in a message
warnings.filterwarnings("ignore", "Object at .* is not recognized")  # OME, of bioformats2raw
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class Volume:
    """A volume that can be read part by part."""

    shape: tuple[int, int, int]  # (z, y, x)
    voxel: tuple[float | None, ...]  # its sides in nm, in this order; None where not known
    itemsize: int  # bytes per voxel
    whole: bool  # whether a part of a slice takes as long to read as all of it
    files: tuple[Path, ...]  # that change when the volume is another one
    read: Callable[[slice, Region], np.ndarray]  # a range of z and a region to (z, y, x)
    notes: tuple[str, ...] = ()  # what a user should know of it

    @property
    def pixel_size(self) -> Size | None:
        """The sides of a pixel in nm, y and x; None where not known, or no micrograph's."""
        return plausible(self.voxel[1:] if all(self.voxel[1:]) else None)


def open_volume(path: Path, max_pixels: int, channel: int | None = None) -> Volume:
    """Opens a Zarr, a stack, or a folder whose slices are of one size.

    Args:
        path: of a Zarr array or an OME-Zarr image (format 2 or 3, also as bioformats2raw lays it
            out), a stack, or a folder of images.
        max_pixels: of one slice; what claims more is refused.
        channel: which one, from 1, where there are several.

    Raises:
        UserError: there is no volume, or one of another kind.
    """
    if is_zarr(path):
        volume = _open_zarr(path, channel)
    else:
        volume = _open_slices(path, max_pixels, channel)
    if math.prod(volume.shape[1:]) > max_pixels:
        claim = "x".join(map(str, volume.shape[1:]))
        raise UserError(f"{path}: slices of {claim} px, over {max_pixels:,}; raise --max-pixels")
    if not math.prod(volume.shape):
        raise UserError(f"{path}: of shape {volume.shape}, there is nothing in it")
    return volume


def _open_zarr(path: Path, channel: int | None) -> Volume:
    try:
        node = zarr.open(path, mode="r")
        images = _find_images(node) if isinstance(node, zarr.Group) else []
    except Exception as error:  # zarr raises anything, from JSON's to its own
        raise UserError(f"{path}: cannot be read as Zarr ({first_line(error)})") from None
    if len(images) > 1:
        shapes = ", ".join(
            f"{path / group.path} {group[scales['datasets'][0]['path']].shape}"
            for group, scales in images[:NAMED]
        )
        more = ", …" if len(images) > NAMED else ""
        raise UserError(f"{path}: has {len(images)} series; name one of them: {shapes}{more}")
    if isinstance(node, zarr.Group) and not images:
        names = [name for name, _ in node.arrays()]
        if len(names) != 1:
            raise UserError(
                f"{path}: no OME-Zarr image, and holds {len(names)} arrays; name one of them, such "
                f"as {path / (names[0] if names else 'NAME')}"
            )
        node = node[names[0]]
    array, axes, voxel = node, [], {}
    if images:
        try:
            array, axes, voxel = _open_multiscale(*images[0])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its OME metadata make no sense ({first_line(error)}); name an array in it"
            ) from None
    if array.ndim < 2 or array.dtype.kind not in "buif":
        raise UserError(
            f"{path}: of {array.dtype} and shape {array.shape}; expected grey (z, y, x)"
        )
    axes = axes or list(AXES[-array.ndim :])
    axes = [f"axis {n}" for n in range(array.ndim - len(axes))] + axes
    sides = dict(zip(axes, array.shape, strict=True))
    others = {axis: side for axis, side in sides.items() if axis not in AXES and side != 1}
    chosen = {}
    if list(others) == ["c"] and channel:
        if channel > others["c"]:
            raise UserError(f"{path}: --channel {channel}: it has {others['c']} channels")
        chosen = {"c": slice(channel - 1, channel)}
    elif others or [axis for axis in axes if axis in AXES] != [a for a in AXES if a in axes]:
        raise UserError(
            f"{path}: has the axes {sides}; only z, y, x may be longer than 1, in this order; "
            "choose a channel by --channel N, cut out one time"
        )

    def read(z: slice, region: Region) -> np.ndarray:
        ranges = {"z": z, "y": region[0], "x": region[1]} | chosen
        place = tuple(ranges.get(axis, slice(0, 1)) for axis in axes)
        try:
            part = array[place]
        except Exception as error:  # codecs raise anything
            raise UnreadableError(_name_fault(path, array, place, error)) from None
        return part.reshape([ranges[axis].stop - ranges[axis].start for axis in AXES])

    shape = tuple(sides.get(axis, 1) for axis in AXES)
    files = tuple(file for file in path.iterdir() if file.name in METADATA)
    voxel = tuple(voxel.get(axis) for axis in AXES)
    notes = _note_absent(path, array, axes)
    return Volume(shape, voxel, array.dtype.itemsize, False, files, read, notes)


def _find_images(group: zarr.Group) -> list[tuple[zarr.Group, dict]]:
    """Returns the OME-Zarr images of a group, or of its members: bioformats2raw's series."""
    members = [group]
    if not get_metadata(group).get("multiscales"):
        members = [one for _, one in sorted(group.groups(), key=lambda item: natural_key(item[0]))]
    known = [(one, get_metadata(one).get("multiscales")) for one in members]
    return [(one, scales[0]) for one, scales in known if scales]


def _note_absent(path: Path, array: zarr.Array, axes: list[str]) -> tuple[str, ...]:
    """Returns a note on chunks that are not there, which are read as if they held nothing."""
    sides = array.shards or array.chunks
    counts = [-(-side // part) for side, part in zip(array.shape, sides, strict=True)]
    folder = path / array.path if (path / array.path).is_dir() else path
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    key = array.metadata.encode_chunk_key
    absent = [place for place in np.ndindex(*counts) if key(place) not in there]
    if not absent:
        return ()
    first = last = 0
    if "z" in axes:
        z = axes.index("z")
        first = min(place[z] for place in absent) * sides[z]
        last = min((max(place[z] for place in absent) + 1) * sides[z], array.shape[z]) - 1
    return (
        f"{len(absent):,} of the {math.prod(counts):,} chunks of {path.name} are not there (in z "
        f"{first} to {last}); they are read as {array.fill_value}: is it copied whole?",
    )


def _open_multiscale(group: zarr.Group, scales: dict) -> tuple[zarr.Array, list[str], dict]:
    """Returns the array of full resolution, its axes, and the sides of a voxel in nm."""
    first = scales["datasets"][0]
    array = group[first["path"]]
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in scales["axes"]]
    names = [axis["name"] for axis in axes]
    units = [to_nanometres(axis.get("unit")) for axis in axes]
    sides = np.ones(len(axes))
    for part in (first, scales):
        for step in part.get("coordinateTransformations", []):
            if step["type"] == "scale":
                sides = sides * step["scale"]
    known = zip(names, (sides * units).tolist(), strict=True)
    return array, names, {name: side for name, side in known if side}


def _name_fault(path: Path, array: zarr.Array, place: tuple[slice, ...], error: Exception) -> str:
    """Says which chunk of a part cannot be read."""
    sides = array.shards or array.chunks
    lines = zip(place, sides, strict=True)
    numbers = [range(line.start // side, -(-line.stop // side)) for line, side in lines]
    for chunk in product(*numbers):
        try:
            array.blocks[chunk]
        except Exception as fault:
            where = (array.store_path / array.metadata.encode_chunk_key(chunk)).path
            return f"{path}: chunk {where} cannot be read ({first_line(fault)}); get it again"
    return f"{path}: cannot be read ({first_line(error)})"


def _open_slices(path: Path, max_pixels: int, channel: int | None) -> Volume:
    files = list_images(path) if path.is_dir() else [path]
    pages = [(file, n) for file in files for n in range(count_pages(file, max_pixels, channel))]
    page = to_grey(next(read_pages(files[0], max_pixels, channel=channel)))
    first = page.shape

    def read(z: slice, region: Region) -> np.ndarray:
        parts = []
        for file, wanted in groupby(pages[z], key=itemgetter(0)):
            numbers = [number for _, number in wanted]
            for page in read_pages(file, max_pixels, numbers[0], numbers[-1] + 1, channel):
                if page.shape[:2] != first:
                    raise UnreadableError(
                        f"{file}: {page.shape[0]}x{page.shape[1]} px, the first slice has "
                        f"{first[0]}x{first[1]}; the slices of a volume are of one size"
                    )
                parts.append(to_grey(page)[region])
        return np.stack(parts)

    voxel, shape = read_pixel_size(files[0]) or (None, None), (len(pages), *first)
    return Volume(shape, (None, *voxel), page.itemsize, True, tuple(files), read)
