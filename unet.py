"""The network: a 16→32→64 U-Net of 117,985 parameters, and the number format it runs in.

After Ronneberger et al. 2015, U-Net: Convolutional networks for biomedical image segmentation,
doi:10.1007/978-3-319-24574-4_28, with zero-padded convolutions and fewer filters.
"""

from collections.abc import Sequence
from pathlib import Path

import keras
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
        inputs = inputs_of(layer)
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


def inputs_of(layer: layers.Layer) -> list[str]:
    """Returns the names of the layers that feed a layer."""
    return [
        tensor._keras_history.operation.name
        for node in layer._inbound_nodes
        for tensor in node.input_tensors
    ]


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


def _cpu_flags() -> set[str]:
    """Returns the processor's features where Linux tells them, else nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
