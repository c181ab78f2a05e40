"""The network: a 16→32→64 U-Net of 117,985 parameters, and the number format it runs in.

After Ronneberger et al. 2015, U-Net: Convolutional networks for biomedical image segmentation,
doi:10.1007/978-3-319-24574-4_28, with zero-padded convolutions and fewer filters.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from slices import UserError

FILTERS = (16, 32, 64)
KERNEL = 3
KNOWN_LAYERS = (
    layers.InputLayer,
    layers.Conv2D,
    layers.MaxPooling2D,
    layers.UpSampling2D,
    layers.Concatenate,
)
DOUBLING = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], np.float32)  # see `_merge`


def build_unet(filters: Sequence[int] = FILTERS, dilation: int = 1) -> keras.Model:
    """Builds the U-Net.

    Each encoder stage is two 3x3 convolutions and a 2x2 max pooling; the bridge two convolutions;
    each decoder stage doubles the size, concatenates the encoder's skip and convolves twice.

    Args:
        filters: of each encoder stage and, last, of the bridge; 2 or more numbers. The default has
            117,985 parameters.
        dilation: of the bridge: its first convolution is dilated `dilation`, its second
            `dilation` squared (2 gives 2 and 4), which widens what a pixel sees at no parameter.

    Returns:
        A model from float (batch, height, width, 1), sides divisible by `2 ** (len(filters) - 1)`,
        to P(cell interior), float32 of the same shape in [0, 1].
    """
    x = image = keras.Input((None, None, 1), name="image")
    skips = []
    for stage, count in enumerate(filters[:-1], start=1):
        x = _convolve_twice(x, count, f"encoder{stage}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"encoder{stage}_pool")(x)
    x = _convolve_twice(x, filters[-1], "bridge", dilations=(dilation, dilation**2))
    for stage in range(len(skips), 0, -1):
        x = layers.UpSampling2D(2, name=f"decoder{stage}_up")(x)
        x = layers.Concatenate(name=f"decoder{stage}_skip")([skips[stage - 1], x])
        x = _convolve_twice(x, filters[stage - 1], f"decoder{stage}")
    x = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="probability")(x)
    return keras.Model(image, x, name="unet")


def stride_and_radius(model: keras.Model) -> tuple[int, int]:
    """Derives from a built model how it must be tiled.

    Args:
        model: a functional network of the layers that `build_unet` uses.

    Returns:
        stride: px; sides and tile origins must be multiples of it.
        radius: px; how far from an input pixel the output can change.

    Raises:
        UserError: the model has a layer whose reach is not known here.
    """
    step, radius, stride = {}, {}, 1
    for layer in model.layers:
        strides = getattr(layer, "strides", (1, 1))
        known = isinstance(layer, KNOWN_LAYERS) and strides == getattr(layer, "pool_size", (1, 1))
        if isinstance(layer, layers.Conv2D):
            known &= layer.padding == "same" or layer.kernel_size == (1, 1)
        if not known:
            kind = type(layer).__name__
            raise UserError(f"layer {layer.name} ({kind}): this program cannot tile such a network")
        inputs = _inputs_of(layer)
        at = max((step[name] for name in inputs), default=1)  # px of the image per px of its input
        reach = max((radius[name] for name in inputs), default=0)
        if isinstance(layer, layers.Conv2D):
            reach += at * layer.dilation_rate[0] * (layer.kernel_size[0] - 1) // 2
        elif isinstance(layer, layers.MaxPooling2D):
            reach += at * (layer.pool_size[0] - 1)
            at *= layer.strides[0]
        elif isinstance(layer, layers.UpSampling2D):
            at //= layer.size[0]
        step[layer.name], radius[layer.name] = at, reach
        stride = max(stride, at)
    return stride, radius[model.layers[-1].name]


def with_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """Returns a copy of `model`, same weights, that computes in `dtype`.

    Args:
        model: as `build_unet` makes.
        dtype: "float32" or "mixed_bfloat16"; variables and the sigmoid stay float32.
    """
    output = model.outputs[0]._keras_history.operation.name

    def convert(layer):
        config = layer.get_config()
        if layer.name != output:
            config["dtype"] = dtype
        return layer.__class__.from_config(config)

    copy = keras.models.clone_model(model, clone_function=convert)
    copy.set_weights(model.get_weights())
    return copy


def quicken(network: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that gives what `network(images)` gives, in two thirds of the time.

    The doubled and the concatenated tensors are never made: a convolution of both is the sum of a
    convolution of the skip and a transposed one of the small features. The result differs by
    rounding. Gradients flow to the network's own variables; later changes of them count.

    Args:
        network: in any dtype. One that `build_unet` does not build is called as it is.
    """
    known = {layer.name: layer for layer in network.layers}
    depth = sum(name.endswith("_pool") for name in known)
    names = [f"encoder{stage}_conv1" for stage in range(1, depth + 1)] + ["bridge_conv1"]
    if not all(isinstance(known.get(name), layers.Conv2D) for name in names):
        return network
    twin = build_unet(
        [known[name].filters for name in names], known["bridge_conv1"].dilation_rate[0]
    )
    if _describe(twin) != _describe(network):
        return network

    def compute(images):
        images = tf.ensure_shape(images, images.shape)  # else lost where XLA has cut the tiles
        x, skips = tf.cast(images, known["bridge_conv1"].compute_dtype), []
        for stage in range(1, depth + 1):
            for number in (1, 2):
                x = _convolve(known[f"encoder{stage}_conv{number}"], x)
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, 2, "VALID")
        for number in (1, 2):
            x = _convolve(known[f"bridge_conv{number}"], x)
        for stage in range(depth, 0, -1):
            x = _merge(known[f"decoder{stage}_conv1"], skips.pop(), x)
            x = _convolve(known[f"decoder{stage}_conv2"], x)
        last = known["probability"]
        x = tf.nn.conv2d(x, tf.cast(last.kernel, x.dtype), 1, "VALID")
        return tf.sigmoid(tf.cast(x, tf.float32) + last.bias)

    return compute


