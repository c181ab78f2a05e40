from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import unet
from membrane.inference import precision
from membrane.training.callbacks import membrane_iou
from membrane.training.muon import Muon


def test_the_last_layer_stays_float32_whatever_its_name():
    image = keras.Input((None, None, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(image)
    foreign = keras.Model(image, keras.layers.Conv2D(1, 1, padding="same", activation="sigmoid")(x))
    half = precision.with_dtype(foreign, "mixed_bfloat16")
    assert half.layers[1].compute_dtype == "bfloat16"
    assert half(np.zeros((1, 8, 8, 1), np.float32)).dtype == "float32"


def test_another_precision_keeps_weights_and_nearly_the_output():
    model = unet.build_unet()
    low = precision.with_dtype(model, "mixed_bfloat16")
    assert low.get_layer("bridge_conv1").compute_dtype == "bfloat16"
    image = np.random.default_rng(0).random((1, 64, 64, 1), np.float32)
    assert low(image).dtype == np.float32
    assert np.abs(low(image).numpy() - model(image).numpy()).max() < 0.05
    back = precision.with_dtype(low, "float32")
    assert np.array_equal(back(image), model(image))


def test_a_model_in_training_is_copied_without_its_optimizer():
    model = unet.build_unet((2, 2))
    model.compile(Muon(0.01), loss="binary_crossentropy", metrics=[membrane_iou])
    copy = precision.with_dtype(model, "mixed_bfloat16")
    assert not copy.compiled and model.compiled
    assert all(map(np.array_equal, copy.get_weights(), model.get_weights()))


@pytest.mark.parametrize("capability, dtype", [
    ((7, 5), "float32"), ((8, 0), "mixed_bfloat16"), ((9, 0), "mixed_bfloat16"),
])  # fmt: skip
def test_a_gpu_computes_in_bfloat16_where_it_can(monkeypatch, capability, dtype):
    details = {"compute_capability": capability, "device_name": "A GPU"}
    monkeypatch.setattr(
        tf.config, "list_physical_devices", lambda kind: [SimpleNamespace(name="GPU:0")]
    )
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    chosen, words = precision.choose_precision()
    assert chosen == dtype and words.startswith("GPU A GPU, ")
