"""Augmentation: one random 256x256 tile, flipped, turned, deformed, at other exposure and focus.

TensorFlow operations on one tile at a time, which tf.data runs on all cores. All random choices
are stateless: they follow from a seed, so the same tile can be made again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from membrane.io.normalization import MEAN

TILE = 256  # px
UNKNOWN = 0.5  # the label of pixels without one, which weigh nothing
ANCHOR_STEP = 7  # every so many pixels with a label, one may lie in a tile for sure
ELASTIC_FRACTION = 0.375  # of the tiles are deformed
ELASTIC_POINTS, ELASTIC_SIGMA = 5, 10.0  # displacements at 5x5 points; their deviation in px
CONTRAST, BRIGHTNESS = 1.25, 0.1  # at most: factor about the mean, and what is added
GAMMA_FRACTION, GAMMA = 0.5, (0.7, 1.4)  # of the tiles, and the range of the exponent
BLUR_FRACTION, BLUR_SIGMA = 0.25, 1.3  # of the tiles, and the largest sigma in px
NOISE_FRACTION, NOISE_SIGMA = 0.25, 0.12  # of the tiles, and the largest deviation


class Slices(NamedTuple):
    """Labelled slices of any sizes as tensors that a graph can read pixels of."""

    pixels: tf.Tensor  # float32 (pixels of all slices, 2 or 3): grey value, label, if it is known
    starts: tf.Tensor  # int64 (slices,): the first pixel of each slice
    sizes: tf.Tensor  # int64 (slices, 2): height, width
    anchors: tf.Tensor | None  # int64 (n, 3): slice, row, column of pixels whose label is known


def load_slices(
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    known: Sequence[np.ndarray | None] = (),
) -> Slices:
    """Returns slices for `make_tile`.

    Args:
        images: float32 (height, width) each.
        labels: bool of the same shape.
        known: where the label is known, bool of the same shape, or None; empty if all are.
    """
    columns, anchors = [images, labels], None
    if any(one is not None for one in known):
        pairs = zip(labels, known, strict=True)
        columns.append([np.ones_like(label) if one is None else one for label, one in pairs])
        places = [np.argwhere(one)[::ANCHOR_STEP] for one in columns[2]]
        anchors = [np.insert(one, 0, number, axis=1) for number, one in enumerate(places)]
    shapes = [image.shape for image in images]
    pixels = [
        np.stack(each, axis=-1, dtype=np.float32).reshape(-1, len(columns))
        for each in zip(*columns, strict=True)
    ]
    with tf.device("CPU"):  # where tf.data reads them
        return Slices(
            tf.constant(np.concatenate(pixels)),
            tf.constant(np.cumsum([0, *map(len, pixels[:-1])]), tf.int64),
            tf.constant(shapes, tf.int64),
            None if anchors is None else tf.constant(np.concatenate(anchors), tf.int64),
        )


@tf.autograph.experimental.do_not_convert  # it branches by tf.cond; to look for more takes seconds
def make_tile(slices: Slices, seed: int, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the tile that follows from a seed and a number, int64 ().

    Every pixel of it has one place in the slice, from which image and label are read together, so
    no crop, flip, rotation or deformation can move one without the other. TensorFlow compiles it:
    what is done by chance needs `tf.cond`, not `if`.

    Returns:
        image: float32 (256, 256, 1), about [0, 1].
        label: float32 (256, 256, 1), 0 = membrane, 1 = interior, 0.5 = not known.
    """
    seeds = tf.unstack(tf.random.split([tf.cast(seed, tf.int64), number], 5))
    which, rows, cols = sample_crop(slices, seeds[0])
    tile = tf.cond(
        _chance(seeds[1], ELASTIC_FRACTION),
        lambda: gather_between_pixels(slices, which, *deform(rows, cols, seeds[2])),
        lambda: gather_pixels(slices, which, rows, cols),
    )
    tile = tf.cond(_chance(seeds[3], 0.5), lambda: tf.transpose(tile, (1, 0, 2)), lambda: tile)
    image, label = tile[..., :1], tf.round(tile[..., 1:2])
    if slices.anchors is not None:
        label = tf.where(tile[..., 2:] > 0.999, label, UNKNOWN)
    return augment_intensity(image, seeds[4]), label


