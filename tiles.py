"""Random 256x256 tiles of labelled slices, cut and augmented on the training device."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from grey import MEAN

TILE = 256  # px
STEPS = 4096  # per unit of grey, of the slices kept on the device as int16 with the label
BESIDE = 8.0  # what an interior pixel's grey value is raised by while both are one number
MARGIN = 32  # px, what a deformed tile may reach beyond its slice
BENT = 1 / 3  # share of a batch that is deformed
DISPLACEMENT = 10.0  # px, standard deviation of a deformation's 5 x 5 points
CONTRAST, BRIGHTNESS = 1.25, 0.1
CURVED, GAMMA = 0.5, (0.7, 1.4)  # share of a batch, and the range of the exponent
BLURRED, BLUR = 0.25, 1.3  # share of a batch, and the largest sigma in px
NOISY, NOISE = 0.25, 0.12  # share of a batch, and the largest standard deviation


class TileSampler:
    """Cuts random 256x256 tiles and augments them, as one compiled graph on the training device.

    The slices stay on the device; a step sends it the numbers of its tiles only. The tiles are a
    function of seed and numbers, so a training can go on where it stopped. Each pixel of a tile has
    one place in the slice from which image and label are read together, so that no crop, flip,
    rotation or deformation can move one without the other.

    Args:
        images: float32 (height, width) each, normalised; sizes may differ, and be below a tile's.
        labels: bool (height, width) each, True = interior.
        seed: of all random choices.
    """

    def __init__(self, images: Sequence[np.ndarray], labels: Sequence[np.ndarray], seed: int):
        packed = [_pack(*pair) for pair in zip(images, labels, strict=True)]
        pixels = np.concatenate([pixels.ravel() for pixels in packed])
        pairs = np.stack([pixels, np.roll(pixels, -1)], axis=-1)  # each with its right neighbour
        self.pairs = tf.constant(pairs.view("<i4")[:, 0])
        self.sizes = tf.constant([pixels.shape for pixels in packed], tf.int64)
        ends = np.cumsum([pixels.size for pixels in packed])
        self.starts = tf.constant([0, *ends[:-1]], tf.int64)
        self.seed = tf.constant(seed, tf.int64)
        points = tf.eye(5)[..., None]
        self.spread = tf.image.resize(points, (TILE, 5), "bicubic")[..., 0]  # 5 points to a tile

    @tf.function(jit_compile=True)  # on a CPU, too, XLA is several times faster here
    def __call__(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the tiles of these numbers.

        What a tile shows is random, so it need not be random that the first third of a batch are
        deformed: nothing is computed in vain.

        Args:
            numbers: int64 (batch,), consecutive; the length must be static.

        Returns:
            images: float32 (batch, 256, 256, 1), about [0, 1].
            labels: float32 (batch, 256, 256, 1), 0 = membrane, 1 = interior.
        """
        count = numbers.shape[0]
        bent = max(1, round(count * BENT))
        seeds = [tf.stack([self.seed, 4 * numbers[0] + purpose]) for purpose in range(4)]
        draw = tf.random.stateless_uniform((6, count), seeds[0])
        chosen = tf.cast(draw[0] * self.sizes.shape[0], tf.int64)
        height, width = tf.unstack(tf.gather(self.sizes, chosen)[:, :, None], axis=1)
        start = tf.gather(self.starts, chosen)[:, None, None]
        rows = _draw_lines(height, draw[1], draw[2])
        cols = _draw_lines(width, draw[3], draw[4])
        swap = (draw[5] < 0.5)[:, None]  # whether rows and columns change places
        lines = rows, cols, height, width, start, swap
        moves = _draw_deformation(bent, seeds[1], self.spread)
        tiles = self._read_between(*(line[:bent] for line in lines), moves)
        tiles = tf.concat([tiles, self._read(*(line[bent:] for line in lines))], axis=0)[..., None]
        labels = tf.cast(tiles > BESIDE / 2, tf.float32)
        return _draw_microscope(tiles - BESIDE * labels, seeds[2:]), labels

    def _read(self, rows, cols, height, width, start, swap) -> tf.Tensor:
        """Returns (batch, 256, 256) where these rows and columns cross, image and label in one.

        With two tensors XLA would gather everything twice: a third of the time.
        """
        cols, rows = tf.cast(cols, tf.int64), tf.cast(rows, tf.int64) * width
        down, along = tf.where(swap, cols, rows), tf.where(swap, rows, cols)
        (grey, _), (label, _) = self._at(start + down[:, :, None] + along[:, None, :])
        return grey + BESIDE * label

    def _read_between(self, rows, cols, height, width, start, swap, moves):
        """Returns the same, read up to some pixels beside, between the slice's pixels."""
        height, width, swap = height[..., None], width[..., None], swap[..., None]
        rows = tf.where(swap, rows[:, None, :], rows[:, :, None]) + moves[0]
        cols = tf.where(swap, cols[:, :, None], cols[:, None, :]) + moves[1]
        rows = tf.clip_by_value(rows, 0.0, tf.cast(height - 2, tf.float32))
        cols = tf.clip_by_value(cols, 0.0, tf.cast(width - 2, tf.float32))
        top, left = tf.floor(rows), tf.floor(cols)
        down, right = rows - top, cols - left
        place = start + tf.cast(top, tf.int64) * width + tf.cast(left, tf.int64)
        upper, lower = self._at(place), self._at(place + width)
        grey, label = (
            (a * (1 - right) + b * right) * (1 - down) + (c * (1 - right) + d * right) * down
            for (a, b), (c, d) in zip(upper, lower, strict=True)
        )
        return grey + BESIDE * tf.round(label)

    def _at(self, places: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns images and labels of these pixels and of their right neighbours."""
        pair = tf.gather(self.pairs, places)
        halves = (tf.bitwise.left_shift(pair, 16), pair)  # moved to the top, then down: the sign
        packed = [tf.cast(tf.bitwise.right_shift(half, 16), tf.float32) for half in halves]
        levels = [tf.floor(pixel / 2) for pixel in packed]
        labels = [pixel - 2 * level for pixel, level in zip(packed, levels, strict=True)]
        return [level / STEPS for level in levels], labels


def _pack(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns int16 pixels, the label in the lowest bit, with reflected margins on all sides."""
    pixels = (np.round(image * STEPS).astype(np.int16) << 1) | label
    missing = [max(0, TILE - side) for side in image.shape]
    margins = [(MARGIN + one // 2, MARGIN + one - one // 2) for one in missing]
    return np.pad(pixels, margins, mode="reflect")


def _draw_lines(side: tf.Tensor, place: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Returns (batch, 256) rows or columns of a crop at random, in random direction."""
    room = tf.cast(side[:, 0] - 2 * MARGIN - TILE, tf.float32)
    corner = MARGIN + tf.floor(place * (room + 1))
    along = tf.range(TILE, dtype=tf.float32)
    return corner[:, None] + tf.where((flip < 0.5)[:, None], along, TILE - 1 - along)


def _draw_deformation(count: int, seed: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
    """Returns (2, batch, 256, 256) px: smooth displacements."""
    coarse = tf.random.stateless_normal((2, count, 5, 5), seed, stddev=DISPLACEMENT)
    return tf.einsum("ri,kbij,cj->kbrc", spread, coarse, spread)  # XLA has no bicubic resize


def _draw_microscope(images: tf.Tensor, seeds: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the tiles in other exposure, some also in other focus and with noise."""
    count = images.shape[0]
    draw = tf.random.stateless_uniform((6, count, 1, 1, 1), seeds[0])
    first = tf.random.stateless_uniform((2,), seeds[1])
    sigma = BLUR * draw[0]
    images = _change_some(images, BLURRED, first[0], lambda some: _blur(some, sigma[: len(some)]))
    contrast = CONTRAST ** (2 * draw[1] - 1)
    images = (images - MEAN) * contrast + MEAN + BRIGHTNESS * (2 * draw[2] - 1)
    images = tf.maximum(images, 0.0)
    gamma = GAMMA[0] * (GAMMA[1] / GAMMA[0]) ** draw[3]
    images = _change_some(images, CURVED, first[1], lambda some: some ** gamma[: len(some)])
    noisy = max(1, round(count * NOISY))
    noise = draw[4, -noisy:] * NOISE * _draw_noise((noisy, TILE, TILE, 1), seeds[1])
    return tf.concat([images[:-noisy], images[-noisy:] + noise], axis=0)


def _change_some(images: tf.Tensor, share: float, first: tf.Tensor, change) -> tf.Tensor:
    """Returns the tiles with a share of them changed, from one at random on."""
    count = images.shape[0]
    some = max(1, round(count * share))
    where = (tf.cast(first * count, tf.int32) + tf.range(some)) % count
    return tf.tensor_scatter_nd_update(images, where[:, None], change(tf.gather(images, where)))


def _draw_noise(shape: tuple, seed: tf.Tensor) -> tf.Tensor:
    """Returns noise of mean 0 and deviation 1: sums of four random bytes, which come quickly."""
    bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32)
    numbers = tf.cast(tf.bitcast(bits, tf.uint8), tf.float32) - 127.5
    return tf.reduce_sum(numbers, axis=-1) / math.sqrt(4 * (256**2 - 1) / 12)


def _blur(images: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Returns the tiles after a Gaussian blur of each one's own sigma (batch, 1, 1, 1) px."""
    reach = math.ceil(3 * BLUR)
    steps = np.arange(-reach, reach + 1, dtype=np.float32)
    weights = tf.exp(-0.5 * (steps / tf.maximum(sigma, 1e-2)) ** 2)
    weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
    for axis in (1, 2):
        padding = [[reach, reach] if side == axis else [0, 0] for side in range(4)]
        wide = tf.pad(images, padding, "REFLECT")
        parts = [
            wide[:, i : i + TILE] if axis == 1 else wide[:, :, i : i + TILE]
            for i in range(len(steps))
        ]
        images = sum(weights[..., i : i + 1] * part for i, part in enumerate(parts))
    return images
