import keras
import numpy as np
import pytest

import unet


def test_the_default_network_has_117985_parameters():
    model = unet.build_unet()
    assert model.count_params() == 117_985
    assert unet.build_unet(dilation=2).count_params() == 117_985
    assert unet.build_unet((16, 32, 64, 128, 256)).count_params() == 1_962_337
    names = [layer.name for layer in model.layers]
    assert {"image", "encoder2_conv1", "bridge_conv2", "decoder1_skip", "probability"} <= set(names)


def test_output_is_a_probability_of_the_same_size():
    output = unet.build_unet()(np.random.default_rng(0).random((2, 20, 36, 1), np.float32)).numpy()
    assert output.shape == (2, 20, 36, 1) and output.dtype == np.float32
    assert 0 <= output.min() <= output.max() <= 1


@pytest.mark.parametrize("filters, dilation", [((4, 6, 8), 1), ((4, 6, 8), 2), ((3, 4), 3),
                                               ((2, 2, 2, 2), 1)])  # fmt: skip
def test_a_changed_pixel_reaches_as_far_as_the_derived_radius(filters, dilation):
    model = unet.build_unet(filters, dilation)
    for layer in model.layers:  # nothing may cancel out or be cut off
        layer.set_weights([np.abs(weights) + 0.01 for weights in layer.get_weights()])
    model.layers[-1].activation = keras.activations.linear
    stride, radius = unet.stride_and_radius(model)
    assert stride == 2 ** (len(filters) - 1)
    middle = -(-(radius + 4) // stride) * stride
    image = np.zeros((1, 2 * middle, 2 * middle, 1), np.float32)
    before, reached = model(image).numpy(), 0
    for offset in range(stride):
        image[:] = 0
        image[0, middle + offset, middle + offset] = 1
        rows, cols = np.nonzero((model(image).numpy() != before)[0, :, :, 0])
        reached = max(reached, *(np.abs(line - middle - offset).max() for line in (rows, cols)))
    assert reached == radius


def test_a_saved_network_gives_the_same_output(tmp_path):
    model = unet.build_unet((4, 8), 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    image = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    assert np.array_equal(loaded(image), model(image))
    assert unet.stride_and_radius(loaded) == unet.stride_and_radius(model)


def test_the_last_layer_stays_float32_whatever_its_name():
    image = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(image)
    foreign = keras.Model(image, keras.layers.Conv2D(1, 1, padding="same", activation="sigmoid")(x))
    half = unet.with_dtype(foreign, "mixed_bfloat16")
    assert half.layers[1].compute_dtype == "bfloat16"
    assert half(np.zeros((1, 8, 8, 1), np.float32)).dtype == "float32"


def test_a_network_that_shrinks_its_input_is_refused():
    image = keras.Input((None, None, 1))
    with pytest.raises(unet.UserError, match="cannot tile such a network"):
        unet.stride_and_radius(keras.Model(image, keras.layers.Conv2D(1, 3)(image)))


def test_another_number_format_keeps_weights_and_nearly_the_output():
    model = unet.build_unet()
    low = unet.with_dtype(model, "mixed_bfloat16")
    assert low.get_layer("bridge_conv1").compute_dtype == "bfloat16"
    image = np.random.default_rng(0).random((1, 64, 64, 1), np.float32)
    assert low(image).dtype == np.float32
    assert np.abs(low(image).numpy() - model(image).numpy()).max() < 0.05
    back = unet.with_dtype(low, "float32")
    assert np.array_equal(back(image), model(image))
