"""P(interior) → mask → numbered cells: whole borders decide, not single pixels."""

import heapq
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage, sparse, special
from skimage.measure import label as connected_components
from skimage.measure import regionprops_table
from skimage.segmentation import relabel_sequential, watershed

from areas import Area, shape_of, shift, whole, widen

WINDOW, WINDOW_HALO = 1024, 128  # px, of what one mask is made from
UNDECIDED = 0.5  # a pixel above is rather interior than membrane
SMOOTHING, APART = 1.5, 6  # px: of the distance to membrane, and between two basins' first spots
SPECK = 32  # px; what is smaller is not labelled as a cell
CERTAIN = 1e-4  # a border's log-odds count no further than those of this probability
NEIGHBOURS = (  # each pixel and the one above; each pixel and the one on its left
    (np.s_[1:], np.s_[:-1]),
    (np.s_[:, 1:], np.s_[:, :-1]),
)


def to_mask(probability: np.ndarray, threshold: float, wanted: Area | None = None) -> np.ndarray:
    """Turns P(interior) into a mask: P > 0.5, less one-pixel lines between cells that touch.

    A plain threshold joins two cells through one missing membrane pixel. Here a whole border has to
    speak. The map is cut into basins, one about each spot far from any P below 0.5, by a watershed
    whose basins meet where P is lowest. Then the two neighbours with the highest mean log-odds of
    "interior" along their border are joined, again and again, borders that come to lie between the
    same two counting as one (mean boundary agglomeration), while that mean exceeds the threshold's.
    So a gap is closed when the rest of its membrane is there, and the mask hardly depends on the
    threshold. A slice beyond 1024 px is judged in overlapping windows of that size: memory and time
    stay in proportion, and a border counts as far as its window shows it.

    Args:
        probability: P(interior) in [0, 1], float (height, width).
        threshold: on P(interior), in (0, 1).
        wanted: rows and columns of the map that a mask is wanted of; None for all. Where the map is
            a part of a slice's, these are one of `cut_slice`'s areas and the rest is `mask_needs`.

    Returns:
        bool, of the shape of what is wanted, True = cell interior.
    """
    wanted = wanted or whole(probability.shape)
    mask = np.empty(shape_of(wanted), bool)
    for core, window, inside in _cut_windows(probability.shape, wanted):
        part = probability[window]
        mask[core] = _draw_mask(part, _find_basins(part), threshold)[inside]
    return mask


def to_labels(probability: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Numbers the cells of a mask, and lets them grow over the membrane.

    They meet where P(interior) is lowest, in a line of one pixel. Specks below 32 px are no cells;
    their neighbours grow over them. Cross-validated, V_rand is 0.001 and V_info 0.002 above that of
    the mask (benchmarks/quality.md).

    Args:
        probability: P(interior), float (height, width).
        mask: bool (height, width), True = interior, of the same slice.

    Returns:
        int32 (height, width): 0 on the lines, else the cell's number from 1. All 0 where there is
        no cell.
    """
    cells = connected_components(mask, connectivity=1)
    specks = np.bincount(cells.ravel()) < SPECK
    cells, _, _ = relabel_sequential(np.where(specks[cells], 0, cells))
    return watershed(-probability, cells, connectivity=1, watershed_line=True)


def measure_cells(labels: np.ndarray, probability: np.ndarray) -> dict[str, np.ndarray]:
    """Measures the cells of `to_labels`.

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


def make_masker(probability: np.ndarray) -> Callable[[float], np.ndarray]:
    """Returns `to_mask` of one map as a function of the threshold; a further one costs little."""
    parts = [
        (core, inside, probability[window], _find_basins(probability[window]))
        for core, window, inside in _cut_windows(probability.shape, whole(probability.shape))
    ]

    def to_mask_at(threshold: float) -> np.ndarray:
        mask = np.empty(probability.shape, bool)
        for core, inside, part, basins in parts:
            mask[core] = _draw_mask(part, basins, threshold)[inside]
        return mask

    return to_mask_at


def _cut_windows(shape: tuple[int, int], wanted: Area) -> Iterator[tuple[Area, Area, Area]]:
    """Yields parts of a mask: where in it they go, what they are made from, and where in that."""
    rows, cols = wanted
    for top in range(rows.start, rows.stop, WINDOW):
        for left in range(cols.start, cols.stop, WINDOW):
            core = (
                slice(top, min(top + WINDOW, rows.stop)),
                slice(left, min(left + WINDOW, cols.stop)),
            )
            window = widen(core, WINDOW_HALO, shape)
            yield shift(core, wanted), window, shift(core, window)


def _find_basins(probability: np.ndarray) -> np.ndarray | None:
    """Returns the basins, numbered from 1, of a part that is looked at as a whole, if any."""
    mask = probability > UNDECIDED
    if mask.all() or not mask.any():
        return None
    steps = ndimage.distance_transform_cdt(mask, "taxicab").astype(np.float32)
    depth = ndimage.gaussian_filter(steps, SMOOTHING)
    peaks = mask & (depth == ndimage.maximum_filter(depth, 2 * APART + 1))
    seeds = connected_components(peaks, connectivity=2)
    return watershed(-probability, seeds, connectivity=1)


def _draw_mask(probability: np.ndarray, basins: np.ndarray | None, threshold: float) -> np.ndarray:
    """Returns the mask of a part whose basins are known."""
    mask = probability > UNDECIDED
    if basins is None:
        return mask
    cells = _join_basins(basins, probability, special.logit(threshold))[basins]
    line = np.zeros_like(mask)
    for here, there in NEIGHBOURS:
        apart = (cells[here] != cells[there]) & mask[here] & mask[there]
        darker = probability[here] <= probability[there]
        line[here] |= apart & darker
        line[there] |= apart & ~darker
    return mask & ~line


def _join_basins(basins: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the cell of each basin; neighbours above the threshold, in log-odds, are one."""
    keys, values = [], []
    count = int(basins.max()) + 1
    for here, there in NEIGHBOURS:
        border = basins[here] != basins[there]
        pair = np.stack([basins[here][border], basins[there][border]]).astype(np.int64)
        keys.append(pair.min(0) * count + pair.max(0))
        values.append(np.minimum(probability[here][border], probability[there][border]))
    odds = special.logit(np.clip(np.concatenate(values), CERTAIN, 1 - CERTAIN))
    keys, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    sums, lengths = np.bincount(inverse, odds).tolist(), np.bincount(inverse).tolist()

    borders = [{} for _ in range(count)]  # of each basin: neighbour → (sum of log-odds, length)
    queue = []
    for key, total, length in zip(keys.tolist(), sums, lengths, strict=True):
        one, other = divmod(key, count)
        borders[one][other] = borders[other][one] = (total, length)
        queue.append((-total / length, one, other))
    heapq.heapify(queue)
    joined = []
    while queue and -queue[0][0] > threshold:
        odds, one, other = heapq.heappop(queue)
        total, length = borders[one].get(other, (np.inf, 1))
        if -total / length != odds:
            continue  # joined, or its border has changed, since this was queued
        joined.append((one, other))
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
    first, second = np.array(joined, np.int64).reshape(-1, 2).T
    graph = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]
