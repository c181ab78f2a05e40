"""Slice → P(interior) → mask: reflected borders, exact tiles, averaged flips, grown cells.

A pixel of the output depends on the input within the network's radius only, and on where it lies
in the network's stride. So tiles that carry a halo of at least the radius, and start on the
stride's grid, give what the whole slice gives; nothing is blended.
"""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from scipy import ndimage
from skimage.measure import label as connected_components
from skimage.segmentation import watershed

from slices import UserError, first_line
from unet import stride_and_radius

TILE = 1024  # px; slices up to this size are one tile
UNDECIDED = 0.5  # a pixel above is rather interior than membrane


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


def to_mask(probability: np.ndarray, threshold: float) -> np.ndarray:
    """Turns P(interior) into a mask whose cells are those above the threshold.

    A threshold that lets no membrane leak is high, and leaves membranes thicker than they are. So
    its cells grow again, downhill over all pixels that are rather interior than membrane, by a
    watershed that keeps a line of one pixel between them: the same cells, true to their outlines.

    Args:
        probability: P(interior) in [0, 1], float (height, width).
        threshold: what tells cells apart; at 0.5 or below it is a plain threshold.

    Returns:
        bool (height, width), True = cell interior.
    """
    inside = probability > threshold
    cells = connected_components(inside, connectivity=1)
    # Growing from the cells' rims alone gives the same mask three times faster.
    rim = inside & ndimage.binary_dilation(~inside)
    basin = rim | ((probability > min(threshold, UNDECIDED)) & ~inside)
    seeds = np.where(rim, cells, 0)
    grown = watershed(-probability, seeds, connectivity=1, mask=basin, watershed_line=True)
    return inside | (grown > 0)


class Predictor:
    """Predicts slices of any size with one network.

    Args:
        network: as `unet.build_unet` makes, in any dtype; later changes of its weights count.
        tta: whether to average over the 8 flips and rotations of each tile.
        tile: px, the largest side of a tile without its halo; memory grows with its square.
    """

    def __init__(self, network: keras.Model, tta: bool = False, tile: int = TILE):
        self.stride, radius = stride_and_radius(network)
        self.halo = -(-radius // self.stride) * self.stride
        self.tile = max(tile // self.stride, 1) * self.stride
        self.tta = tta
        self.predict_batch: Callable = tf.function(
            lambda images: network(images, training=False),
            input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)],
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns P(interior).

        Args:
            image: float32 (height, width) as `slices.normalise` gives; any size from 1x1.

        Returns:
            float32 (height, width) in [0, 1].
        """
        height, width = image.shape
        probability = np.empty((height, width), np.float32)
        core_height, core_width = (self._core_size(side) for side in image.shape)
        for top in range(0, height, core_height):
            rows = self._with_halo(top, core_height, height)
            for left in range(0, width, core_width):
                cols = self._with_halo(left, core_width, width)
                core = self._predict_tile(image[np.ix_(rows, cols)])
                bottom, right = min(top + core_height, height), min(left + core_width, width)
                probability[top:bottom, left:right] = core[: bottom - top, : right - left]
        return probability

    def _core_size(self, side: int) -> int:
        """Returns the side of a tile without halo; equal tiles, so one shape serves a slice."""
        count = -(-side // self.tile)
        return -(-side // (count * self.stride)) * self.stride

    def _with_halo(self, start: int, size: int, side: int) -> np.ndarray:
        """Returns the pixel indices of a tile and its halo, reflected at the slice's borders."""
        indices = np.arange(start - self.halo, start + size + self.halo)
        if side == 1:
            return np.zeros_like(indices)
        indices = np.abs(indices) % (2 * side - 2)
        return np.where(indices < side, indices, 2 * side - 2 - indices)

    def _predict_tile(self, tile: np.ndarray) -> np.ndarray:
        """Returns P(interior) of a tile without its halo."""
        crop = slice(self.halo, -self.halo or None)
        if not self.tta:
            return self.predict_batch(tile[None, :, :, None]).numpy()[0, crop, crop, 0]
        total = 0.0
        for turns in range(4):
            for flip in (False, True):
                turned = np.rot90(tile[:, ::-1] if flip else tile, turns)
                batch = np.ascontiguousarray(turned)[None, :, :, None]
                output = np.rot90(self.predict_batch(batch).numpy()[0, :, :, 0], -turns)
                total = total + (output[:, ::-1] if flip else output)[crop, crop]
        return total / 8
