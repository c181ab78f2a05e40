"""Neighbouring slices decide: what lies in one cell there is likelier to lie in one here.

A weak membrane in one slice is usually plain in the next. For two basins that touch, the cells that
a neighbouring slice has under each are compared: the same one speaks for joining them, different
ones against it. That evidence is added to the log-odds of their border, and the slice is
agglomerated again. Cross-validated: benchmarks/quality.md.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import TypeVar

import numpy as np
from scipy import sparse

from membrane.inference.basins import agglomerate
from membrane.inference.masks import (
    FOREGROUND_THRESHOLD,
    Segmentation,
    Segments,
    Window,
    segment,
)

STRENGTH = 2.5  # log-odds that the whole evidence adds to a border's mean, or takes off
ROUNDS = 1  # of agglomeration with evidence, after one without
FAR = 2  # slices: a neighbour is the next one or, where that is lost, the next but one
REACH = ROUNDS * FAR  # slices on either side that a mask can depend on
MIN_AGREEMENT = 0.5  # by which a neighbour tells borders within a slice's cells from those between
MIN_SIGNIFICANCE = 3  # the same in standard errors
MIN_BORDERS = 3  # of either kind, that it is told by
Item = TypeVar("Item")


def close_gaps(
    slices: Iterable[tuple[Item, Segments | None]], threshold: float, together: bool = True
) -> Iterator[tuple[Item, Segmentation | None, bool | None]]:
    """Yields what makes up the cells of a series of slices, in order, each with its neighbours.

    Whether two slices are neighbours is decided from what they show, window by window, so that
    unrelated ones do each other no harm. No more slices are held than can have a say.

    Args:
        slices: of each anything to know it by, and its segments; None for one that is lost.
        threshold: on P(interior), in (0, 1), of whole borders.
        together: False for each slice by itself.

    Yields:
        What it is known by; its segmentation, None of one that is lost; whether it and the slice
        before agree, None where there is nothing to compare.
    """
    if not together:
        for item, segments in slices:
            yield item, segments and segments.close_gaps(threshold), None
        return
    held, waiting = {}, deque()
    series = Series(held.get, threshold)

    def decide(z):
        series.forget(z - REACH)
        held.pop(z - REACH - 1, None)
        return waiting.popleft(), series.close_gaps(z), series.agree(z - 1, z)

    z = -1
    for z, (item, segments) in enumerate(slices):
        held[z] = segments
        waiting.append(item)
        if len(waiting) > REACH:
            yield decide(z - REACH)
    for last in range(z + 1 - len(waiting), z + 1):
        yield decide(last)


def precompute_segmentations(
    maps: Sequence[np.ndarray], together: bool = True
) -> list[Callable[[float], np.ndarray]]:
    """Returns the mask of each slice as a function of the threshold; a further one costs little.

    Args:
        maps: P(interior) in [0, 1] of slices in order, float (height, width).
        together: False for each slice by itself.
    """
    slices = [segment(one > FOREGROUND_THRESHOLD, one) for one in maps]
    if not together:
        return [partial(lambda one, threshold: one.close_gaps(threshold).mask(), s) for s in slices]

    @cache
    def decide(threshold):
        series = Series(dict(enumerate(slices)).get, threshold)
        return [series.close_gaps(z) for z in range(len(slices))]

    return [
        partial(lambda z, threshold: decide(threshold)[z].mask(), z) for z in range(len(slices))
    ]


class Series:
    """Slices in order, whose masks are decided with their neighbours.

    Args:
        get: returns the segments of a slice by its number; None where there is none, or it is lost.
            They are asked for no further than `REACH` slices from a mask that is wanted.
        threshold: on P(interior), in (0, 1), of whole borders.
    """

    def __init__(self, get: Callable[[int], Segments | None], threshold: float):
        self.get, self.threshold = get, threshold
        self.known = {}  # results, by a key that starts with the lowest slice that they are of

    def forget(self, end: int) -> None:
        """Lets go of what is known of the slices before `end`."""
        self.known = {key: value for key, value in self.known.items() if key[0] >= end}

    def close_gaps(self, z: int) -> Segmentation | None:
        """Returns what makes up the cells of a slice; None of one that is lost."""
        segments = self.get(z)
        if segments is None:
            return None
        windows = range(len(segments.windows))
        cells = [self._cells(z, window, ROUNDS) for window in windows]
        evidence = [self._evidence(z, window, ROUNDS) for window in windows]
        return Segmentation(segments, self.threshold, cells, evidence)

    def agree(self, z: int, other: int) -> bool | None:
        """Tells whether two slices agree in half their windows; None: nothing can be compared."""
        segments = self.get(z), self.get(other)
        if None in segments or segments[0].shape != segments[1].shape:
            return None
        count = len(segments[0].windows)
        return 2 * sum(self._agree(z, other, window) for window in range(count)) >= count

    def _cells(self, z: int, window: int, rounds: int) -> np.ndarray | None:
        """Returns the cell of each basin of a window after so many rounds with evidence."""
        borders = self.get(z).windows[window].borders
        if borders is None:
            return None
        key = z, window, rounds
        if key not in self.known:
            evidence = self._evidence(z, window, rounds)
            self.known[key] = agglomerate(borders, self.threshold, evidence)
        return self.known[key]

    def _evidence(self, z: int, window: int, rounds: int) -> np.ndarray | float:
        """Returns the log-odds that the neighbours add to each border's mean."""
        if not rounds or self.get(z).windows[window].borders is None:
            return 0.0
        others = [self._neighbour(z, side, window) for side in (-1, 1)]
        others = [other for other in others if other is not None]
        found = [self._compare(z, other, window, rounds - 1) for other in others]
        return STRENGTH * sum(found) / max(len(found), 1)

    def _neighbour(self, z: int, side: int, window: int) -> int | None:
        """Returns the nearest slice on a side that agrees, None where there is none."""
        near = (z + side * distance for distance in range(1, FAR + 1))
        return next((other for other in near if self._agree(z, other, window)), None)

    def _agree(self, z: int, other: int, window: int) -> bool:
        """Tells whether what one slice decides by itself can be told from the other's cells."""
        key = min(z, other), max(z, other), "agree", window
        if key not in self.known:
            self.known[key] = all(self._tells(*pair, window) for pair in ((z, other), (other, z)))
        return self.known[key]

    def _tells(self, z: int, other: int, window: int) -> bool:
        one, two = self.get(z), self.get(other)
        if one is None or two is None or one.shape != two.shape:
            return False
        if None in (one.windows[window].borders, two.windows[window].borders):
            return False
        joined = np.equal(*self._cells(z, window, 0)[one.windows[window].borders.pairs].T)
        evidence = self._compare(z, other, window, 0)
        within, between = evidence[joined], evidence[~joined]
        if min(len(within), len(between)) < MIN_BORDERS:
            return False
        error = np.hypot(*(some.std(ddof=1) / len(some) ** 0.5 for some in (within, between)))
        return within.mean() - between.mean() > max(MIN_AGREEMENT, MIN_SIGNIFICANCE * error)

    def _compare(self, z: int, other: int, window: int, rounds: int) -> np.ndarray:
        """Returns the evidence of another slice's cells on each border, from -1 to 1."""
        key = min(z, other), z, other, window, rounds
        if key not in self.known:
            here, there = (self.get(number).windows[window] for number in (z, other))
            self.known[key] = compare(here, there, self._cells(other, window, rounds))
        return self.known[key]


