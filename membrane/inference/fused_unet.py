"""The U-Net of `unet.build_unet`, evaluated in two thirds of the time.

The up-sampled and the concatenated tensors are never made: a convolution of both is the sum of a
convolution of the skip and a transposed one of the small features. The result differs by rounding.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras import layers

# Which of four taps of a transposed convolution sees which of the three of a convolution.
UPSAMPLING = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)
CONVOLUTION = {
    "data_format": "channels_last",
    "kernel_size": (3, 3),
    "strides": (1, 1),
    "padding": "same",
    "activation": "relu",
    "use_bias": True,
    "groups": 1,
}
PLAN = {  # what a layer must be for its kind to be computed here
    "conv": (layers.Conv2D, CONVOLUTION),
    "pool": (layers.MaxPooling2D, {"pool_size": (2, 2), "strides": (2, 2), "padding": "valid"}),
    "up": (layers.UpSampling2D, {"size": (2, 2), "interpolation": "nearest"}),
    "skip": (layers.Concatenate, {"axis": -1}),
    "probability": (
        layers.Conv2D,
        {"filters": 1, "kernel_size": (1, 1), "strides": (1, 1), "activation": "sigmoid"},
    ),
}


class Fused(NamedTuple):
    """How to compute what `network(images)` gives.

    The weights are made of the network's own as they are at that moment; gradients flow to these.
    """

    weights: Callable[[], dict]  # what `forward` needs, by layer
    forward: Callable[[tf.Tensor, dict], tf.Tensor]  # both float32 (batch, height, width, 1)


class FusedUNet(keras.Model):
    """The same function as a network's, on the same variables, for `fit`."""

    def __init__(self, network: keras.Model):
        super().__init__(name="fused_unet")
        dilated = tf.nn.conv2d if has_dilated_gradient() else conv2d_of_phases
        self.network, self.fused = network, fuse(network, dilated)

    def call(self, images, training=None):
        """Returns P(interior)."""
        return self.fused.forward(images, self.fused.weights())


def fused_unet(network: keras.Model) -> keras.Model:
    """Returns a model that is quicker than the network and shares its variables.

    A network that is not exactly of `build_unet`'s plan is returned as it is.
    """
    return FusedUNet(network) if plan_depth(network) else network


def fuse(network: keras.Model, dilated: Callable = tf.nn.conv2d) -> Fused:
    """Returns how to compute a functional network faster, or as it is if of another plan.

    Its dilated convolutions are computed by `dilated`, which is called as `tf.nn.conv2d` is.
    """
    depth = plan_depth(network)
    if depth is None:
        return Fused(dict, lambda images, weights: network(images, training=False))
    known = {layer.name: layer for layer in network.layers}
    bottleneck = known["bridge_conv1"]

    def weights():
        fused = {
            name: {
                "kernel": tf.cast(layer.kernel, layer.compute_dtype),
                "bias": tf.cast(layer.bias, layer.compute_dtype),
            }
            for name, layer in known.items()
            if layer.weights
        }
        for stage in range(1, depth + 1):
            merging, count = f"decoder{stage}_conv1", known[f"encoder{stage}_conv2"].filters
            upsampling = upsample_kernel(known[merging].kernel[:, :, count:])
            fused[merging]["kernel"] = fused[merging]["kernel"][:, :, :count]
            fused[merging]["upsampling"] = tf.cast(upsampling, bottleneck.compute_dtype)
        return fused

    def forward(images, weights):
        x, skips = tf.cast(images, bottleneck.compute_dtype), []
        for stage in range(1, depth + 1):
            for number in (1, 2):
                x = _convolve(x, **weights[f"encoder{stage}_conv{number}"])
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        for number in (1, 2):
            name = f"bridge_conv{number}"
            rates = known[name].dilation_rate
            x = _convolve(x, **weights[name], conv2d=partial(dilated, dilations=rates))
        for stage in range(depth, 0, -1):
            x = _merge(skips.pop(), x, **weights[f"decoder{stage}_conv1"])
            x = _convolve(x, **weights[f"decoder{stage}_conv2"])
        last = weights["probability"]
        pixels = tf.reshape(tf.cast(x, last["kernel"].dtype), (-1, x.shape[-1]))
        x = tf.linalg.matvec(pixels, last["kernel"][0, 0, :, 0]) + last["bias"]  # of 1x1 pixels
        return tf.reshape(tf.sigmoid(x), tf.shape(images))

    return Fused(weights, forward)


