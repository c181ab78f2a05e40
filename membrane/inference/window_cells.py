"""The cells of a slice, window by window, and the pixels that joining or cutting them changes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from scipy import special

from membrane.inference.basins import agglomerate
from membrane.inference.masks import Segmentation, Window
from membrane.inference.tiling import Region


class WindowCells:
    """The cells of a window of a slice.

    Args:
        window: with borders.
        cells: the cell of each basin, int (basins + 1,).
        evidence: log-odds (borders,) that were added to each border's mean.
        threshold: on P(interior), of whole borders.
        shape: of the slice, or of the region of one, that it is a window of.
    """

    def __init__(
        self,
        window: Window,
        cells: np.ndarray,
        evidence: np.ndarray | float,
        threshold: float,
        shape: tuple[int, int],
    ):
        self.window, self.borders = window, window.borders
        self.cells, self.shape = cells, shape
        self.evidence, self.threshold = evidence, threshold

    @cached_property
    def region(self) -> Region:
        """The rows and columns that the window sees; with its halo they may go beyond `shape`."""
        sides = zip(self.window.origin, self.window.mask.shape, strict=True)
        return tuple(slice(first, first + side) for first, side in sides)

    @cached_property
    def ends(self) -> np.ndarray:
        """The cells on both sides of each border, int (borders, 2)."""
        return self.cells[self.borders.pairs]

    @cached_property
    def apart(self) -> np.ndarray:
        """Whether a border lies between two cells, bool (borders,)."""
        return self.ends[:, 0] != self.ends[:, 1]

    @cached_property
    def odds(self) -> np.ndarray:
        """The sum of log-odds along each border, less the threshold's, float (borders,)."""
        added = self.evidence - special.logit(self.threshold)
        return self.borders.odds + added * self.borders.lengths

    @cached_property
    def contact(self) -> np.ndarray:
        """How long the line of each border is, px (borders,)."""
        return np.bincount(self.borders.line[1], minlength=len(self.borders.pairs))

    @cached_property
    def sizes(self) -> np.ndarray:
        """The interior pixels of each basin, (basins + 1,)."""
        basins = self.window.basins[self.window.mask]
        return np.bincount(basins, minlength=self.borders.basins)

    @cached_property
    def cell_sizes(self) -> np.ndarray:
        """The same of each cell, by its number."""
        return np.bincount(self.cells, self.sizes, minlength=self.borders.basins)

    @cached_property
    def free(self) -> np.ndarray:
        """Where the window is interior and no line is drawn, bool."""
        free = self.window.mask.copy()
        line, border = self.borders.line
        free.ravel()[line[self.apart[border]]] = False
        return free

    @cached_property
    def _line(self) -> np.ndarray:
        """`Borders.line` within the window's core."""
        inside = np.zeros(self.window.mask.shape, bool)
        inside[self.window.inside] = True
        return self.borders.line[:, inside.ravel()[self.borders.line[0]]]

    def find_border(self, sides: Sequence[tuple[int, int]], join: bool) -> np.ndarray | None:
        """Returns the pixels that joining or separating the cells of two sides changes.

        Args:
            sides: a pixel of each, (y, x).
            join: whether they are to be one cell; else two.

        Returns:
            Flat indices as of `between`, none where the two are so already; None where there is no
            border between them.
        """
        if not all(contains(self.region, side) for side in sides):
            return None
        places = [tuple(np.subtract(side, self.window.origin)) for side in sides]
        if not all(self.window.mask[place] for place in places):
            return None
        basins = [self.window.basins[place] for place in places]
        cells = self.cells[basins]
        if join != (cells[0] != cells[1]):
            return np.zeros(0, int)
        if join:
            pixels = self.between(np.flatnonzero(self.apart & np.isin(self.ends, cells).all(1)))
            return pixels if pixels.size else None
        side = self.split(*basins) if basins[0] != basins[1] else None
        return None if side is None else self.between(self.cut(side))

    def split(self, one: int, two: int) -> np.ndarray | None:
        """Splits the cell of two basins between them.

        Returns:
            The basins on the side of one; None where the other is not reached from it.
        """
        within = np.flatnonzero((self.ends[:, 0] == self.cells[one]) & ~self.apart)
        basins = np.flatnonzero(self.cells == self.cells[one])
        number = np.zeros(self.borders.basins, int)  # of a basin among those of the cell
        number[basins] = np.arange(len(basins))
        part = replace(
            self.borders,
            basins=len(basins),
            pairs=number[self.borders.pairs[within]],
            odds=self.odds[within],
            lengths=self.borders.lengths[within],
        )
        two_ends = tuple(number[[one, two]].tolist())
        cells = agglomerate(part, 0.0, apart=two_ends)
        side = basins[cells == cells[two_ends[0]]]
        return side if len(side) < len(basins) else None

    def cut(self, side: np.ndarray) -> np.ndarray:
        """Returns the borders within a cell between some of its basins and the others."""
        own = np.zeros(self.borders.basins, bool)
        own[side] = True
        ends = own[self.borders.pairs]
        return np.flatnonzero(~self.apart & (ends[:, 0] != ends[:, 1]))

    def between(self, borders: np.ndarray) -> np.ndarray:
        """Returns the pixels of the lines of some borders that are on no line that is drawn else.

        They are flat indices of the slice, or of the region that it is segmented in.
        """
        chosen = np.zeros(len(self.apart), bool)
        chosen[borders] = True
        line, border = self._line
        free = np.ones(self.window.mask.size, bool)
        free[line[(self.apart & ~chosen)[border]]] = False
        pixels = np.unique(line[chosen[border]])
        pixels = pixels[free[pixels]]
        place = np.unravel_index(pixels, self.window.mask.shape)
        place = (here + first for here, first in zip(place, self.window.origin, strict=True))
        return np.ravel_multi_index(tuple(place), self.shape)


def open_windows(segmentation: Segmentation) -> list[WindowCells]:
    """Returns the windows of a slice that have borders."""
    segments = segmentation.segments
    each = zip(segments.windows, segmentation.cells, segmentation.evidence, strict=True)
    return [
        WindowCells(window, cells, evidence, segmentation.threshold, segments.shape)
        for window, cells, evidence in each
        if window.borders is not None
    ]


def find_border(
    windows: Sequence[WindowCells],
    at: tuple[int, int],
    sides: Sequence[tuple[int, int]],
    join: bool,
) -> np.ndarray | None:
    """Returns what `WindowCells.find_border` does, of the window that a pixel, (y, x), is in."""
    for cells in windows:
        if contains(cells.window.core, at):
            return cells.find_border(sides, join)
    return None


def contains(region: Region, point: Sequence[int]) -> bool:
    """Tells whether a pixel, (y, x), lies in a region."""
    return all(line.start <= n < line.stop for n, line in zip(point, region, strict=True))