def compare(here: Window, there: Window, cells: np.ndarray) -> np.ndarray:
    """Returns what the cells of a neighbouring slice say about each border.

    Counted are the pixels that are interior in both slices. The shares of two basins that lie
    under each cell there are compared: their overlap s, from 0 (other cells) to 1 (the same), says
    2 s - 1, weighted by the part of the smaller basin that has such pixels.

    Args:
        here: the window whose borders are judged.
        there: the same rows and columns of the other slice.
        cells: int (basins + 1,), the cell of each basin there.

    Returns:
        float64 (borders,), from -1 (two cells) to 1 (one).
    """
    both = here.mask & there.mask
    basins, under = here.basins[both], cells[there.basins[both]]
    shape = here.borders.basins, int(cells.max()) + 1
    counts = sparse.coo_array((np.ones(len(basins)), (basins, under)), shape).tocsr()
    covered = counts.sum(1)
    shares = sparse.diags_array(1 / np.maximum(covered, 1)) @ counts
    one, other = here.borders.pairs.T
    same = shares[one].minimum(shares[other]).sum(1)
    size = np.bincount(here.basins[here.mask], minlength=here.borders.basins)
    smaller = np.where(size[one] < size[other], one, other)
    return (2 * same - 1) * covered[smaller] / np.maximum(size[smaller], 1)
