"""The same network, computed in two thirds of the time."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from unet import build_unet, inputs_of

DOUBLING = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)  # see `_double`


def quicken(network: keras.Model) -> tuple[Callable, Callable]:
    """Returns how to compute what `network(images)` gives, in two thirds of the time.

    The doubled and the concatenated tensors are never made: a convolution of both is the sum of a
    convolution of the skip and a transposed one of the small features. The result differs by
    rounding.

    Args:
        network: in any dtype. One that `build_unet` does not build is called as it is.

    Returns:
        derive: gives the weights that this needs, by layer, from the network's own as they are at
            that moment; gradients flow to these.
        compute: from float32 (batch, height, width, 1) and such weights to P(interior).
    """
    known = {layer.name: layer for layer in network.layers}
    depth = sum(name.endswith("_pool") for name in known)
    names = [f"encoder{stage}_conv1" for stage in range(1, depth + 1)] + ["bridge_conv1"]
    as_it_is = dict, lambda images, weights: network(images)
    if not all(isinstance(known.get(name), layers.Conv2D) for name in names):
        return as_it_is
    bridge = known["bridge_conv1"]
    twin = build_unet([known[name].filters for name in names], bridge.dilation_rate[0])
    if _describe(twin) != _describe(network):
        return as_it_is

    def derive():
        weights = {
            name: {
                "kernel": tf.cast(layer.kernel, bridge.compute_dtype),
                "bias": tf.cast(layer.bias, layer.compute_dtype),
            }
            for name, layer in known.items()
            if layer.weights
        }
        for stage in range(1, depth + 1):
            merging, count = f"decoder{stage}_conv1", known[f"encoder{stage}_conv2"].filters
            doubled = _double(known[merging].kernel[:, :, count:])
            weights[merging]["kernel"] = weights[merging]["kernel"][:, :, :count]
            weights[merging]["doubled"] = tf.cast(doubled, bridge.compute_dtype)
        return weights

    def compute(images, weights):
        images = tf.ensure_shape(images, images.shape)  # else lost where XLA has cut the tiles
        x, skips = tf.cast(images, bridge.compute_dtype), []
        for stage in range(1, depth + 1):
            for number in (1, 2):
                x = _convolve(x, **weights[f"encoder{stage}_conv{number}"])
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        for number in (1, 2):
            name = f"bridge_conv{number}"
            x = _convolve(x, **weights[name], dilation=known[name].dilation_rate)
        for stage in range(depth, 0, -1):
            x = _merge(skips.pop(), x, **weights[f"decoder{stage}_conv1"])
            x = _convolve(x, **weights[f"decoder{stage}_conv2"])
        last = weights["probability"]
        x = tf.nn.conv2d(x, last["kernel"], 1, "VALID")
        return tf.sigmoid(tf.cast(x, tf.float32) + last["bias"])

    return derive, compute


def _convolve(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor,
    dilation: Sequence[int] = (1, 1),
    extra: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes a convolution and its ReLU, perhaps with something to add before that."""
    x = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=dilation)
    x = tf.nn.bias_add(x, bias)
    return tf.nn.relu(x if extra is None else x + extra)


def _merge(skip: tf.Tensor, x: tf.Tensor, doubled: tf.Tensor, **layer) -> tf.Tensor:
    """Computes a decoder's first convolution, of the skip and the doubled `x` side by side."""
    x = tf.nn.conv2d_transpose(x, doubled, tf.shape(skip), 2, "SAME")
    x.set_shape(skip.shape)  # only where both shapes are known to be one is the sum made in place
    return _convolve(skip, **layer, extra=x)


def _double(kernel: tf.Tensor) -> tf.Tensor:
    """Returns the (4, 4, filters, channels) kernel that doubles and convolves in one.

    Doubling, then a kernel of 3, is a transposed convolution of stride 2 with a kernel of 4, each
    of whose taps is the sum of those taps that see the same small pixel.
    """
    kernel = tf.transpose(kernel, (0, 1, 3, 2))
    doubling = np.kron(DOUBLING, DOUBLING)  # of rows and columns: from 9 taps to 16
    return tf.reshape(doubling @ tf.reshape(kernel, (9, -1)), (4, 4, *kernel.shape[2:]))


def _describe(network: keras.Model) -> list:
    """Returns what a network computes, whatever its dtype and weights: layers and connections."""
    keys = "name", "filters", "kernel_size", "strides", "padding", "dilation_rate", "activation"
    keys += "use_bias", "pool_size", "size", "interpolation", "axis", "groups", "data_format"
    return [
        (
            layer["class_name"],
            {key: layer["config"].get(key) for key in keys},
            inputs_of(network.get_layer(layer["name"])),
        )
        for layer in network.get_config()["layers"]
    ]
