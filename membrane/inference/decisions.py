"""The closest decisions of a slice: where two cells were nearly one, or one nearly two.

Guided proofreading (Plaza et al. 2012, Haehn et al. 2018): nearly all errors of a mask are whole
borders, and the agglomeration knows how close it was to deciding each the other way. Measured in
benchmarks/quality.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import starmap

import numpy as np
from scipy import ndimage, special

from membrane.inference.basins import agglomerate
from membrane.inference.masks import Segmentation, Window

PER_SLICE, PER_PIXELS = 20, 2**18  # decisions: of a slice of up to so many px, and of each further
MOST = 100  # of a slice
TRIED = 2  # as many borders within cells are looked at as decisions are wanted, times this
BESIDE = 6  # px, from the border to the pixel that stands for a side, if the side is so wide
FALLOFF = 1.0  # of the gain, per unit of log-odds between a border and the threshold


@dataclass(frozen=True)
class Decision:
    """Whether two sides of a border are one cell.

    Args:
        at: a pixel of the border, (y, x).
        sides: a pixel of each side, likewise.
        joined: whether they are one in the mask.
        odds: mean log-odds of "interior" along the border, less the threshold's.
        length: of the border, px.
        smaller: px of the smaller side.
        gain: what deciding it is worth, the more the likelier it is wrong and the more is at stake.
        pixels: flat indices, of the slice, of the pixels that the other decision changes.
    """

    at: tuple[int, int]
    sides: tuple[tuple[int, int], tuple[int, int]]
    joined: bool
    odds: float
    length: int
    smaller: int
    gain: float
    pixels: np.ndarray

    def to_json(self) -> dict:
        """Returns it as the page has it; points are (x, y) there."""
        at, *sides = ([x, y] for y, x in (self.at, *self.sides))
        return {
            "at": at,
            "sides": sides,
            "joined": self.joined,
            "odds": round(self.odds, 2),
            "length": self.length,
            "smaller": self.smaller,
            "gain": round(self.gain, 2),
            "pixels": self.pixels.tolist(),
        }


def find_decisions(segmentation: Segmentation, count: int | None = None) -> list[Decision]:
    """Returns the closest decisions of a slice, those first that are most worth looking at.

    Args:
        segmentation: of a whole slice.
        count: how many at most; None for a number by the slice's size.
    """
    height, width = segmentation.segments.shape
    count = count or min(PER_SLICE * max(1, height * width // PER_PIXELS), MOST)
    found = []
    for window in starmap(_WindowCells, _windows(segmentation)):
        found += window.separated()
        found += window.joined(TRIED * count)
    found.sort(key=lambda one: (-one.gain, one.at))
    return found[:count]


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
        if all(line.start <= n < line.stop for n, line in zip(at, window.core, strict=True)):
            return _WindowCells(*args).find_border(sides, join)
    return None


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
        weighed = borders.odds + (evidence - special.logit(threshold)) * borders.lengths
        self.odds = weighed  # along each border, less the threshold's
        self.contact = np.bincount(borders.line[1], minlength=len(weighed))  # px of its line
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
        _, group = np.unique(keys[apart], return_inverse=True)
        odds = np.bincount(group, self.odds[apart]) / np.bincount(group, borders.lengths[apart])
        touching = np.bincount(group, self.contact[apart]) > 0
        order = np.argsort(group, kind="stable")
        members = np.split(apart[order], np.cumsum(np.bincount(group))[:-1])
        for number in np.flatnonzero(touching):
            own = members[number]
            cells = self.one[own[0]], self.two[own[0]]
            smaller = int(min(self.cell_sizes[list(cells)]))
            longest = own[np.argmax(self.contact[own])]
            pixels = self._between(own)
            decision = self._decision(longest, own, False, odds[number], smaller, pixels)
            if decision:
                yield decision

    def joined(self, count: int) -> Iterator[Decision]:
        """Yields, for the weakest borders within cells, whether they should be two."""
        borders = self.window.borders
        inner = np.flatnonzero(~self.apart & (self.contact > 0))
        odds = self.odds[inner] / borders.lengths[inner]
        smaller = self.sizes[borders.pairs[inner]].min(1)
        seen = set()
        for border in inner[np.argsort(-_gain(odds, smaller), kind="stable")[:count]]:
            side = self._split(*borders.pairs[border])
            if side is None:
                continue
            cut = self._cut(side)
            pixels = self._between(cut)
            if pixels.tobytes() in seen:
                continue
            seen.add(pixels.tobytes())
            part = int(self.sizes[side].sum())
            smaller = min(part, int(self.cell_sizes[self.one[border]]) - part)
            odds = self.odds[cut].sum() / borders.lengths[cut].sum()
            decision = self._decision(border, cut, True, odds, smaller, pixels)
            if decision:
                yield decision

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

    def _decision(
        self,
        border: int,
        borders: np.ndarray,
        joined: bool,
        odds: float,
        smaller: int,
        pixels: np.ndarray,
    ) -> Decision | None:
        """Returns the decision about some borders, of which one stands for all.

        None where it would change nothing.
        """
        if not pixels.size:
            return None
        own = np.intersect1d(self._between(np.array([border])), pixels)
        rows, columns = np.unravel_index(own if own.size else pixels, self.shape)
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        at = int(rows[middle]), int(columns[middle])
        sides = [self._stand(basin, at, pixels) for basin in self.window.borders.pairs[border]]
        if None in sides:
            return None
        length = int(self.window.borders.lengths[borders].sum())
        gain = float(_gain(odds, smaller))
        return Decision(at, tuple(sides), joined, float(odds), length, smaller, gain, pixels)

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
