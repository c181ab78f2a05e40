"""The network: a 16→32→64 U-Net of 117,985 parameters. Imports Keras alone; copy it as it is.

After Ronneberger et al. 2015, U-Net: Convolutional networks for biomedical image segmentation,
doi:10.1007/978-3-319-24574-4_28, with zero-padded convolutions and fewer filters.

Change what you like: `train.py` and `predict.py` take any network from one grey channel to
P(cell interior) of the same height and width, and measure how it must be tiled.
"""

from collections.abc import Sequence

import keras
from keras import layers

FILTERS = (16, 32, 64)  # of the encoder stages and, last, of the bottleneck
KERNEL_SIZE = 3


def build_unet(filters: Sequence[int] = FILTERS, dilation: int = 1) -> keras.Model:
    """Builds the U-Net.

    Args:
        filters: of each encoder stage and, last, of the bottleneck; two numbers or more. The
            default has 117,985 parameters.
        dilation: of the bottleneck: its first convolution is dilated `dilation`, its second
            `dilation` squared (2 gives 2 and 4), which enlarges the receptive field without
            adding parameters.

    Returns:
        A model from float (batch, height, width, 1), sides divisible by `2 ** (len(filters) - 1)`,
        to P(cell interior), float32 of the same shape in [0, 1].
    """
    x = image = keras.Input((None, None, 1), name="image")
    skips = []
    for stage, count in enumerate(filters[:-1], start=1):
        x = convolve_twice(x, count, f"encoder{stage}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"encoder{stage}_pool")(x)

    # The bottleneck; its layers are called bridge in every model that has been saved.
    x = convolve_twice(x, filters[-1], "bridge", dilations=(dilation, dilation**2))

    for stage in range(len(skips), 0, -1):
        x = layers.UpSampling2D(2, name=f"decoder{stage}_up")(x)
        x = layers.Concatenate(name=f"decoder{stage}_skip")([skips[stage - 1], x])
        x = convolve_twice(x, filters[stage - 1], f"decoder{stage}")

    x = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32", name="probability")(x)
    return keras.Model(image, x, name="unet")


def convolve_twice(x, filters: int, name: str, dilations: tuple[int, int] = (1, 1)):
    """Returns `x` after two 3x3 convolutions with ReLU, (batch, height, width, filters)."""
    for number, dilation in enumerate(dilations, start=1):
        x = layers.Conv2D(
            filters,
            KERNEL_SIZE,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
            dilation_rate=dilation,
            name=f"{name}_conv{number}",
        )(x)
    return x
