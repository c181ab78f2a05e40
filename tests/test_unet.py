import keras
import numpy as np

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


def test_a_saved_network_gives_the_same_output(tmp_path):
    model = unet.build_unet((4, 8), 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    image = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    assert np.array_equal(loaded(image), model(image))
