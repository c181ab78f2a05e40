"""Basins of P(interior), the borders between them, and which of them make up a cell."""

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special
from scipy.cluster.hierarchy import DisjointSet
from skimage.measure import label as connected_components
from skimage.segmentation import watershed

SMOOTHING, MIN_SEED_DISTANCE = 1.5, 6  # px: of the distance to membrane, between two seeds
P_EPS = 1e-4  # a border's log-odds count no further than those of this probability
ADJACENT = (  # each pixel and the one above; each pixel and the one on its left
    (np.s_[1:], np.s_[:-1]),
    (np.s_[:, 1:], np.s_[:, :-1]),
)


@dataclass(frozen=True)
class Borders:
    """The borders between the basins of a map, an entry for each two that touch.

    Args:
        basins: how many basins there are, and one more: they are numbered from 1.
        pairs: int64 (borders, 2), the two basins' numbers.
        odds: float64 (borders,), the sum of the log-odds of "interior" along each.
        lengths: int64 (borders,), px.
        line: int64 (2, pixels): the flat indices of the pixels that draw the borders' lines, where
            both sides are interior, and the border of each.
    """

    basins: int
    pairs: np.ndarray
    odds: np.ndarray
    lengths: np.ndarray
    line: np.ndarray


def find_basins(mask: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Cuts a map into basins, one about each spot far from membrane.

    They meet where P is lowest. Both arrays are (height, width), the mask with some interior and
    some membrane.

    Returns:
        int32 (height, width), numbered from 1.
    """
    steps = ndimage.distance_transform_cdt(mask, "taxicab").astype(np.float32)
    depth = ndimage.gaussian_filter(steps, SMOOTHING)
    peaks = mask & (depth == ndimage.maximum_filter(depth, 2 * MIN_SEED_DISTANCE + 1))
    seeds = connected_components(peaks, connectivity=2)
    return watershed(-probability, seeds, connectivity=1)


def measure_borders(basins: np.ndarray, mask: np.ndarray, probability: np.ndarray) -> Borders:
    """Measures the borders of the basins of `find_basins`; all arrays are (height, width)."""
    keys, values, pixels, inner = [], [], [], []
    count, index = int(basins.max()) + 1, np.arange(basins.size).reshape(basins.shape)
    for here, there in ADJACENT:
        border = basins[here] != basins[there]
        pair = np.stack([basins[here][border], basins[there][border]]).astype(np.int64)
        one, other = probability[here][border], probability[there][border]
        keys.append(pair.min(0) * count + pair.max(0))
        values.append(np.minimum(one, other))
        pixels.append(np.where(one <= other, index[here][border], index[there][border]))
        inner.append((mask[here] & mask[there])[border])
    odds = special.logit(np.clip(np.concatenate(values), P_EPS, 1 - P_EPS))
    keys, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    return Borders(
        basins=count,
        pairs=np.stack(np.divmod(keys, count), 1),
        odds=np.bincount(inverse, odds),
        lengths=np.bincount(inverse),
        line=np.stack([np.concatenate(pixels), inverse])[:, np.concatenate(inner)],
    )


def agglomerate(
    borders: Borders,
    threshold: float,
    evidence: np.ndarray | float = 0.0,
    apart: tuple[int, int] | None = None,
) -> np.ndarray:
    """Returns the cell of each basin: mean boundary agglomeration up to a threshold.

    The two neighbours with the highest mean log-odds of "interior" along their border are joined,
    again and again, borders that come to lie between the same two counting as one, while that mean
    exceeds the threshold's.

    Args:
        borders: of `measure_borders`.
        threshold: on P(interior), in [0, 1).
        evidence: log-odds (borders,) that are added to each border's mean.
        apart: two basins that never come to lie in one cell.

    Returns:
        int (basins + 1,), by the basin's number.
    """
    threshold = special.logit(threshold)
    sums = (borders.odds + evidence * borders.lengths).tolist()
    neighbours = [{} for _ in range(borders.basins)]  # → (sum of log-odds, length)
    queue = []
    pairs, lengths = borders.pairs.tolist(), borders.lengths.tolist()
    for (one, other), total, length in zip(pairs, sums, lengths, strict=True):
        neighbours[one][other] = neighbours[other][one] = (total, length)
        queue.append((-total / length, one, other))
    heapq.heapify(queue)
    cells = DisjointSet(range(borders.basins))
    while queue and -queue[0][0] > threshold:
        odds, one, other = heapq.heappop(queue)
        total, length = neighbours[one].get(other, (np.inf, 1))
        if -total / length != odds:
            continue  # joined, or its border has changed, since this was queued
        if apart and {cells[one], cells[other]} == {cells[basin] for basin in apart}:
            continue
        cells.merge(one, other)
        if len(neighbours[one]) < len(neighbours[other]):
            one, other = other, one
        del neighbours[one][other]
        for third, (more, extra) in neighbours[other].items():
            if third != one:
                del neighbours[third][other]
                total, length = neighbours[one].get(third, (0.0, 0))
                both = total + more, length + extra
                neighbours[one][third] = neighbours[third][one] = both
                heapq.heappush(queue, (-both[0] / both[1], one, third))
        neighbours[other] = {}
    return np.array([cells[basin] for basin in range(borders.basins)])
