"""Slice → P(interior): exact tiles, averaged flips.

A pixel of the output depends on the input within the network's radius only, and on where it lies
in the network's stride. So tiles that carry a halo of at least the radius, and start on the
stride's grid, give what the whole slice gives; nothing is blended. Beyond the slice's own ends lies
what the network has always seen beyond a tile: nothing, its zero padding.
"""

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import islice, product
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from areas import Area, intersect, shape_of, shift, whole
from grey import resize
from quick import quicken
from slices import UserError, first_line
from unet import stride_and_radius

MODEL_BYTES = 2**30  # of a model, unpacked; beyond is no network that this program can use
TILE = (256, 1024)  # px, rows and columns; oneDNN takes 1.2 times as long where rows have 512
TURNS = tuple((turns, flip) for turns in range(4) for flip in (1, -1))  # first: as it is


def load_network(path: Path) -> keras.Model:
    """Loads a saved network, for prediction only.

    Raises:
        UserError: the file is missing, damaged, too large, or not a network of known layers from
            one channel to P(interior).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such model; name a run's folder or a .keras file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MODEL_BYTES:
                raise UserError(
                    f"{path}: {size:,} bytes when unpacked, over {MODEL_BYTES:,}; is it a model?"
                )
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except UserError:
        raise
    except Exception:  # zipfile, zlib, json: anything
        raise UserError(
            f"{path}: no .keras file, or one that was cut short; get it again"
        ) from None
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # h5py, Keras: anything
        raise UserError(
            f"{path}: saved by Keras {version}, cannot be loaded by {keras.__version__} "
            f"({first_line(error)})"
        ) from None
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        raise UserError(f"{path}: a {type(model).__name__}; expected a functional Keras model")
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (model.inputs, model.outputs)]
    if shapes != [[(None, None, None, 1)]] * 2:
        raise UserError(
            f"{path}: its input and output are {shapes[0]} and {shapes[1]}; expected one image of "
            "any size, (None, None, None, 1), and P(interior) of the same shape"
        )
    if getattr(model.layers[-1], "activation", None) is not keras.activations.sigmoid:
        raise UserError(f"{path}: its last layer has no sigmoid, so it gives no P(interior)")
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise UserError(f"{path}: some of its weights are no numbers; train it again")
    try:
        stride_and_radius(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return model


def stride_and_halo(network: keras.Model) -> tuple[int, int]:
    """Returns of what tiles must start on multiples, and what they carry around them, in px."""
    stride, radius = stride_and_radius(network)
    return stride, -(-radius // stride) * stride


class Predictor:
    """Predicts slices of any size with one network; may be called from several threads at once.

    Args:
        network: as `unet.build_unet` makes, in any dtype, with the weights it has now.
        tta: whether to average over the 8 flips and rotations of each tile.
        tile: px, rows and columns of the largest tile, without its halo; where a slice is
            narrower, a tile has as many more rows, so 512x512 is one. Memory grows with the pixels.
        workers: how many tiles, or flips of one, are computed at the same time.
    """

    def __init__(
        self,
        network: keras.Model,
        tta: bool = False,
        tile: tuple[int, int] = TILE,
        workers: int = 1,
    ):
        self.stride, self.halo = stride_and_halo(network)
        self.tile = tile
        self.turns = TURNS if tta else TURNS[:1]
        self.pool = ThreadPoolExecutor(workers)
        self.derive, compute = quicken(network)
        self.weights = tf.nest.map_structure(tf.Variable, self.derive())
        self.predict_batch: Callable = tf.function(
            lambda images: compute(images, self.weights),
            input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)],
        )

    def refresh(self) -> None:
        """Takes the weights that the network has now."""
        tf.nest.map_structure(lambda old, new: old.assign(new), self.weights, self.derive())

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
        probability = np.empty(shape_of(area), np.float32)
        read = self.needs(area, shape)
        tiles = list(product(*self._cut(area, shape)))

        def predict(job):
            ((top, tall), (left, wide)), (turns, flip) = job
            tile = image[_lines(tall - read[0].start)][:, _lines(wide - read[1].start)]
            tile = np.rot90((tile if normalise is None else normalise(tile))[:, ::flip], turns)
            output = self.predict_batch(np.ascontiguousarray(tile)[None, :, :, None])
            output = np.rot90(output.numpy()[0, :, :, 0], -turns)[:, ::flip]
            return output[top.start - tall[0] :, left.start - wide[0] :]

        jobs = list(product(tiles, self.turns))
        alone = len(jobs) == 1  # then whoever asks computes: to hand it on takes its time
        outputs = map(predict, jobs) if alone else self.pool.map(predict, jobs)
        for (top, _), (left, _) in tiles:
            total = reduce(np.add, islice(outputs, len(self.turns)))  # one order: same to the bit
            core = intersect((top, left), area)
            total = total[shift(core, (top, left))]
            np.divide(total, len(self.turns), out=probability[shift(core, area)])
        return probability

    def needs(self, area: Area, shape: tuple[int, int]) -> Area:
        """Returns what must be read of a slice of this shape to predict an area of it."""
        lines = (np.concatenate([seen for _, seen in cuts]) for cuts in self._cut(area, shape))
        return tuple(slice(int(line.min()), int(line.max()) + 1) for line in lines)

    def stop(self) -> None:
        """Computes no further tile; a slice that has some left ends with `CancelledError`."""
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _cut(self, area: Area, shape: tuple[int, int]) -> Iterator[list[tuple[slice, np.ndarray]]]:
        """Yields the rows, then the columns, of the tiles that an area meets.

        Of each: its own pixels, and what it sees. The tiles are equal, so few shapes serve a slice.
        They end where the slice ends, as those of the training do, but for the few pixels to the
        next multiple of the stride: reflected ones.
        """
        wide = self._divide(shape[1], self.tile[1])
        tall = self._divide(shape[0], math.prod(self.tile) // wide)
        for line, side, size in zip(area, shape, (tall, wide), strict=True):
            end = -(-side // self.stride) * self.stride
            cuts = []
            for start in range(line.start // size * size, line.stop, size):
                stop = min(start + size, side)
                seen = np.arange(max(0, start - self.halo), min(start + size + self.halo, end))
                seen = np.where(seen < side, seen, np.maximum(2 * side - 2 - seen, 0))
                cuts.append((slice(start, stop), seen))
            yield cuts

    def _divide(self, side: int, most: int) -> int:
        """Returns the size of a side's equal parts: `most` px or less, a multiple of the stride."""
        most = max(most // self.stride, 1) * self.stride
        count = -(-side // most)
        return -(-side // (count * self.stride)) * self.stride


def _lines(numbers: np.ndarray) -> slice | np.ndarray:
    """Returns the same lines as a slice where they follow each other: taking these copies none."""
    first, last = int(numbers[0]), int(numbers[-1])
    return slice(first, last + 1) if last - first == len(numbers) - 1 else numbers
