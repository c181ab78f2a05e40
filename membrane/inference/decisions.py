"""The closest decisions of a slice: where two cells were nearly joined, or one nearly split.

Guided proofreading (Plaza et al. 2012, Haehn et al. 2018): nearly all errors of a mask are whole
borders, and the agglomeration knows how close it was to deciding each the other way. Measured in
benchmarks/quality.md.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from scipy import ndimage, special

from membrane.inference.basins import agglomerate
from membrane.inference.masks import Segmentation, Window
from membrane.inference.tiling import Region, full_region, shape_of

PER_SLICE, PER_PIXELS = 20, 2**18  # decisions: of a slice of up to so many px, and of each further
MOST = 100  # of a slice
TRIED = 2  # as many borders within cells are looked at as decisions are wanted, times this
BESIDE = 6  # px, from the border to the pixel that stands for a side, if the side is so wide
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
        pixels: flat indices, of the slice, of the pixels that the other decision changes.
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
        """Returns it as the page has it, of a region of a slice of this width; x comes first."""
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
        segmentation: of a whole slice.
        region: rows and columns, that start where a window does; None for all.
        count: how many at most; None for a number by the region's size.
    """
    region = region or full_region(segmentation.segments.shape)
    count = count or min(PER_SLICE * max(1, math.prod(shape_of(region)) // PER_PIXELS), MOST)
    found = []
    for args in _windows(segmentation):
        if _is_in(region, (args[0].core[0].start, args[0].core[1].start)):
            window = _WindowCells(*args)
            found += [(one, window) for one in (*window.separated(), *window.joined(TRIED * count))]
    found.sort(key=lambda pair: (-pair[0].gain, pair[0].pixels[0]))
    located = filter(None, (window.locate(one) for one, window in found))
    seen = (one for one in located if all(_is_in(region, side) for side in one.sides))
    return list(islice(seen, count))


def find_border(
    segmentation: Segmentation,
    at: tuple[int, int],
    sides: tuple[tuple[int, int], tuple[int, int]],
    join: bool,
    origin: tuple[int, int] = (0, 0),
) -> np.ndarray | None:
    """Returns the pixels that joining or separating the cells of two sides changes.

    Args:
        segmentation: of a slice, or of a region of one.
        at: a pixel of the border, (y, x), in the slice.
        sides: a pixel of each side, likewise.
        join: whether they are to be one cell; else two.
        origin: the region's first row and column.

    Returns:
        Flat indices, of the segmentation; None where it has no border between the two.
    """
    at, *sides = (tuple(np.subtract(point, origin)) for point in (at, *sides))
    for args in _windows(segmentation):
        window = args[0]
        if _is_in(window.core, at):
            return _WindowCells(*args).find_border(sides, join)
    return None


def _is_in(region: Region, point: Sequence[int]) -> bool:
    """Tells whether a pixel, (y, x), lies in a region."""
    return all(line.start <= n < line.stop for n, line in zip(point, region, strict=True))


def _windows(segmentation: Segmentation) -> Iterator[tuple]:
    """Yields the windows that have borders, with what `_WindowCells` takes."""
    shape, threshold = segmentation.segments.shape, segmentation.threshold
    each = zip(
        segmentation.segments.windows, segmentation.cells, segmentation.evidence, strict=True
    )
    for window, cells, evidence in each:
        if window.borders is not None:
            yield window, cells, evidence, threshold, shape


class _WindowCells:
    """The cells of a window, and what joining or cutting them changes."""

    def __init__(
        self,
        window: Window,
        cells: np.ndarray,
        evidence: np.ndarray | float,
        threshold: float,
        shape: tuple[int, int],
    ):
        self.window, self.cells, self.shape = window, cells, shape
        borders = window.borders
        self.one, self.two = cells[borders.pairs].T
        self.apart = self.one != self.two
        # along each border, less the threshold's
        self.odds = borders.odds + (evidence - special.logit(threshold)) * borders.lengths
        self.contact = np.bincount(borders.line[1], minlength=len(self.odds))  # px of its line
        inside = np.zeros(window.mask.shape, bool)
        inside[window.inside] = True
        keep = inside.ravel()[borders.line[0]]
        self.line = borders.line[:, keep]
        self.sizes = np.bincount(window.basins[window.mask], minlength=borders.basins)
        self.cell_sizes = np.bincount(cells, self.sizes, minlength=borders.basins)

    @cached_property
    def _boxes(self) -> list[tuple[slice, slice]]:
        """The rows and columns of each basin."""
        return ndimage.find_objects(self.window.basins)

    @cached_property
    def _free(self) -> np.ndarray:
        """Where the window is interior and no line is drawn, bool."""
        free = self.window.mask.copy()
        line, border = self.window.borders.line
        free.ravel()[line[self.apart[border]]] = False
        return free

    def separated(self) -> Iterator[Decision]:
        """Yields, for each two cells that touch, whether they should be one."""
        borders = self.window.borders
        keys = np.minimum(self.one, self.two) * borders.basins + np.maximum(self.one, self.two)
        apart = np.flatnonzero(self.apart)
        apart = apart[np.argsort(keys[apart], kind="stable")]
        for own in np.split(apart, np.flatnonzero(np.diff(keys[apart])) + 1):
            if len(own) and self.contact[own].any():
                smaller = min(self.cell_sizes[[self.one[own[0]], self.two[own[0]]]])
                longest = own[np.argmax(self.contact[own])]
                yield from self._decide(longest, own, False, smaller, self._between(own))

    def joined(self, count: int) -> Iterator[Decision]:
        """Yields, for the weakest borders within cells, whether they should be two."""
        borders, seen = self.window.borders, set()
        inner = np.flatnonzero(~self.apart & (self.contact > 0))
        gains = _gain(
            self.odds[inner] / borders.lengths[inner], self.sizes[borders.pairs[inner]].min(1)
        )
        for border in inner[np.argsort(-gains, kind="stable")[:count]]:
            side = self._split(*borders.pairs[border])
            if side is None:
                continue
            cut = self._cut(side)
            pixels = self._between(cut)
            if pixels.tobytes() not in seen:
                seen.add(pixels.tobytes())
                part = self.sizes[side].sum()
                smaller = min(part, self.cell_sizes[self.one[border]] - part)
                yield from self._decide(border, cut, True, smaller, pixels)

    def _decide(
        self, border: int, borders: np.ndarray, joined: bool, smaller: float, pixels: np.ndarray
    ) -> Iterator[Decision]:
        """Yields the decision about some borders, of which one stands for all, if it has pixels."""
        if pixels.size:
            length = int(self.window.borders.lengths[borders].sum())
            odds = float(self.odds[borders].sum() / length)
            gain = float(_gain(odds, smaller))
            yield Decision(int(border), joined, odds, length, int(smaller), gain, pixels)

    def locate(self, decision: Decision) -> Decision | None:
        """Returns a decision with its place; None where a side has no pixel beside the border."""
        pixels = decision.pixels
        own = np.intersect1d(self._between(np.array([decision.border])), pixels)
        place = np.stack(np.unravel_index(own if own.size else pixels, self.shape), 1)
        at = place[np.argmin(((place - place.mean(0)) ** 2).sum(1))]
        pair = self.window.borders.pairs[decision.border]
        sides = tuple(self._stand(basin, at, pixels) for basin in pair)
        return None if None in sides else replace(decision, at=tuple(at.tolist()), sides=sides)

    def find_border(self, sides, join: bool) -> np.ndarray | None:
        """Returns what `find_border` does, for sides in its window's own counting of pixels."""
        window = self.window
        places = [tuple(np.subtract(side, window.origin)) for side in sides]
        limits = window.mask.shape
        if not all(0 <= y < limits[0] and 0 <= x < limits[1] for y, x in places):
            return None
        if not all(window.mask[place] for place in places):
            return None
        basins = [window.basins[place] for place in places]
        cells = self.cells[basins]
        if join:
            if cells[0] == cells[1]:
                return np.zeros(0, int)
            between = self.apart & np.isin(self.one, cells) & np.isin(self.two, cells)
            pixels = self._between(np.flatnonzero(between))
            return pixels if pixels.size else None
        if cells[0] != cells[1]:
            return np.zeros(0, int)
        side = self._split(*basins) if basins[0] != basins[1] else None
        return None if side is None else self._between(self._cut(side))

    def _split(self, one: int, two: int) -> np.ndarray | None:
        """Splits the cell of two basins between them; returns the basins on the side of one."""
        borders = self.window.borders
        within = np.flatnonzero((self.one == self.cells[one]) & ~self.apart)
        basins, pairs = np.unique(borders.pairs[within], return_inverse=True)
        part = replace(
            borders,
            basins=len(basins),
            pairs=pairs.reshape(-1, 2),
            odds=self.odds[within],
            lengths=borders.lengths[within],
        )
        ends = tuple(np.searchsorted(basins, (one, two)).tolist())
        cells = agglomerate(part, 0.0, apart=ends)
        side = basins[cells == cells[ends[0]]]
        return side if len(side) < len(basins) else None

    def _cut(self, side: np.ndarray) -> np.ndarray:
        """Returns the borders within a cell between some of its basins and the others."""
        ends = np.isin(self.window.borders.pairs, side)
        return np.flatnonzero(~self.apart & (ends[:, 0] != ends[:, 1]))

    def _between(self, borders: np.ndarray) -> np.ndarray:
        """Returns the pixels of the lines of some borders that are on no line that is drawn else.

        They are flat indices of the slice, or of the region that it is segmented in.
        """
        chosen = np.zeros(len(self.apart), bool)
        chosen[borders] = True
        mine, drawn = chosen[self.line[1]], (self.apart & ~chosen)[self.line[1]]
        pixels = np.setdiff1d(self.line[0][mine], self.line[0][drawn])
        place = np.unravel_index(pixels, self.window.mask.shape)
        place = (here + first for here, first in zip(place, self.window.origin, strict=True))
        return np.ravel_multi_index(tuple(place), self.shape)

    def _stand(self, basin: int, at: tuple[int, int], pixels: np.ndarray) -> tuple | None:
        """Returns an interior pixel of a basin, (y, x), a little off some pixels of its border.

        It is in a piece of the basin that touches them; None where there is none.
        """
        (top, left), box = self.window.origin, self._boxes[basin - 1]
        corner = np.array([top + box[0].start, left + box[1].start])
        free = (self.window.basins[box] == basin) & self._free[box]
        places = np.stack(np.unravel_index(pixels, self.shape), 1) - corner
        border = np.zeros(np.add(free.shape, 2), bool)
        seen = ((places >= -1) & (places <= free.shape)).all(1)
        border[tuple(places[seen].T + 1)] = True
        free &= ~border[1:-1, 1:-1]
        pieces, _ = ndimage.label(free)
        beside = np.unique(pieces[ndimage.binary_dilation(border)[1:-1, 1:-1]])
        place = np.argwhere(free & np.isin(pieces, beside)) + corner
        place = place[((place >= 0) & (place < self.shape)).all(1)]
        if not len(place):
            return None
        off = np.abs(np.hypot(*(place - at).T) - BESIDE)
        y, x = place[np.argmin(off)].tolist()
        return y, x


def _gain(odds: np.ndarray, smaller: np.ndarray) -> np.ndarray:
    """Returns what looking at decisions is worth."""
    return np.sqrt(smaller) * np.exp(-FALLOFF * np.abs(odds))
