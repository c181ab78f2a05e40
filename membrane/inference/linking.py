"""Cells keep their number from slice to slice: the profiles of one neuron become one object."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

MIN_IOU, MIN_GAP_IOU = 0.1, 0.5  # of two cells that match each other best; across a gap
MIN_GAIN = 0.1  # of overlap, that neighbouring slices have over one of them turned by 180 degrees
MIN_SHARE = 0.6  # of a cell that ends between two slices, which must lie over one cell to join it
MIN_RATIO, MIN_AREA = 0.1, 300  # of the two's areas, and of the one that ends, in px


@dataclass
class Linker:
    """Links the cells of slices that come in order; nothing is held but the last two of them.

    A cell is linked to the one of the next slice where each is the other's best match by
    intersection over union; where one has none, to that of the slice after. An object that then
    begins or ends inside the series is joined to the cell that holds most of its last one, by its
    better end: so branches come together. All of this only between slices that match better than
    by chance.
    """

    areas: list[np.ndarray] = field(default_factory=list)  # of each slice: px, by label
    overlaps: dict[tuple[int, int], sparse.coo_array] = field(default_factory=dict)
    held: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, labels: np.ndarray | None) -> None:
        """Takes the next slice: integers (height, width), 0 = on no cell; None: it is lost."""
        z = len(self.areas)
        self.areas.append(np.zeros(1) if labels is None else np.bincount(labels.ravel()))
        if labels is not None:
            for before in (z - 2, z - 1):
                other = self.held.get(before)
                if other is not None and other.shape == labels.shape:
                    self._compare(before, other, z, labels)
            self.held[z] = labels
        self.held.pop(z - 2, None)

    def link(self) -> list[np.ndarray]:
        """Returns the number of each cell's object, from 1, int64 (labels + 1,), for each slice."""
        starts = np.cumsum([0, *map(len, self.areas)])
        areas = np.concatenate([*self.areas, []])
        shared = [
            (
                other - z == 1,
                table.coords[0] + starts[z],
                table.coords[1] + starts[other],
                table.data,
            )
            for (z, other), table in sorted(self.overlaps.items())
        ]
        next_ones = [pairs for follows, *pairs in shared if follows]
        gaps = [pairs for follows, *pairs in shared if not follows]
        linked = np.zeros((2, len(areas)), bool)  # whether a cell is, to one before it, one behind
        joined = [np.zeros((2, 0), int), *_match(next_ones, areas, linked, MIN_IOU)]
        joined += _match(gaps, areas, linked, MIN_GAP_IOU)
        joined += _join_ends(next_ones, areas, linked, _number(joined, len(areas)))
        components = _number(joined, len(areas))
        components[np.concatenate([starts[:-1], np.flatnonzero(areas == 0)])] = -1  # no cell
        _, first, numbers = np.unique(components, return_index=True, return_inverse=True)
        ranks = np.argsort(np.argsort(first[1:])) + 1  # by where an object begins
        return np.split(np.concatenate([[0], ranks])[numbers], starts[1:-1])

    def _compare(self, z: int, before: np.ndarray, other: int, labels: np.ndarray) -> None:
        """Keeps the overlaps of two slices' cells, px, if they are more than chance."""
        areas = self.areas[z], self.areas[other]
        table, turned = (_overlap(one, labels) for one in (before, before[::-1, ::-1]))
        if _agreement(table, *areas) - _agreement(turned, *areas) > MIN_GAIN:
            self.overlaps[z, other] = table


def _overlap(one: np.ndarray, other: np.ndarray) -> sparse.coo_array:
    """Returns how many px each cell of one slice shares with each of another."""
    both = (one > 0) & (other > 0)
    pixels = np.ones(np.count_nonzero(both)), (one[both], other[both])
    shape = int(one.max()) + 1, int(other.max()) + 1
    table = sparse.coo_array(pixels, shape)
    table.sum_duplicates()
    return table


def _agreement(table: sparse.coo_array, areas: np.ndarray, others: np.ndarray) -> float:
    """Returns how well the cells of two slices match, from 0 to 1: their mean IoU by overlap."""
    one, two = table.coords
    iou = table.data / (areas[one] + others[two] - table.data)
    best = (iou == _highest(iou, one)) & (iou == _highest(iou, two))
    return float((table.data * iou)[best].sum() / max(table.data.sum(), 1))


def _match(
    slices: Sequence[tuple], areas: np.ndarray, linked: np.ndarray, min_iou: float
) -> Iterator[np.ndarray]:
    """Yields the pairs, (2, pairs), of cells that are each other's best match; notes them.

    Those that are linked already, on the side in question, are left out.
    """
    for one, two, overlap in slices:
        iou = overlap / (areas[one] + areas[two] - overlap)
        iou[linked[1, one] | linked[0, two]] = 0
        best = (iou == _highest(iou, one)) & (iou == _highest(iou, two)) & (iou > min_iou)
        pairs = np.stack([one[best], two[best]])
        linked[1, pairs[0]] = linked[0, pairs[1]] = True
        yield pairs


def _join_ends(
    slices: Sequence[tuple], areas: np.ndarray, linked: np.ndarray, tracks: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the pairs, (2, 1), of cells that join an object's better end to another; notes them.

    `tracks` are the objects so far, by cell.
    """
    ends = []
    for one, two, overlap in slices:
        for side, ending, holding in ((1, one, two), (0, two, one)):
            share, ratio = overlap / areas[ending], areas[ending] / areas[holding]
            good = ~linked[side, ending] & (share >= MIN_SHARE)
            good &= (areas[ending] >= MIN_AREA) & (ratio >= MIN_RATIO)
            found = zip(share[good], ending[good], holding[good], strict=True)
            ends += [(*end, side) for end in found]
    done = set()
    for _, ending, holding, side in sorted(ends, reverse=True):
        if tracks[ending] not in done:
            done.add(tracks[ending])
            linked[side, ending] = True
            yield np.array([[ending], [holding]])


def _highest(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Returns, for each value, the highest one of its group."""
    highest = np.zeros(int(groups.max(initial=0)) + 1)
    np.maximum.at(highest, groups, values)
    return highest[groups]


def _number(joined: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Returns the connected component of each of so many cells, of which pairs are joined."""
    pairs = np.concatenate(joined, 1)
    graph = sparse.coo_array((np.ones(pairs.shape[1]), tuple(pairs)), (count, count))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)
