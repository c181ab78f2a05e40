"""Masks of a volume on disk: an OME-Zarr with a pyramid of smaller and smaller levels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr
from ome_zarr.writer import write_multiscales_metadata

from membrane.errors import UserError
from membrane.volumes.store import AXES

CHUNK = 512  # px, the sides of what a viewer reads at once of a mask
SMALLEST = 512  # px; a pyramid ends with the first level whose sides are not longer


def plan_levels(
    shape: Sequence[int], voxel: Sequence[float | None]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Plans a pyramid of a volume (z, y, x), given the sides of its voxels in nm.

    Rows and columns are halved at each level, and z where a voxel is by then not longer in z.

    Returns:
        Of each level its shape and how many voxels of the volume one of its own spans, (z, y, x).
    """
    levels, spans = [], [1, 1, 1]
    while True:
        level = tuple(-(-side // span) for side, span in zip(shape, spans, strict=True))
        levels.append((level, tuple(spans)))
        if max(level[1:]) <= SMALLEST:
            return levels
        if voxel[0] and voxel[2] and voxel[0] * spans[0] < 1.5 * voxel[2] * spans[2]:
            spans[0] *= 2
        spans[1] *= 2
        spans[2] *= 2


def chunk_of(block: Sequence[int]) -> tuple[int, int, int]:
    """Returns the shape of the chunks in a block, (z, y, x): what a viewer reads at once."""
    return block[0], min(CHUNK, block[1]), min(CHUNK, block[2])


def create_volume(
    path: Path,
    voxel: Sequence[float | None],
    levels: Sequence[tuple],
    block: Sequence[int],
    dtype: str = "uint8",
) -> None:
    """Creates an empty OME-Zarr 0.5; one that is there stays as it is.

    The sides of a voxel, (z, y, x), are in nm where they are known; the levels are of
    `plan_levels`; a block, (z, y, x), is what will be written at once: one shard.
    """
    group = zarr.open_group(path, mode="a", zarr_format=3)
    sides, datasets = np.array([side or 1.0 for side in voxel]), []
    kind = {"dtype": dtype, "fill_value": 0, "dimension_names": AXES}
    for number, (shape, spans) in enumerate(levels):
        written = np.minimum(block, shape)
        chunks = chunk_of(written)
        shards = tuple(-(-written // chunks) * chunks)
        group.require_array(str(number), shape=shape, chunks=chunks, shards=shards, **kind)
        scale = (sides * spans).tolist()
        # the middle of a voxel that spans several lies between their middles
        middle = (sides * np.subtract(spans, 1) / 2).tolist()
        steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": middle}]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    units = {axis: "nanometer" for axis, side in zip(AXES, voxel, strict=True) if side}
    named = {"axes": list(AXES), "axes_units": units, "name": path.stem}
    write_multiscales_metadata(group, datasets, **named)


def write_part(path: Path, level: int, corner: Sequence[int], part: np.ndarray) -> None:
    """Writes (z, y, x) into a level of what `create_volume` made, from a corner on.

    Raises:
        UserError: it cannot be written.
    """
    place = tuple(slice(a, a + side) for a, side in zip(corner, part.shape, strict=True))
    try:
        zarr.open_group(path, mode="r+")[str(level)][place] = part
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_part(path: Path, level: int, place: tuple[slice, ...]) -> np.ndarray:
    """Returns (z, y, x) of a level of what `create_volume` made."""
    return zarr.open_group(path, mode="r")[str(level)][place]
