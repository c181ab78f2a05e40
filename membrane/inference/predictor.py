"""Slice → P(interior): exact tiles, averaged flips, from several threads at once."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import chain, groupby, islice, product

import keras
import numpy as np
import tensorflow as tf

from membrane.errors import UserError
from membrane.inference.fused_unet import fuse
from membrane.inference.precision import clone
from membrane.inference.receptive_field import stride_and_halo
from membrane.inference.tiling import Region, Tiling, full_region, intersect, relative_to, shape_of
from membrane.io.normalization import resize, scale_shape

TILE = (256, 1024)  # px, rows and columns; oneDNN takes 1.2 times as long where rows have 512
GPU_TILE, GPU_BATCH = (512, 512), 8  # of which all flips go to a GPU at once,
GPU_STREAMS = 2  # while the next are cut
BATCHES_IN_FLIGHT = 8  # in which tiles of one shape are looked for
D4 = tuple((turns, flip) for turns in range(4) for flip in (1, -1))  # the 8; first: as it is


class Predictor:
    """Predicts slices of any size with one network; may be called from several threads at once.

    Args:
        network: functional, from one channel to P(interior), in any dtype, with the weights it has
            now.
        tta: test-time augmentation: whether to average over the 8 flips and rotations of each tile.
        tile: px, rows and columns of the largest tile, as `Tiling` takes it; 512x512 is one.
        workers: how many batches are computed at the same time; on a GPU no more than two.
        batch: how many tiles, or flips of one, are computed at once, where they have one shape.
    """

    def __init__(
        self,
        network: keras.Model,
        tta: bool = False,
        tile: tuple[int, int] | None = None,
        workers: int = 1,
        batch: int | None = None,
    ):
        self.on_gpu = bool(tf.config.list_physical_devices("GPU"))
        self.tiling = Tiling(*stride_and_halo(network), tile or (GPU_TILE if self.on_gpu else TILE))
        self.network = network
        self.transforms = D4 if tta else D4[:1]
        self.batch = batch or (GPU_BATCH if self.on_gpu else 1)
        self.pool = ThreadPoolExecutor(min(workers, GPU_STREAMS) if self.on_gpu else workers)
        fused = fuse(network)
        self.fused_weights = fused.weights
        self.weights = tf.nest.map_structure(tf.Variable, fused.weights())
        self.predict_batch = _compile(lambda images: fused.forward(images, self.weights))

    @property
    def sees_whole_slices(self) -> bool:
        """Whether a pixel's output depends on all of its slice, so that no tile can be cut."""
        return self.tiling.halo is None

    def refresh(self) -> None:
        """Takes the weights that the network has now."""
        tf.nest.map_structure(lambda old, new: old.assign(new), self.weights, self.fused_weights())

    def __call__(
        self,
        image: np.ndarray,
        scale: tuple[float, float] = (1.0, 1.0),
        normalize: Callable | None = None,
    ) -> np.ndarray:
        """Returns P(interior) of a slice, float32 (height, width) in [0, 1], of the image's size.

        Args:
            image: (height, width), any size from 1x1; float32 as `normalization.normalize` gives,
                or of any dtype with `normalize`.
            scale: what to multiply its height and width by, for the network to see it at the pixel
                size it is trained at.
            normalize: what to do to the pixels of each tile, so that a huge slice need not be
                float as a whole.

        Raises:
            UserError: the network must see all of a slice at once, and memory forbids it.
        """
        if scale != (1.0, 1.0):
            image = image if normalize is None else normalize(image)
            shape = scale_shape(image.shape, scale)
            return np.clip(resize(self(resize(image, shape)), image.shape), 0.0, 1.0)
        return self.predict_region(image, full_region(image.shape), image.shape, normalize)

    def predict_region(
        self,
        image: np.ndarray,
        region: Region,
        shape: tuple[int, int],
        normalize: Callable | None = None,
    ) -> np.ndarray:
        """Returns P(interior) of a region, float32, to the bit what the whole slice has there.

        Args:
            image: the rows and columns of the slice that `tiling.input_region` names.
            region: what is wanted.
            shape: of the whole slice.
            normalize: as for a whole slice.
        """
        if self.sees_whole_slices:
            self._check_memory(shape)
        probability = np.empty(shape_of(region), np.float32)
        read = self.tiling.input_region(region, shape)
        tiles = list(product(*self.tiling.tile_grid(region, shape)))

        def cut(job):
            ((_, seen_rows), (_, seen_cols)), (turns, flip) = job
            tile = image[_lines(seen_rows - read[0].start)][:, _lines(seen_cols - read[1].start)]
            return np.rot90((tile if normalize is None else normalize(tile))[:, ::flip], turns)

        def predict(jobs):
            maps, found = self._compute(np.stack(list(map(cut, jobs)))[..., None])[..., 0], []
            for job, output in zip(jobs, maps, strict=True):
                ((rows, seen_rows), (cols, seen_cols)), (turns, flip) = job
                output = np.rot90(output, -turns)[:, ::flip]
                found.append(output[rows.start - seen_rows[0] :, cols.start - seen_cols[0] :])
            return found

        jobs = list(product(tiles, self.transforms))
        if len(jobs) == 1 and not self.on_gpu:  # to hand it on would take its time
            outputs = iter(predict(jobs))
        elif self.batch == 1:
            outputs = chain.from_iterable(self.pool.map(predict, ([job] for job in jobs)))
        else:
            windows = _batched(jobs, BATCHES_IN_FLIGHT * self.batch)
            outputs = chain.from_iterable(self._predict_by_shape(predict, one) for one in windows)
        for (rows, _), (cols, _) in tiles:
            total = reduce(np.add, islice(outputs, len(self.transforms)))  # one order: to the bit
            core = intersect((rows, cols), region)
            total = total[relative_to(core, (rows, cols))]
            np.divide(total, len(self.transforms), out=probability[relative_to(core, region)])
        return probability

    def stop(self) -> None:
        """Computes no further tile; a slice that has some left ends with `CancelledError`."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _predict_by_shape(self, predict: Callable, jobs: Sequence) -> list[np.ndarray]:
        """Returns `predict` of jobs, in order, those whose tiles have one shape in batches."""

        def shape(number):
            ((_, rows), (_, cols)), (turns, _) = jobs[number]
            return (len(rows), len(cols))[:: -1 if turns % 2 else 1]

        found = {}
        groups = groupby(sorted(range(len(jobs)), key=shape), shape)
        batches = [batch for _, same in groups for batch in _batched(same, self.batch)]
        work = ([jobs[number] for number in batch] for batch in batches)
        for batch, outputs in zip(batches, self.pool.map(predict, work), strict=True):
            found |= dict(zip(batch, outputs, strict=True))
        return [found[number] for number in range(len(jobs))]

    def _compute(self, tiles: np.ndarray) -> np.ndarray:
        """Returns P(interior) of tiles, float32 (batch, height, width, 1) both.

        Where the device has not the memory for a batch, this and the next ones are halved.
        """
        try:
            return self.predict_batch(tiles).numpy()
        except tf.errors.ResourceExhaustedError:
            if len(tiles) == 1:
                raise
            half = -(-len(tiles) // 2)
            if self.batch > half:
                self.batch = half
                print(f"Note: {len(tiles)} tiles at once exceed the device's memory; now {half}")
        return np.concatenate([self._compute(part) for part in (tiles[:half], tiles[half:])])

    def _check_memory(self, shape: tuple[int, int]) -> None:
        """Refuses a slice that memory cannot hold as a whole, rather than be killed by it."""
        if not hasattr(os, "sysconf"):
            return
        side = 256  # px, that the outputs of all layers, float32, are counted on
        fixed = clone(self.network, input_tensors=keras.Input((side, side, 1)))
        outputs = keras.tree.flatten([layer.output for layer in fixed.layers])
        per_pixel = 4 * sum(math.prod(output.shape[1:]) for output in outputs) / side**2
        wanted = per_pixel / 2 * math.prod(shape)  # not all at one time
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if wanted > free:
            raise UserError(
                f"a slice of {shape[1]}x{shape[0]} px: this network must see it as a whole, which "
                f"takes about {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} are free; cut the "
                "slice into smaller ones"
            )


def _compile(function: Callable) -> Callable:
    """Returns a function of float32 (batch, height, width, 1), compiled once for all sizes.

    Where a layer takes no unknown size, as Keras' bilinear up-sampling does not, for each size.
    """
    spec = tf.TensorSpec((None, None, None, 1), tf.float32)
    compiled = tf.function(function, input_signature=[spec], autograph=False)
    try:
        compiled.get_concrete_function()
    except Exception:  # Keras, TensorFlow: anything
        return tf.function(function, autograph=False)
    return compiled


def _batched(jobs: Iterable, size: int) -> Iterator[tuple]:
    """Yields tuples of up to so many jobs (itertools.batched, from Python 3.12 on)."""
    jobs = iter(jobs)
    return iter(lambda: tuple(islice(jobs, size)), ())


def _lines(numbers: np.ndarray) -> slice | np.ndarray:
    """Returns the same lines as a slice where they follow each other: taking these copies none."""
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first == len(numbers) - 1 else numbers
