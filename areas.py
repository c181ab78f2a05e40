"""Rectangles of a slice: rows and columns, both with start and stop."""

import math

Area = tuple[slice, slice]


def whole(shape: tuple[int, int]) -> Area:
    """Returns all rows and columns of a slice of this shape."""
    return slice(0, shape[0]), slice(0, shape[1])


def widen(area: Area, halo: int, shape: tuple[int, int]) -> Area:
    """Returns `area` with `halo` more px on every side, as far as the slice goes."""
    return tuple(
        slice(max(0, line.start - halo), min(line.stop + halo, side))
        for line, side in zip(area, shape, strict=True)
    )


def shift(area: Area, origin: Area) -> Area:
    """Returns where `area` lies in an array that holds `origin`."""
    return tuple(
        slice(line.start - first.start, line.stop - first.start)
        for line, first in zip(area, origin, strict=True)
    )


def intersect(one: Area, other: Area) -> Area:
    """Returns the rows and columns that are in both."""
    return tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )


def shape_of(area: Area) -> tuple[int, int]:
    """Returns how many rows and columns an area has."""
    return area[0].stop - area[0].start, area[1].stop - area[1].start


def pixels_of(area: Area) -> int:
    """Returns how many pixels an area has."""
    return math.prod(shape_of(area))
