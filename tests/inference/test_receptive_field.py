import keras
import numpy as np
import pytest
from keras import layers

from membrane.errors import UserError
from membrane.inference import receptive_field
from membrane.inference.predictor import D4, Predictor
from membrane.training.muon import Muon
from unet import build_unet


def convolve(filters, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", activation="relu", **options)


def small_unet(
    convolve=convolve,
    pool=lambda filters: layers.MaxPooling2D(2),
    up=lambda filters: layers.UpSampling2D(2),
    after=lambda x: x,
):
    """A U-Net of two stages with other layers than `build_unet` has."""

    def build(image):
        skip = after(convolve(4)(image))
        x = after(convolve(6)(pool(4)(skip)))
        x = layers.Concatenate()([skip, up(6)(x)])
        return after(convolve(4)(x))

    return build


def transposed(size):
    return lambda filters: layers.Conv2DTranspose(filters, size, strides=2, padding="same")


def gated(image):
    x = convolve(4)(image)
    gate = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return layers.Multiply()([x, gate])


def threefold(image):
    x = layers.UpSampling2D(3)(convolve(4)(layers.MaxPooling2D(3)(image)))
    return layers.Concatenate()([image, x])


NETWORKS = {  # what a student writes: the layers, stride and radius
    "dropout": (small_unet(after=layers.Dropout(0.3)), 2, 5),
    "batch normalization": (small_unet(after=lambda x: layers.BatchNormalization()(x)), 2, 5),
    "layer normalization": (small_unet(after=lambda x: layers.LayerNormalization()(x)), 2, 5),
    "transposed": (small_unet(up=transposed(2)), 2, 5),
    "transposed by three": (small_unet(up=transposed(3)), 2, 6),
    "separable": (small_unet(lambda n: layers.SeparableConv2D(n, 3, padding="same")), 2, 5),
    "average pooling": (small_unet(pool=lambda n: layers.AveragePooling2D(2)), 2, 5),
    "bilinear": (small_unet(up=lambda n: layers.UpSampling2D(2, interpolation="bilinear")), 2, 6),
    "strided": (small_unet(pool=lambda n: convolve(n, strides=2)), 2, 6),
    "five pixels": (small_unet(lambda n: convolve(n, 5)), 2, 9),
    "wide kernel": (lambda x: convolve(4, (3, 15))(x), 1, 7),
    "even kernel": (lambda x: convolve(4, 2)(convolve(3, (4, 2))(x)), 1, 3),
    "depthwise": (lambda x: layers.DepthwiseConv2D(5, padding="same")(convolve(4)(x)), 1, 3),
    "residual": (lambda x: layers.Add()([convolve(4)(x), convolve(4)(convolve(4)(x))]), 1, 2),
    "thirds": (threefold, 3, 5),
    "global gate": (gated, 1, None),
    "group normalization": (small_unet(after=lambda x: layers.GroupNormalization(2)(x)), 2, None),
}


def build(name):
    keras.utils.set_random_seed(1)
    image = keras.Input((None, None, 1))
    x = layers.Conv2D(1, 1, activation="sigmoid")(NETWORKS[name][0](image))
    network = keras.Model(image, x)
    network.compile(Muon(0.01), "binary_crossentropy")  # as in a training
    random = np.random.default_rng(0)
    network.set_weights([  # normalising layers have ones and zeros
        np.abs(w + random.normal(0, 0.1, w.shape)) if w.ndim < 2 else w
        for w in network.get_weights()
    ])  # fmt: skip
    return network


def whole_slice(network, image, stride):
    padded = np.pad(image, [(0, -side % stride) for side in image.shape], mode="reflect")
    output = network(padded[None, :, :, None], training=False).numpy()[0, :, :, 0]
    return output[: image.shape[0], : image.shape[1]]


QUICK = {"batch normalization", "transposed by three", "bilinear", "wide kernel", "even kernel",
         "thirds", "global gate"}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS]
)
def test_any_network_is_tiled_exactly_or_predicted_as_a_whole(name):
    network, (_, stride, radius) = build(name), NETWORKS[name]
    assert receptive_field.stride_and_radius(network) == (stride, radius)
    image = np.random.default_rng(0).random((90, 71)).astype(np.float32)
    predict = Predictor(network, tile=(32, 32))
    assert predict.sees_whole_slices == (radius is None)
    expected = whole_slice(network, image, stride)
    assert np.ptp(expected) > 1e-3
    np.testing.assert_allclose(predict(image), expected, atol=3e-6)
    if stride > 1 and radius:  # where turning a tile could move it on the grid
        predict.transforms = D4
        averaged = predict(image)
        whole = Predictor(network, tta=True)(image)
        np.testing.assert_allclose(whole, averaged, atol=3e-6)


@pytest.mark.parametrize("filters, dilation", [
    ((4, 6, 8), 2), ((3, 4), 3), pytest.param((2, 2, 2, 2), 1, marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_known_of_the_unet_is_what_is_measured(filters, dilation):
    network = build_unet(filters, dilation)
    known = receptive_field.stride_and_radius(network)
    assert known == receptive_field.measure(network) and known[0] == 2 ** (len(filters) - 1)


def test_measuring_leaves_the_network_as_it_was():
    network = build("batch normalization")
    before = network.get_weights()
    receptive_field.measure(network)
    assert all(map(np.array_equal, before, network.get_weights()))
    assert network.layers[-1].activation is keras.activations.sigmoid


def test_a_network_that_shrinks_its_input_is_refused():
    image = keras.Input((None, None, 1))
    network = keras.Model(image, layers.Conv2D(1, 3, activation="sigmoid")(image))
    with pytest.raises(UserError, match="not the size of its input"):
        receptive_field.stride_and_radius(network)


def test_a_slice_that_memory_cannot_hold_as_a_whole_is_refused(monkeypatch):
    predict = Predictor(build("global gate"))
    monkeypatch.setattr("os.sysconf", lambda name: 1000)  # 1000 pages of 1000 bytes
    assert predict(np.zeros((30, 30), np.float32)).shape == (30, 30)
    with pytest.raises(UserError, match=r"must see it as a whole.*cut the slice"):
        predict(np.zeros((900, 900), np.float32))
