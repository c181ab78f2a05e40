"""How a network must be tiled: on which grid tiles start, and what they carry around them.

Known of what `unet.build_unet` builds. Any other functional network is measured: lines of pixels
are changed, and it is seen how far the output changes, and on which grid.
"""

from functools import lru_cache

import keras
import numpy as np

from membrane.errors import UserError
from membrane.inference.fused_unet import plan_depth
from membrane.inference.precision import with_dtype

MAX_STRIDE = 64  # px
MAX_SIDE = 2048  # px, of the images it is measured on; what reaches further has no finite reach


def stride_and_radius(network: keras.Model) -> tuple[int, int | None]:
    """Returns how a functional network, from (batch, height, width, 1) to the same, is tiled.

    Returns:
        stride: px; sides and tile origins must be multiples of it.
        radius: px; how far from a changed input pixel the output can change. None where that is
            not finite: global pooling, attention, normalisation over space.

    Raises:
        UserError: the output has not the input's size, whatever that is.
    """
    depth = plan_depth(network)
    if depth is None:
        return measure(network)
    # Each stage's two convolutions, pooling and two convolutions again, at 1, 2, 4, … px.
    dilations = [max(network.get_layer(f"bridge_conv{n}").dilation_rate) for n in (1, 2)]
    return 2**depth, 5 * (2**depth - 1) + sum(dilations) * 2**depth


def stride_and_halo(network: keras.Model) -> tuple[int, int | None]:
    """Returns the stride, and the halo of tiles: the radius as a multiple of it, or None."""
    stride, radius = stride_and_radius(network)
    return stride, None if radius is None else -(-radius // stride) * stride


@lru_cache(maxsize=4)  # one network is asked about several times
def measure(network: keras.Model) -> tuple[int, int | None]:
    """Returns stride and radius as changes of the input show them.

    The layers stay, the weights do not: with positive ones that sum to about one no change cancels
    out or is cut off by a ReLU, and in float64 none is lost in rounding.

    Raises:
        UserError: as `stride_and_radius`.
    """
    probe, random = with_dtype(network, "float64"), np.random.default_rng(0)
    output = probe.outputs[0]._keras_history.operation
    if hasattr(output, "activation"):  # in its ends a change could not be seen
        output.activation = keras.activations.linear
    shapes = [weights.shape for weights in probe.get_weights()]

    def renew_weights() -> None:
        probe.set_weights([random.uniform(0.5, 1.5, s) / max(1, np.prod(s[:-1])) for s in shapes])

    def measure_radius(stride: int) -> int | None:
        radius = 0
        for axis in (0, 1, 0, 1):
            renew_weights()
            reach = _measure_reach(probe, stride, axis, random)
            if reach is None:
                return None
            radius = max(radius, reach)
        return radius

    renew_weights()
    stride = _smallest_side(probe)
    radius = measure_radius(stride)
    while radius is not None and not _is_same_on_grid(probe, stride, radius, random):
        stride *= 2
        radius = measure_radius(stride) if stride <= MAX_STRIDE else None
    return stride, radius


def _smallest_side(probe: keras.Model) -> int:
    """Returns the smallest number whose multiples are sides that the output keeps."""
    for stride in range(1, MAX_STRIDE + 1):
        if all(_keeps_size(probe, count * stride) for count in (8, 9, 11)):
            return stride
    raise UserError(
        "the network's output has not the size of its input; expected P(interior) of each pixel: "
        'padding="same" in its layers'
    )


def _is_same_on_grid(
    probe: keras.Model, stride: int, radius: int, random: np.random.Generator
) -> bool:
    """Whether the output moves as the input does by the stride, up to 0.001 of its range."""
    margin = -(-radius // stride) * stride + stride
    side = 2 * margin + 4 * stride
    image = random.random((1, side, side, 1))
    output = _run(probe, image)
    inner = np.s_[:, margin:-margin, margin:-margin]
    moved = (np.roll(_run(probe, np.roll(image, stride, axis)), -stride, axis) for axis in (1, 2))
    limit = 1e-3 * np.ptp(output)
    return not any(np.abs(one - output)[inner].max() > limit for one in moved)


def _measure_reach(
    probe: keras.Model, stride: int, axis: int, random: np.random.Generator
) -> int | None:
    """Returns how far the output changes along an axis when a line of pixels across it does."""
    side = 8 * stride * -(-32 // stride)
    while side <= MAX_SIDE:
        shape = [1, 2 * stride, 2 * stride, 1]
        shape[1 + axis] = side
        images = np.repeat(random.random(shape), stride, 0)  # a change at each place of the grid
        before = _run(probe, images[:1])
        places = side // 2 // stride * stride + np.arange(stride)
        for image, place in zip(images, places, strict=True):
            image.swapaxes(0, axis)[place] += 1e6  # much, or its effect could drown in rounding
        changed = (_run(probe, images) != before).any((2 - axis, 3))
        lines = [np.flatnonzero(one) for one in changed]
        if all(line.size == 0 or (line[0] > 0 and line[-1] < side - 1) for line in lines):
            ends = zip(lines, places, strict=True)
            return int(max((np.abs(line - p).max() for line, p in ends if line.size), default=0))
        side *= 2
    return None


def _keeps_size(probe: keras.Model, side: int) -> bool:
    try:
        return _run(probe, np.zeros((1, side, side, 1))).shape == (1, side, side, 1)
    except Exception:  # Concatenate, Add, TensorFlow: anything
        return False


def _run(probe: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(probe(images, training=False))
