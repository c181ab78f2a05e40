"""Masks and numbered cells: whole borders decide what is one cell, not single pixels."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product

import numpy as np
from scipy import ndimage, special
from scipy.cluster.hierarchy import DisjointSet
from skimage.measure import label as connected_components
from skimage.measure import regionprops_table
from skimage.segmentation import relabel_sequential, watershed

from membrane.inference.tiling import Region, expand, full_region, intersect, relative_to, shape_of

WINDOW, WINDOW_HALO = 1024, 128  # px, of what one mask is made from
FOREGROUND_THRESHOLD = 0.5  # on P(interior), for a pixel whose border does not decide
SMOOTHING, MIN_SEED_DISTANCE = 1.5, 6  # px: of the distance to membrane, between two seeds
MIN_CELL_AREA = 32  # px; what is smaller is not labelled as a cell
P_EPS = 1e-4  # a border's log-odds count no further than those of this probability
NEIGHBOURS = (  # each pixel and the one above; each pixel and the one on its left
    (np.s_[1:], np.s_[:-1]),
    (np.s_[:, 1:], np.s_[:, :-1]),
)


def close_gaps(
    mask: np.ndarray, probability: np.ndarray, threshold: float, region: Region | None = None
) -> np.ndarray:
    """Draws the membrane between touching cells that single pixels of P(interior) have missed.

    A plain threshold joins two cells through one missing membrane pixel. Here a whole border has to
    speak. The map is cut into basins, one about each spot far from membrane, by a watershed whose
    basins meet where P is lowest. Then the two neighbours with the highest mean log-odds of
    "interior" along their border are joined, again and again, borders that come to lie between the
    same two counting as one (mean boundary agglomeration), while that mean exceeds the threshold's.
    Lines of one pixel are drawn between those that stay apart. So a gap is closed when the rest of
    its membrane is there, and the mask hardly depends on the threshold. A slice beyond 1024 px is
    judged in overlapping windows of that size: memory and time stay in proportion, and a border
    counts as far as its window shows it.

    Args:
        mask: bool (height, width), True = interior: `probability > FOREGROUND_THRESHOLD`.
        probability: P(interior) in [0, 1], float (height, width).
        threshold: on P(interior), in (0, 1).
        region: rows and columns that a mask is wanted of; None for all. Where the map is a part of
            a slice's, these start where a window of the slice does, and the map goes `WINDOW_HALO`
            px beyond them, as far as the slice does.

    Returns:
        bool, of the shape of what is wanted, True = cell interior.
    """
    region = region or full_region(probability.shape)
    return _close(_windows(mask, probability, region), shape_of(region), threshold)


def label_cells(
    probability: np.ndarray, mask: np.ndarray, blank: np.ndarray | None = None
) -> np.ndarray:
    """Numbers the cells of a mask, and lets them grow over the membrane.

    They meet where P(interior) is lowest, in a line of one pixel. Specks below 32 px are no cells;
    their neighbours grow over them. Cross-validated, V_rand is 0.001 and V_info 0.002 above that of
    the mask (benchmarks/quality.md).

    Args:
        probability: P(interior), float (height, width).
        mask: bool (height, width), True = interior, of the same slice.
        blank: bool (height, width), True = no tissue, where no cell grows.

    Returns:
        int32 (height, width): 0 on the lines, else the cell's number from 1. All 0 where there is
        no cell.
    """
    cells = connected_components(mask, connectivity=1)
    specks = np.bincount(cells.ravel()) < MIN_CELL_AREA
    cells, _, _ = relabel_sequential(np.where(specks[cells], 0, cells))
    tissue = None if blank is None else ~blank
    return watershed(-probability, cells, connectivity=1, mask=tissue, watershed_line=True)


def measure_cells(labels: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Measures the cells of `label_cells`.

    Returns:
        Columns of a table, a row per cell: label; area in px; y and x of the centroid, top, left,
        bottom and right of the bounding box (the last two excluded), in px from the upper left;
        and the mean of P(interior) over the cell.
    """
    properties = "label", "area", "centroid", "bbox", "intensity_mean"
    table = regionprops_table(labels, probability, properties=properties)
    names = "label", "area_px", "y", "x", "top", "left", "bottom", "right", "mean_probability"
    table["area"] = table["area"].astype(int)
    return dict(zip(names, (column.round(4) for column in table.values()), strict=True))


