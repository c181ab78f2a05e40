"""Volumes (z, y, x) on disk: Zarr, stacks and folders read part by part; OME-Zarr written.

Needs requirements/cluster.txt. Nothing here holds more than the part that is asked for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from ome_zarr.writer import get_metadata, write_multiscales_metadata

from membrane.errors import UnreadableError, UserError, first_line
from membrane.inference.tiling import Region
from membrane.io.normalization import to_grey
from membrane.io.pixel_size import Size, plausible, read_pixel_size
from membrane.io.readers import count_pages, is_zarr, list_images, natural_key, read_pages
from membrane.io.units import to_nanometres

CHUNK = 512  # px, the sides of what a viewer reads at once of a mask
SMALLEST = 512  # px; a pyramid ends with the first level whose sides are not longer
AXES = ("z", "y", "x")
NAMED = 8  # series, at most, in a message
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


@dataclass(frozen=True)
class Volume:
    """A volume that can be read part by part."""

    shape: tuple[int, int, int]  # (z, y, x)
    voxel: tuple[float | None, ...]  # its sides in nm, in this order; None where not known
    itemsize: int  # bytes per voxel
    chunk_depth: int  # how many slices must be read at once
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


def plan_levels(
    shape: Sequence[int], voxel: Sequence[float | None]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Plans a pyramid.

    Rows and columns are halved at each level, and z where a voxel is by then not longer in z.

    Args:
        shape: (z, y, x) of the volume.
        voxel: its sides in nm.

    Returns:
        Of each level its shape and how many voxels of the volume one of its own spans, (z, y, x).
    """
    levels = [(tuple(shape), (1, 1, 1))]
    while max(levels[-1][0][1:]) > SMALLEST:
        (last, spans) = levels[-1]
        z, _, x = (side * span if side else None for side, span in zip(voxel, spans, strict=True))
        factors = (2 if z and x and z < 1.5 * x else 1, 2, 2)
        levels.append(
            (
                tuple(-(-side // factor) for side, factor in zip(last, factors, strict=True)),
                tuple(span * factor for span, factor in zip(spans, factors, strict=True)),
            )
        )
    return levels


def chunk_of(block: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the chunks in a block, (z, y, x): what a viewer reads at once."""
    return block[0], min(CHUNK, block[1]), min(CHUNK, block[2])


def create_volume(
    path: Path,
    voxel: Sequence[float | None],
    levels: Sequence[tuple],
    block: tuple[int, int, int],
) -> None:
    """Creates an empty OME-Zarr 0.5 of 8-bit grey; one that is there stays as it is.

    Args:
        path: the folder.
        voxel: sides of a voxel in nm, (z, y, x), where they are known.
        levels: of `plan_levels`.
        block: what will be written at once, (z, y, x): one shard.
    """
    group = zarr.open_group(path, mode="a", zarr_format=3)
    for number, (shape, _) in enumerate(levels):
        chunk = chunk_of([min(*pair) for pair in zip(block, shape, strict=True)])
        shard = [
            -(-min(side, whole) // part) * part
            for side, whole, part in zip(block, shape, chunk, strict=True)
        ]
        group.require_array(
            str(number),
            shape=shape,
            dtype="uint8",
            chunks=chunk,
            shards=tuple(shard),
            fill_value=0,
            dimension_names=AXES,
        )
    axes = [{"name": axis, "type": "space"} for axis in AXES]
    for axis, side in zip(axes, voxel, strict=True):
        axis |= {"unit": "nanometer"} if side else {}
    sides = [side or 1.0 for side in voxel]
    datasets = []
    for number, (_, spans) in enumerate(levels):
        scale = [side * span for side, span in zip(sides, spans, strict=True)]
        # the middle of a voxel that spans several lies between their middles
        middle = [side * (span - 1) / 2 for side, span in zip(sides, spans, strict=True)]
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": middle}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    write_multiscales_metadata(group, datasets, axes=axes, name=path.stem)


def write_part(path: Path, level: int, corner: Sequence[int], part: np.ndarray) -> None:
    """Writes uint8 (z, y, x) into a level of what `create_volume` made, from a corner on.

    Raises:
        UserError: it cannot be written.
    """
    place = tuple(slice(a, a + side) for a, side in zip(corner, part.shape, strict=True))
    try:
        zarr.open_group(path, mode="r+")[str(level)][place] = part
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_part(path: Path, level: int, place: tuple[slice, ...]) -> np.ndarray:
    """Returns uint8 (z, y, x) of a level of what `create_volume` made."""
    return zarr.open_group(path, mode="r")[str(level)][place]


def _open_zarr(path: Path, channel: int | None) -> Volume:
    try:
        node = zarr.open(path, mode="r")
        images = _find_images(node) if isinstance(node, zarr.Group) else []
    except Exception as error:  # zarr raises anything, from JSON's to its own
        raise UserError(f"{path}: cannot be read as Zarr ({first_line(error)})") from None
    if len(images) > 1:
        shapes = [
            f"{path / group.path} {_shape_of(group, scales)}" for group, scales in images[:NAMED]
        ]
        more = ", …" if len(images) > NAMED else ""
        raise UserError(
            f"{path}: has {len(images)} series; name one of them: {', '.join(shapes)}{more}"
        )
    if isinstance(node, zarr.Array):
        array, axes, voxel = node, None, {}
    elif images:
        try:
            array, axes, voxel = _open_multiscale(*images[0])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its OME metadata make no sense ({first_line(error)}); name an array in it"
            ) from None
    else:
        names = [name for name, _ in node.arrays()]
        if len(names) != 1:
            raise UserError(
                f"{path}: no OME-Zarr image, and holds {len(names)} arrays; name one of them, such "
                f"as {path / (names[0] if names else 'NAME')}"
            )
        array, axes, voxel = node[names[0]], None, {}
    if array.ndim < 2 or array.dtype.kind not in "buif":
        raise UserError(
            f"{path}: of {array.dtype} and shape {array.shape}; expected grey (z, y, x)"
        )
    axes = list(axes or AXES[-array.ndim :])
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
    depth = dict(zip(axes, array.chunks, strict=True)).get("z", 1)
    notes = _note_absent(path, array, axes)
    return Volume(shape, voxel, array.dtype.itemsize, depth, False, files, read, notes)


def _find_images(group: zarr.Group) -> list[tuple[zarr.Group, dict]]:
    """Returns the OME-Zarr images of a group, or of its members: bioformats2raw's series."""
    found = []
    members = [group]
    if not get_metadata(group).get("multiscales"):
        members = [one for _, one in sorted(group.groups(), key=lambda item: natural_key(item[0]))]
    for one in members:
        if scales := get_metadata(one).get("multiscales"):
            found.append((one, scales[0]))
    return found


def _shape_of(group: zarr.Group, scales: dict) -> tuple[int, ...]:
    return group[scales["datasets"][0]["path"]].shape


def _note_absent(path: Path, array: zarr.Array, axes: list[str]) -> tuple[str, ...]:
    """Returns a note on chunks that are not there, which are read as if they held nothing."""
    sides = array.shards or array.chunks
    counts = [-(-side // part) for side, part in zip(array.shape, sides, strict=True)]
    folder = path / array.path if (path / array.path).is_dir() else path
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    absent, z = 0, axes.index("z") if "z" in axes else None
    slices = set()
    for place in np.ndindex(*counts):
        if array.metadata.encode_chunk_key(place) not in there:
            absent += 1
            slices.add(place[z] * sides[z] if z is not None else 0)
    if not absent:
        return ()
    last = min(max(slices) + (sides[z] if z is not None else 1), array.shape[z or 0]) - 1
    return (
        f"{absent:,} of the {math.prod(counts):,} chunks of {path.name} are not there (in z "
        f"{min(slices)} to {last}); they are read as {array.fill_value}: is it copied whole?",
    )


def _open_multiscale(group: zarr.Group, scales: dict) -> tuple[zarr.Array, list[str], dict]:
    """Returns the array of full resolution, its axes, and the sides of a voxel in nm."""
    first = scales["datasets"][0]
    array = group[first["path"]]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in scales["axes"]]
    units = [axis.get("unit", "") if isinstance(axis, dict) else "" for axis in scales["axes"]]
    sides = np.ones(len(axes))
    for step in first.get("coordinateTransformations", []) + scales.get(
        "coordinateTransformations", []
    ):
        if step["type"] == "scale":
            sides = sides * step["scale"]
    nanometres = map(to_nanometres, units)
    known = zip(axes, sides.tolist(), nanometres, strict=True)
    return array, axes, {axis: side * unit for axis, side, unit in known if side * unit}


def _name_fault(path: Path, array: zarr.Array, place: tuple[slice, ...], error: Exception) -> str:
    """Says which chunk of a part cannot be read."""
    sides = array.shards or array.chunks
    corners = [
        range(line.start // side * side, line.stop, side)
        for line, side in zip(place, sides, strict=True)
    ]
    for corner in np.stack(np.meshgrid(*corners, indexing="ij"), -1).reshape(-1, array.ndim):
        try:
            array[tuple(slice(a, a + side) for a, side in zip(corner.tolist(), sides, strict=True))]
        except Exception as fault:
            key = array.metadata.encode_chunk_key(
                tuple(a // side for a, side in zip(corner.tolist(), sides, strict=True))
            )
            where = "/".join(part for part in (array.path, key) if part)
            return f"{path}: chunk {where} cannot be read ({first_line(fault)}); get it again"
    return f"{path}: cannot be read ({first_line(error)})"


def _open_slices(path: Path, max_pixels: int, channel: int | None) -> Volume:
    files = list_images(path) if path.is_dir() else [path]
    counts = [count_pages(file, max_pixels, channel) for file in files]
    ends = np.cumsum(counts).tolist()
    page = to_grey(next(read_pages(files[0], max_pixels, channel=channel)))
    first = page.shape

    def read(z: slice, region: Region) -> np.ndarray:
        pages = []
        for file, end, count in zip(files, ends, counts, strict=True):
            start, stop = max(z.start - end + count, 0), min(z.stop - end + count, count)
            if start >= stop:
                continue
            for page in read_pages(file, max_pixels, start, stop, channel):
                if page.shape[:2] != first:
                    raise UnreadableError(
                        f"{file}: {page.shape[0]}x{page.shape[1]} px, the first slice has "
                        f"{first[0]}x{first[1]}; the slices of a volume are of one size"
                    )
                pages.append(to_grey(page)[region])
        return np.stack(pages)

    voxel, shape = read_pixel_size(files[0]) or (None, None), (ends[-1], *page.shape)
    return Volume(shape, (None, *voxel), page.itemsize, 1, True, tuple(files), read)