def choose_dtype() -> tuple[str, str]:
    """Chooses the number format by what the device computes natively.

    Returns:
        dtype: "mixed_bfloat16" or "float32", for `with_dtype`.
        description: one line for people, saying what was chosen and why.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0)) >= (8, 0)
        name = f"GPU {details.get('device_name', gpus[0].name)}"
    else:
        native = bool({"amx_bf16", "avx512_bf16"} & _cpu_flags())
        name = "CPU"
    if native:
        return "mixed_bfloat16", f"{name}, bfloat16, which it computes natively"
    return "float32", f"{name}, float32, for want of native bfloat16"


def _convolve_twice(x, count: int, name: str, dilations: tuple[int, int] = (1, 1)):
    for number, dilation in enumerate(dilations, start=1):
        x = layers.Conv2D(
            count,
            KERNEL,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            dilation_rate=dilation,
            name=f"{name}_conv{number}",
        )(x)
    return x


def _convolve(layer: layers.Conv2D, x: tf.Tensor, extra: tf.Tensor | None = None) -> tf.Tensor:
    """Computes a layer of `_convolve_twice`, perhaps with something to add, in the dtype of `x`."""
    kernel = tf.cast(layer.kernel, x.dtype)[:, :, : x.shape[-1]]
    x = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=layer.dilation_rate)
    x = tf.nn.bias_add(x, tf.cast(layer.bias, x.dtype))
    return tf.nn.relu(x if extra is None else x + extra)


def _merge(layer: layers.Conv2D, skip: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Computes a layer of `_convolve_twice` on the skip and the doubled `x`, side by side.

    Doubling, then a kernel of 3, is a transposed convolution of stride 2 with a kernel of 4, each
    of whose taps is the sum of those taps that see the same small pixel.
    """
    kernel = layer.kernel[:, :, skip.shape[-1] :]
    kernel = tf.einsum("ai,bj,ijcf->abfc", DOUBLING, DOUBLING, kernel)
    x = tf.nn.conv2d_transpose(x, tf.cast(kernel, x.dtype), tf.shape(skip), 2, "SAME")
    x.set_shape(skip.shape)  # only where both shapes are known to be one is the sum made in place
    return _convolve(layer, skip, x)


def _describe(network: keras.Model) -> list:
    """Returns what a network computes, whatever its dtype and weights: layers and connections."""
    keys = "name", "filters", "kernel_size", "strides", "padding", "dilation_rate", "activation"
    keys += "use_bias", "pool_size", "size", "interpolation", "axis", "groups", "data_format"
    return [
        (
            layer["class_name"],
            {key: layer["config"].get(key) for key in keys},
            _inputs_of(network.get_layer(layer["name"])),
        )
        for layer in network.get_config()["layers"]
    ]


def _inputs_of(layer: layers.Layer) -> list[str]:
    """Returns the names of the layers that feed a layer."""
    return [
        tensor._keras_history.operation.name
        for node in layer._inbound_nodes
        for tensor in node.input_tensors
    ]


def _cpu_flags() -> set[str]:
    """Returns the processor's features where Linux tells them, else nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