def precompute_segmentation(probability: np.ndarray) -> Callable[[float], np.ndarray]:
    """Returns the mask of a map as a function of the threshold; a further one costs little.

    Args:
        probability: P(interior) in [0, 1], float (height, width).
    """
    mask = probability > FOREGROUND_THRESHOLD
    parts = list(_windows(mask, probability, full_region(probability.shape)))
    return partial(_close, parts, probability.shape)


def _close(parts: Iterable[tuple], shape: tuple[int, int], threshold: float) -> np.ndarray:
    """Returns a mask, bool, of the parts that `_windows` yields."""
    closed = np.empty(shape, bool)
    for core, inside, *part in parts:
        closed[core] = _draw_lines(*part, threshold)[inside]
    return closed


def _windows(mask: np.ndarray, probability: np.ndarray, region: Region) -> Iterator[tuple]:
    """Yields parts of a mask: where in it they go, and where in the mask, map, basins of each."""
    for top, left in product(*(range(line.start, line.stop, WINDOW) for line in region)):
        core = intersect(np.s_[top : top + WINDOW, left : left + WINDOW], region)
        window = expand(core, WINDOW_HALO, probability.shape)
        part = mask[window], probability[window]
        yield relative_to(core, region), relative_to(core, window), *part, _find_basins(*part)


def _find_basins(mask: np.ndarray, probability: np.ndarray) -> np.ndarray | None:
    """Returns the basins of a window, numbered from 1; None where there is one or none."""
    if mask.all() or not mask.any():
        return None
    steps = ndimage.distance_transform_cdt(mask, "taxicab").astype(np.float32)
    depth = ndimage.gaussian_filter(steps, SMOOTHING)
    peaks = mask & (depth == ndimage.maximum_filter(depth, 2 * MIN_SEED_DISTANCE + 1))
    seeds = connected_components(peaks, connectivity=2)
    return watershed(-probability, seeds, connectivity=1)


def _draw_lines(
    mask: np.ndarray, probability: np.ndarray, basins: np.ndarray | None, threshold: float
) -> np.ndarray:
    """Returns the mask of a window whose basins are known, with lines where cells touch."""
    if basins is None:
        return mask
    cells = agglomerate(basins, probability, threshold)[basins]
    line = np.zeros_like(mask)
    for here, there in NEIGHBOURS:
        apart = (cells[here] != cells[there]) & mask[here] & mask[there]
        darker = probability[here] <= probability[there]
        line[here] |= apart & darker
        line[there] |= apart & ~darker
    return mask & ~line


def agglomerate(basins: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the cell of each basin: mean boundary agglomeration up to a threshold.

    Args:
        basins: int (height, width), numbered from 1, without membrane between them.
        probability: P(interior), float (height, width).
        threshold: on P(interior); two neighbours whose border's mean log-odds exceed its are one.

    Returns:
        int (basins + 1,), by the basin's number.
    """
    threshold = special.logit(threshold)
    keys, values = [], []
    count = int(basins.max()) + 1
    for here, there in NEIGHBOURS:
        border = basins[here] != basins[there]
        pair = np.stack([basins[here][border], basins[there][border]]).astype(np.int64)
        keys.append(pair.min(0) * count + pair.max(0))
        values.append(np.minimum(probability[here][border], probability[there][border]))
    odds = special.logit(np.clip(np.concatenate(values), P_EPS, 1 - P_EPS))
    keys, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    sums, lengths = np.bincount(inverse, odds).tolist(), np.bincount(inverse).tolist()

    borders = [{} for _ in range(count)]  # of each basin: neighbour → (sum of log-odds, length)
    queue = []
    for key, total, length in zip(keys.tolist(), sums, lengths, strict=True):
        one, other = divmod(key, count)
        borders[one][other] = borders[other][one] = (total, length)
        queue.append((-total / length, one, other))
    heapq.heapify(queue)
    cells = DisjointSet(range(count))
    while queue and -queue[0][0] > threshold:
        odds, one, other = heapq.heappop(queue)
        total, length = borders[one].get(other, (np.inf, 1))
        if -total / length != odds:
            continue  # joined, or its border has changed, since this was queued
        cells.merge(one, other)
        if len(borders[one]) < len(borders[other]):
            one, other = other, one
        del borders[one][other]
        for third, (more, extra) in borders[other].items():
            if third != one:
                del borders[third][other]
                total, length = borders[one].get(third, (0.0, 0))
                both = total + more, length + extra
                borders[one][third] = borders[third][one] = both
                heapq.heappush(queue, (-both[0] / both[1], one, third))
        borders[other] = {}
    return np.array([cells[basin] for basin in range(count)])
