"""Random 256x256 tiles of labelled slices, cut and augmented on the training device."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from grey import MEAN

TILE = 256  # px
STEPS = 4096  # per unit of grey, of the slices kept on the device as int16


class TileSampler:
    """Cuts random 256x256 tiles and augments them, as one graph on the training device.

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
        pixels = [
            np.round(np.stack([image, label], axis=-1) * STEPS).astype(np.int16).reshape(-1, 2)
            for image, label in zip(images, labels, strict=True)
        ]
        self.pixels = tf.constant(np.concatenate(pixels))
        self.sizes = tf.constant([image.shape for image in images], tf.int64)
        self.starts = tf.constant(np.cumsum([0] + [image.size for image in images[:-1]]), tf.int64)
        self.seed = tf.constant(seed, tf.int64)
        points = tf.eye(5)[..., None]
        self.spread = tf.image.resize(points, (TILE, 5), "bicubic")[..., 0]  # 5 points to a tile

    def __call__(self, numbers: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the tiles of these numbers.

        What a tile shows is random, so it need not be random which of a batch are deformed (the
        first third) or get another gamma (every second one): nothing is computed in vain.

        Args:
            numbers: int64 (batch,), consecutive; the length must be static.

        Returns:
            images: float32 (batch, 256, 256, 1), about [0, 1].
            labels: float32 (batch, 256, 256, 1), 0 = membrane, 1 = interior.
        """
        count = numbers.shape[0]
        deformed = max(1, round(count / 3))
        seeds = [tf.stack([self.seed, 3 * numbers[0] + purpose]) for purpose in range(3)]
        draw = tf.random.stateless_uniform((6, count), seeds[0])
        chosen = tf.cast(draw[0] * self.sizes.shape[0], tf.int64)
        height, width = tf.unstack(tf.gather(self.sizes, chosen), axis=1)
        start = tf.gather(self.starts, chosen)
        rows = _draw_lines(height, draw[1], draw[2])
        cols = _draw_lines(width, draw[3], draw[4])
        bent = [line[:deformed] for line in (rows, cols, height, width, start)]
        straight = [line[deformed:] for line in (rows, cols, height, width, start)]
        moves = _draw_deformation(deformed, seeds[1], self.spread)
        tiles = tf.concat([self._read_between(*bent, moves), self._read(*straight)], axis=0)
        swap = (draw[5] < 0.5)[:, None, None, None]
        tiles = tf.where(swap, tf.transpose(tiles, (0, 2, 1, 3)), tiles)
        return _draw_exposure(tiles[..., :1], seeds[2]), tiles[..., 1:]

    def _read(self, rows, cols, height, width, start) -> tf.Tensor:
        """Returns (batch, 256, 256, 2) image and label where these rows and columns cross."""
        rows = tf.cast(_reflect(rows, height[:, None]), tf.int64) * width[:, None]
        cols = tf.cast(_reflect(cols, width[:, None]), tf.int64)
        return self._at(start[:, None, None] + rows[:, :, None] + cols[:, None, :])

    def _read_between(self, rows, cols, height, width, start, moves) -> tf.Tensor:
        """Returns the same, read up to some pixels beside, between the slice's pixels."""
        start, height, width = (line[:, None, None] for line in (start, height, width))
        rows = _reflect(rows[:, :, None] + moves[..., 0], height)
        cols = _reflect(cols[:, None, :] + moves[..., 1], width)
        top, left = tf.floor(rows), tf.floor(cols)
        down, right = (rows - top)[..., None], (cols - left)[..., None]
        top, left = tf.cast(top, tf.int64), tf.cast(left, tf.int64)
        place = start + top * width + left
        below = tf.where(top + 1 < height, width, 0)
        beside = tf.where(left + 1 < width, tf.ones_like(width), 0)
        upper = self._at(place) * (1 - right) + self._at(place + beside) * right
        lower = self._at(place + below) * (1 - right) + self._at(place + below + beside) * right
        tiles = upper * (1 - down) + lower * down
        return tf.concat([tiles[..., :1], tf.round(tiles[..., 1:])], axis=-1)

    def _at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(self.pixels, places), tf.float32) / STEPS


def _draw_lines(side: tf.Tensor, place: tf.Tensor, flip: tf.Tensor) -> tf.Tensor:
    """Returns (batch, 256) rows or columns of a crop at random, in random direction."""
    room = tf.cast(side - TILE, tf.float32)
    corner = tf.where(room > 0, tf.floor(place * (room + 1)), tf.floor(room / 2))
    along = tf.range(TILE, dtype=tf.float32)
    return corner[:, None] + tf.where((flip < 0.5)[:, None], along, TILE - 1 - along)


def _reflect(places: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Returns places along a side, those beyond its ends reflected."""
    last = tf.cast(side - 1, tf.float32)
    places = tf.abs(places) % tf.maximum(2 * last, 1)
    return tf.clip_by_value(tf.minimum(places, 2 * last - places), 0, last)


def _draw_deformation(count: int, seed: tf.Tensor, spread: tf.Tensor) -> tf.Tensor:
    """Returns (batch, 256, 256, 2) px: smooth displacements of about 10 px."""
    coarse = tf.random.stateless_normal((count, 5, 5, 2), seed, stddev=10.0)
    return tf.einsum("ri,bijk,cj->brck", spread, coarse, spread)  # XLA has no bicubic resize


def _draw_exposure(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the tiles with random contrast and brightness and, every second, gamma."""
    draw = tf.random.stateless_uniform((3, images.shape[0], 1, 1, 1), seed)
    contrast = 0.8 * (1.25 / 0.8) ** draw[0]
    images = (images - MEAN) * contrast + MEAN + 0.2 * draw[1] - 0.1
    gamma = 0.7 * (1.4 / 0.7) ** draw[2]
    return tf.stack(
        [
            tf.maximum(image, 0.0) ** gamma[place] if place % 2 else image
            for place, image in enumerate(tf.unstack(images))
        ]
    )
