"""The closest decisions of a slice: where two cells were nearly joined, or one nearly split.

Guided proofreading (Plaza et al. 2012, Haehn et al. 2018): nearly all errors of a mask are whole
borders, and the agglomeration knows how close it was to deciding each the other way. Measured in
benchmarks/quality.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from scipy import ndimage

from membrane.inference.masks import Segmentation
from membrane.inference.tiling import Region, expand, full_region, intersect, relative_to, shape_of
from membrane.inference.window_cells import WindowCells, contains, open_windows

PER_SLICE, PER_PIXELS = 20, 2**18  # decisions: of a slice of up to so many px, and of each further
MOST = 100  # of a slice
TRIED = 2  # as many borders within cells are looked at as decisions are wanted, times this
BESIDE = 6  # px, from the border to the pixel that stands for a side, if the side is so wide
SEARCHED = 3 * BESIDE  # px, about the middle of the border, for that pixel
FALLOFF = 1.0  # of the gain, per unit of log-odds between a border and the threshold


@dataclass(frozen=True)
class Decision:
    """Whether two sides of a border are one cell.

    Args:
        border: its number among its window's; of several between two cells, one of them.
        joined: whether they are one in the mask.
        odds: mean log-odds of "interior" along the border, less the threshold's.
        length: of the border, px.
        smaller: px of the smaller side.
        gain: what deciding it is worth, the more the likelier it is wrong and the more is at stake.
        pixels: flat indices, of what is segmented, of the pixels that the other decision changes.
        at: a pixel of the border, (y, x).
        sides: a pixel of each side, likewise.
    """

    border: int
    joined: bool
    odds: float
    length: int
    smaller: int
    gain: float
    pixels: np.ndarray
    at: tuple[int, int] = ()
    sides: tuple[tuple[int, int], tuple[int, int]] = ()

    def to_json(self, width: int, region: Region) -> dict:
        """Returns it as the page has it, of a region of what is that wide; x comes first."""
        rows, columns = region
        points = (self.at, *self.sides)
        at, *sides = ([x - columns.start, y - rows.start] for y, x in points)
        y, x = np.divmod(self.pixels, width)
        pixels = (y - rows.start) * (columns.stop - columns.start) + x - columns.start
        return {
            "at": at,
            "sides": sides,
            "joined": self.joined,
            "odds": round(self.odds, 2),
            "length": self.length,
            "smaller": self.smaller,
            "gain": round(self.gain, 2),
            "pixels": pixels.tolist(),
        }


def find_decisions(
    segmentation: Segmentation, region: Region | None = None, count: int | None = None
) -> list[Decision]:
    """Returns the closest decisions of a slice, those first that are most worth looking at.

    Args:
        segmentation: of a slice, or of a region of one.
        region: rows and columns, that start where a window does; None for all.
        count: how many at most; None for a number by the region's size.
    """
    region = region or full_region(segmentation.segments.shape)
    count = count or min(PER_SLICE * max(1, math.prod(shape_of(region)) // PER_PIXELS), MOST)
    found = []
    for cells in open_windows(segmentation):
        if contains(region, [line.start for line in cells.window.core]):
            own = *_between_cells(cells), *_within_cells(cells, TRIED * count)
            found += [(one, cells) for one in own]
    found.sort(key=lambda pair: (-pair[0].gain, pair[0].pixels[0]))
    located = filter(None, (_locate(one, cells, region) for one, cells in found))
    return list(islice(located, count))


def _between_cells(cells: WindowCells) -> Iterator[Decision]:
    """Yields, for each two cells that touch, whether they should be one."""
    keys = cells.ends.min(1) * cells.borders.basins + cells.ends.max(1)
    apart = np.flatnonzero(cells.apart)
    apart = apart[np.argsort(keys[apart], kind="stable")]
    for own in np.split(apart, np.flatnonzero(np.diff(keys[apart])) + 1):
        if len(own) and cells.contact[own].any():
            longest = own[np.argmax(cells.contact[own])]
            smaller = cells.cell_sizes[cells.ends[longest]].min()
            yield from _decide(cells, longest, own, False, smaller, cells.between(own))


def _within_cells(cells: WindowCells, count: int) -> Iterator[Decision]:
    """Yields, for the weakest borders within cells, whether they should be two."""
    borders, seen = cells.borders, set()
    inner = np.flatnonzero(~cells.apart & (cells.contact > 0))
    gains = _gain(
        cells.odds[inner] / borders.lengths[inner], cells.sizes[borders.pairs[inner]].min(1)
    )
    for border in inner[np.argsort(-gains, kind="stable")[:count]]:
        side = cells.split(*borders.pairs[border])
        if side is None:
            continue
        cut = cells.cut(side)
        pixels = cells.between(cut)
        if pixels.tobytes() not in seen:
            seen.add(pixels.tobytes())
            part = cells.sizes[side].sum()
            smaller = min(part, cells.cell_sizes[cells.ends[border, 0]] - part)
            yield from _decide(cells, border, cut, True, smaller, pixels)


def _decide(
    cells: WindowCells,
    border: int,
    borders: np.ndarray,
    joined: bool,
    smaller: float,
    pixels: np.ndarray,
) -> Iterator[Decision]:
    """Yields the decision about some borders, of which one stands for all, if it has pixels."""
    if pixels.size:
        length = int(cells.borders.lengths[borders].sum())
        odds = float(cells.odds[borders].sum() / length)
        gain = float(_gain(odds, smaller))
        yield Decision(int(border), joined, odds, length, int(smaller), gain, pixels)


def _locate(decision: Decision, cells: WindowCells, region: Region) -> Decision | None:
    """Returns a decision with its place; None where a side has no pixel beside the border.

    Its sides are looked for within the region.
    """
    pixels = decision.pixels
    own = np.intersect1d(cells.between(np.array([decision.border])), pixels)
    place = np.stack(np.unravel_index(own if own.size else pixels, cells.shape), 1)
    at = place[np.argmin(((place - place.mean(0)) ** 2).sum(1))]
    sides = _find_sides(cells, region, cells.borders.pairs[decision.border], at, pixels)
    return sides and replace(decision, at=tuple(at.tolist()), sides=tuple(sides))


def _find_sides(
    cells: WindowCells, region: Region, pair: np.ndarray, at: np.ndarray, pixels: np.ndarray
) -> list[tuple[int, int]] | None:
    """Returns an interior pixel of each of two basins, (y, x), a little off a border's middle.

    It is in a piece of the basin that touches the border's pixels; None where one has none.
    """
    near = expand(tuple(slice(n, n + 1) for n in at.tolist()), SEARCHED, cells.shape)
    near = intersect(near, intersect(region, cells.region))
    own = relative_to(near, cells.region)
    line = np.zeros(cells.shape, bool)
    line.ravel()[pixels] = True
    line = line[near]
    rows, columns = np.ogrid[near]
    off = np.abs(np.hypot(rows - at[0], columns - at[1]) - BESIDE)
    sides = []
    for basin in pair:
        free = (cells.window.basins[own] == basin) & cells.free[own] & ~line
        pieces, count = ndimage.label(free | line)
        beside = np.zeros(count + 1, bool)
        beside[pieces[line]] = True
        possible = np.flatnonzero(beside[pieces] & free)
        if not possible.size:
            return None
        y, x = divmod(int(possible[off.ravel()[possible].argmin()]), line.shape[1])
        sides.append((near[0].start + y, near[1].start + x))
    return sides


def _gain(odds: np.ndarray, smaller: np.ndarray) -> np.ndarray:
    """Returns what looking at decisions is worth."""
    return np.sqrt(smaller) * np.exp(-FALLOFF * np.abs(odds))
