"""Slice → P(interior) → mask: exact tiles, averaged flips, whole borders.

A pixel of the output depends on the input within the network's radius only, and on where it lies
in the network's stride. So tiles that carry a halo of at least the radius, and start on the
stride's grid, give what the whole slice gives; nothing is blended. Beyond the slice's own ends lies
what the network has always seen beyond a tile: nothing, its zero padding.
"""

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage, sparse, special
from skimage.measure import label as connected_components
from skimage.measure import regionprops_table
from skimage.segmentation import watershed

from grey import resize
from slices import UserError, first_line
from unet import quicken, stride_and_radius

TILE = 512  # px; slices up to this size are one tile
TURNS = tuple((turns, flip) for turns in range(4) for flip in (1, -1))  # first: as it is
WINDOW, WINDOW_HALO = 1024, 128  # px, of what one mask is made from
UNDECIDED = 0.5  # a pixel above is rather interior than membrane
SMOOTHING, APART = 1.5, 6  # px: of the distance to membrane, and between two basins' first spots
SPECK = 32  # px; what is smaller is not labelled as a cell
CERTAIN = 1e-4  # a border's log-odds count no further than those of this probability
Area = tuple[slice, slice]  # rows and columns, both with start and stop
NEIGHBOURS = (  # each pixel and the one above; each pixel and the one on its left
    (np.s_[1:], np.s_[:-1]),
    (np.s_[:, 1:], np.s_[:, :-1]),
)


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


def load_network(path: Path) -> keras.Model:
    """Loads a saved network, for prediction only.

    Raises:
        UserError: the file is missing, damaged, or not a network from one channel to P(interior).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model; name a run's folder or a .keras file")
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # zipfile, h5py, Keras: anything
        raise UserError(
            f"{path}: cannot be loaded as a Keras model ({first_line(error)})"
        ) from None
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (model.inputs, model.outputs)]
    if shapes != [[(None, None, None, 1)]] * 2:
        raise UserError(
            f"{path}: its input and output are {shapes[0]} and {shapes[1]}; expected one image of "
            "any size, (None, None, None, 1), and P(interior) of the same shape"
        )
    return model


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
    mask = np.empty([line.stop - line.start for line in wanted], bool)
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
    sizes = np.bincount(cells.ravel())
    kept = np.flatnonzero(sizes >= SPECK)
    numbers = np.zeros(len(sizes), np.int32)
    numbers[kept[kept > 0]] = np.arange(1, np.count_nonzero(kept) + 1)
    return watershed(-probability, numbers[cells], connectivity=1, watershed_line=True)


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


class Predictor:
    """Predicts slices of any size with one network; may be called from several threads at once.

    Args:
        network: as `unet.build_unet` makes, in any dtype; later changes of its weights count.
        tta: whether to average over the 8 flips and rotations of each tile.
        tile: px, the largest side of a tile without its halo; memory grows with its square.
        workers: how many tiles, or flips of one, are computed at the same time.
    """

    def __init__(self, network: keras.Model, tta: bool = False, tile: int = TILE, workers: int = 1):
        self.stride, radius = stride_and_radius(network)
        self.halo = -(-radius // self.stride) * self.stride
        self.tile = max(tile // self.stride, 1) * self.stride
        self.turns = TURNS if tta else TURNS[:1]
        self.pool = ThreadPoolExecutor(workers)
        self.predict_batch: Callable = tf.function(
            quicken(network), input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)]
        )

    def __call__(
        self, image: np.ndarray, scale: float = 1.0, normalise: Callable | None = None
    ) -> np.ndarray:
        """Returns P(interior) of a slice.

        Args:
            image: (height, width), any size from 1x1; float32 as `grey.normalise` gives, or of any
                dtype with `normalise`.
            scale: what to multiply its sides by, for the network to see it at the pixel size it
                knows.
            normalise: what to do to the pixels of each tile, so that a huge slice need not be
                float as a whole.

        Returns:
            float32 (height, width) in [0, 1], of the image's own size.
        """
        if scale != 1.0:
            image = image if normalise is None else normalise(image)
            shape = tuple(max(1, round(side * scale)) for side in image.shape)
            return np.clip(resize(self(resize(image, shape)), image.shape), 0.0, 1.0)
        return self.predict_area(image, whole(image.shape), image.shape, normalise)

    def predict_area(
        self,
        image: np.ndarray,
        area: Area,
        shape: tuple[int, int],
        normalise: Callable | None = None,
    ) -> np.ndarray:
        """Returns P(interior) of an area of a slice, to the bit what the whole slice has there.

        Args:
            image: the rows and columns of the slice that `needs(area, shape)` names.
            area: what is wanted.
            shape: of the whole slice.
            normalise: as for a whole slice.

        Returns:
            float32 (height, width) of the area.
        """
        probability = np.empty([line.stop - line.start for line in area], np.float32)
        read = self.needs(area, shape)
        rows, cols = (self._cut(*side) for side in zip(area, shape, strict=True))
        tiles = [(row, col) for row in rows for col in cols]

        def predict(job):
            ((top, tall), (left, wide)), (turns, flip) = job
            tile = image[np.ix_(tall - read[0].start, wide - read[1].start)]
            tile = np.rot90((tile if normalise is None else normalise(tile))[:, ::flip], turns)
            output = self.predict_batch(np.ascontiguousarray(tile)[None, :, :, None])
            output = np.rot90(output.numpy()[0, :, :, 0], -turns)[:, ::flip]
            return output[top.start - tall[0] :, left.start - wide[0] :]

        jobs = ((tile, turn) for tile in tiles for turn in self.turns)
        outputs = self.pool.map(predict, jobs)
        for (top, _), (left, _) in tiles:
            total = sum(next(outputs) for _ in self.turns)  # in one order: the same to the bit
            core = _intersect((top, left), area)
            probability[shift(core, area)] = total[shift(core, (top, left))] / len(self.turns)
        return probability

    def needs(self, area: Area, shape: tuple[int, int]) -> Area:
        """Returns what must be read of a slice of this shape to predict an area of it."""
        lines = (
            np.concatenate([seen for _, seen in self._cut(*side)])
            for side in zip(area, shape, strict=True)
        )
        return tuple(slice(int(line.min()), int(line.max()) + 1) for line in lines)

    def stop(self) -> None:
        """Computes no further tile; a slice in flight ends with `CancelledError`."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _cut(self, line: slice, side: int) -> list[tuple[slice, np.ndarray]]:
        """Returns the tiles that a line of a side meets: each one's pixels, and what it sees.

        The tiles are equal, so few shapes serve a slice. They end where the slice ends, as those of
        the training do, but for the few pixels to the next multiple of the stride: reflected ones.
        """
        count = -(-side // self.tile)
        size = -(-side // (count * self.stride)) * self.stride
        end = -(-side // self.stride) * self.stride
        cuts = []
        for start in range(line.start // size * size, line.stop, size):
            stop = min(start + size, side)
            seen = np.arange(max(0, start - self.halo), min(start + size + self.halo, end))
            seen = np.where(seen < side, seen, np.maximum(2 * side - 2 - seen, 0))
            cuts.append((slice(start, stop), seen))
        return cuts


def _intersect(one: Area, other: Area) -> Area:
    return tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