def upsample_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """Returns the (4, 4, filters, channels) kernel that up-samples by two and convolves in one.

    Up-sampling, then a kernel of 3, is a transposed convolution of stride 2 with a kernel of 4,
    each of whose taps is the sum of those taps that see the same small pixel.
    """
    kernel = tf.transpose(kernel, (0, 1, 3, 2))
    upsampling = np.kron(UPSAMPLING, UPSAMPLING)  # of rows and columns: from 9 taps to 16
    return tf.reshape(upsampling @ tf.reshape(kernel, (9, -1)), (4, 4, *kernel.shape[2:]))


@cache
def has_dilated_gradient() -> bool:
    """Tells whether a dilated convolution can be trained here: on a CPU, oneDNN alone does it."""
    x, kernel = tf.zeros((1, 4, 4, 1)), tf.zeros((3, 3, 1, 1))
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=2)
    try:
        tape.gradient(y, kernel)
    except tf.errors.InvalidArgumentError:
        return False
    return True


def is_dilated(network: keras.Model) -> bool:
    """Tells whether some convolution of a network is dilated."""
    return any(np.max(getattr(layer, "dilation_rate", 1)) > 1 for layer in network.layers)


def conv2d_of_phases(x, kernel, strides, padding, dilations) -> tf.Tensor:
    """Computes `tf.nn.conv2d` with a dilation n as undilated ones, each of every n-th pixel."""
    return tf.nn.with_space_to_batch(
        x,
        dilations,
        padding,
        lambda x, _, padding: tf.nn.conv2d(x, kernel, strides, padding),
        filter_shape=kernel.shape,
    )


def _convolve(x, kernel, bias, extra: tf.Tensor | None = None, conv2d=tf.nn.conv2d) -> tf.Tensor:
    """Computes a convolution and its ReLU, perhaps with something to add before that."""
    x = tf.nn.bias_add(conv2d(x, kernel, 1, "SAME"), bias)
    return tf.nn.relu(x if extra is None else x + extra)


def _merge(skip: tf.Tensor, x: tf.Tensor, upsampling: tf.Tensor, **layer) -> tf.Tensor:
    """Computes a decoder's first convolution, of the skip and the up-sampled `x` side by side."""
    x = tf.nn.conv2d_transpose(x, upsampling, tf.shape(skip), 2, "SAME")
    x.set_shape(skip.shape)  # only where both shapes are known to be one is the sum made in place
    return _convolve(skip, **layer, extra=x)


def plan_depth(network: keras.Model) -> int | None:
    """Returns how many encoder stages a network has if all of it is of `build_unet`'s plan."""
    known = {layer.name: layer for layer in network.layers}
    depth = sum(name.endswith("_pool") for name in known)
    chain = []  # every layer, fed by the one before it, but for the skips
    for stage in (*(f"encoder{n}" for n in range(1, depth + 1)), "bridge"):
        chain += [f"{stage}_conv1", f"{stage}_conv2", f"{stage}_pool"]
    chain[-1:] = []  # the bottleneck pools nothing
    for stage in (f"decoder{n}" for n in range(depth, 0, -1)):
        chain += [f"{stage}_{end}" for end in ("up", "skip", "conv1", "conv2")]
    chain = ["image", *chain, "probability"]
    if not depth or sorted(known) != sorted(chain):
        return None
    for before, name in pairwise(chain):
        (kind, plan), config = PLAN[name.split("_")[-1].rstrip("12")], known[name].get_config()
        skip = name.replace("decoder", "encoder").replace("_skip", "_conv2")
        feeding = [skip, before] if name.endswith("_skip") else [before]
        tensors = [tensor for node in known[name]._inbound_nodes for tensor in node.input_tensors]
        fed = [tensor._keras_history.operation.name for tensor in tensors]
        dilated = config.get("dilation_rate", (1, 1)) != (1, 1) and not name.startswith("bridge")
        if type(known[name]) is not kind or dilated or fed != feeding:
            return None
        if any(config.get(key) != value for key, value in plan.items()):
            return None
    return depth