def sample_crop(slices: Slices, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns a slice's number, and int64 (256, 1) rows and (1, 256) columns in it, or flipped.

    Where the slice is smaller than a tile, it is continued by reflection. Where labels are known in
    part, the tile has a pixel that is.
    """
    draw = tf.random.stateless_uniform((5,), seed)
    choices = slices.sizes if slices.anchors is None else slices.anchors
    which = tf.cast(draw[0] * tf.cast(tf.shape(choices)[0], tf.float32), tf.int64)
    anchor = None if slices.anchors is None else slices.anchors[which]
    which = which if anchor is None else anchor[0]
    size = slices.sizes[which]
    lines = []
    for axis in (0, 1):
        room = tf.cast(tf.maximum(size[axis] - TILE, 0) + 1, tf.float32)
        start = tf.cast(draw[1 + axis] * room, tf.int64)
        if anchor is not None:
            start = anchor[1 + axis] - tf.cast(draw[1 + axis] * TILE, tf.int64)
            start = tf.clip_by_value(start, 0, tf.maximum(size[axis] - TILE, 0))
        line = start + tf.range(TILE, dtype=tf.int64)
        period = tf.maximum(2 * size[axis] - 2, 1)
        line = tf.minimum(line % period, -line % period)
        lines.append(tf.where(draw[3 + axis] < 0.5, line, line[::-1]))
    return which, lines[0][:, None], lines[1][None, :]


def deform(rows: tf.Tensor, cols: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 (256, 256) rows and columns, smoothly displaced."""
    points = tf.random.stateless_normal((ELASTIC_POINTS, ELASTIC_POINTS, 2), seed)
    moves = tf.image.resize(ELASTIC_SIGMA * points, (TILE, TILE), "bicubic")
    return tf.cast(rows, tf.float32) + moves[..., 0], tf.cast(cols, tf.float32) + moves[..., 1]


def gather_pixels(slices: Slices, which: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor) -> tf.Tensor:
    """Returns float32 (256, 256, 2), grey value and label at these places in a slice."""
    return tf.gather(slices.pixels, slices.starts[which] + rows * slices.sizes[which, 1] + cols)


def gather_between_pixels(
    slices: Slices, which: tf.Tensor, rows: tf.Tensor, cols: tf.Tensor
) -> tf.Tensor:
    """Returns the same at float32 places: bilinear between the pixels, reflected at the ends."""
    last = tf.cast(slices.sizes[which] - 1, tf.float32)
    rows, cols = (
        tf.clip_by_value(end - tf.abs(end - tf.abs(line)), 0.0, end)
        for line, end in ((rows, last[0]), (cols, last[1]))
    )
    top, left = tf.floor(rows), tf.floor(cols)
    down, right = (rows - top)[..., None], (cols - left)[..., None]
    bottom, end = tf.minimum(top + 1, last[0]), tf.minimum(left + 1, last[1])
    top, bottom, left, end = (tf.cast(line, tf.int64) for line in (top, bottom, left, end))
    upper, lower = (
        (1 - right) * gather_pixels(slices, which, row, left)
        + right * gather_pixels(slices, which, row, end)
        for row in (top, bottom)
    )
    return (1 - down) * upper + down * lower


def augment_intensity(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns a tile, float32 (256, 256, 1), at other exposure, some in other focus and noisy."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    draw = tf.random.stateless_uniform((5,), seeds[0])
    blurred = _chance(seeds[1], BLUR_FRACTION)
    image = tf.cond(blurred, lambda: blur(image, BLUR_SIGMA * draw[0]), lambda: image)
    contrast = CONTRAST ** (2 * draw[1] - 1)
    image = (image - MEAN) * contrast + MEAN + BRIGHTNESS * (2 * draw[2] - 1)
    image = tf.maximum(image, 0.0)
    gamma = GAMMA[0] * (GAMMA[1] / GAMMA[0]) ** draw[3]
    image = tf.cond(_chance(seeds[2], GAMMA_FRACTION), lambda: image**gamma, lambda: image)

    def add_noise():
        return image + NOISE_SIGMA * draw[4] * tf.random.stateless_normal(image.shape, seeds[4])

    return tf.cond(_chance(seeds[3], NOISE_FRACTION), add_noise, lambda: image)


def blur(image: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Returns float32 (height, width, 1) after a Gaussian blur of `sigma` px, at most 1.3."""
    reach = int(np.ceil(3 * BLUR_SIGMA))
    weights = tf.exp(-0.5 * (tf.range(-reach, reach + 1.0) / tf.maximum(sigma, 1e-2)) ** 2)
    weights /= tf.reduce_sum(weights)
    wide = tf.pad(image, [[reach, reach], [reach, reach], [0, 0]], "REFLECT")[None]
    across = tf.nn.conv2d(wide, weights[None, :, None, None], 1, "VALID")
    return tf.nn.conv2d(across, weights[:, None, None, None], 1, "VALID")[0]


def _chance(seed: tf.Tensor, fraction: float) -> tf.Tensor:
    """Returns True in so many of all cases."""
    return tf.random.stateless_uniform((), seed) < fraction
