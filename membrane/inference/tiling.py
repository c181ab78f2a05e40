"""Regions of a slice, and the exact tiles that cover one.

A pixel of the output depends on the input within the network's radius only, and on where it lies
on the grid of the network's stride. So tiles that carry a halo of at least the radius, and start
on that grid, give what the whole slice gives; nothing is blended. Beyond the slice's own ends lies
what the network has always seen beyond a tile: nothing, its zero padding.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

Region = tuple[slice, slice]  # rows and columns, both with start and stop


def full_region(shape: tuple[int, int]) -> Region:
    """Returns all rows and columns of a slice of this shape."""
    return slice(0, shape[0]), slice(0, shape[1])


def expand(region: Region, margin: int, shape: tuple[int, int]) -> Region:
    """Returns `region` with `margin` more px on every side, as far as the slice goes."""
    wider = tuple(slice(line.start - margin, line.stop + margin) for line in region)
    return intersect(wider, full_region(shape))


def relative_to(region: Region, origin: Region) -> Region:
    """Returns where `region` lies in an array that holds `origin`."""
    return tuple(
        slice(line.start - first.start, line.stop - first.start)
        for line, first in zip(region, origin, strict=True)
    )


def intersect(one: Region, other: Region) -> Region:
    """Returns the rows and columns that are in both."""
    return tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )


def shape_of(region: Region) -> tuple[int, int]:
    """Returns how many rows and columns a region has."""
    return region[0].stop - region[0].start, region[1].stop - region[1].start


@dataclass(frozen=True)
class Tiling:
    """How slices are cut into tiles.

    Args:
        stride: px; tiles start on multiples of it, and their sides are multiples.
        halo: px that a tile carries around it, a multiple of the stride; None where the network
            must see the whole slice.
        tile: px, rows and columns of the largest tile, without its halo; where a slice is
            narrower, a tile has as many more rows. Memory grows with the pixels.
    """

    stride: int
    halo: int | None
    tile: tuple[int, int]

    def input_region(self, region: Region, shape: tuple[int, int]) -> Region:
        """Returns what must be read of a slice of this shape to predict a region of it."""
        grid = self.tile_grid(region, shape)
        axes = (np.concatenate([seen for _, seen in axis]) for axis in grid)
        return tuple(slice(int(line.min()), int(line.max()) + 1) for line in axes)

    def tile_grid(
        self, region: Region, shape: tuple[int, int]
    ) -> Iterator[list[tuple[slice, np.ndarray]]]:
        """Yields the rows, then the columns, of the tiles that a region meets.

        Of each: its own pixels, and those that it sees. The tiles are equal, so few shapes serve a
        slice. They end where the slice ends, as those of the training do, but for the few pixels to
        the next multiple of the stride: reflected ones.
        """
        width = self._tile_length(shape[1], self.tile[1])
        height = self._tile_length(shape[0], math.prod(self.tile) // width)
        for line, side, size in zip(region, shape, (height, width), strict=True):
            end, tiles = -(-side // self.stride) * self.stride, []
            for start in range(line.start // size * size, line.stop, size):
                halo = self.halo or 0
                seen = np.arange(max(0, start - halo), min(start + size + halo, end))
                seen = np.where(seen < side, seen, np.maximum(2 * side - 2 - seen, 0))
                tiles.append((slice(start, min(start + size, side)), seen))
            yield tiles

    def _tile_length(self, side: int, most: int) -> int:
        """Returns the size of a side's equal parts: `most` px or less, a multiple of the stride."""
        most = max(most // self.stride, 1) * self.stride
        count = -(-side // most) if self.halo is not None else 1
        return -(-side // (count * self.stride)) * self.stride
