import keras
import numpy as np
import pytest
import tensorflow as tf

import unet
from membrane.inference.fused_unet import conv2d_of_phases, fuse, fused_unet
from membrane.inference.precision import with_dtype


@pytest.mark.parametrize("dilated", [tf.nn.conv2d, conv2d_of_phases])
@pytest.mark.parametrize("filters, dilation", [((4, 6, 8), 1), ((4, 6, 8), 2), ((3, 4), 3),
                                               ((2, 3, 4, 5, 6), 2)])  # fmt: skip
def test_the_fused_network_has_the_same_output_and_gradients(filters, dilation, dilated):
    network = unet.build_unet(filters, dilation)
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(0, 0.3, w.shape) for w in network.get_weights()])
    weights, forward = fuse(network, dilated)
    assert len(weights()) == len(network.get_weights()) / 2

    def fused(images):
        return forward(images, weights())

    images = rng.normal(size=(2, 32, 48, 1)).astype(np.float32)
    results = []
    for either in (network, fused):
        with tf.GradientTape() as tape:
            output = either(images)
            loss = tf.reduce_mean(output**2)
        results.append([output, *tape.gradient(loss, network.trainable_variables)])
    for slow, fast in zip(*results, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-5)
    network.set_weights([w + 0.1 for w in network.get_weights()])
    np.testing.assert_allclose(fused(images), network(images), rtol=1e-3, atol=1e-5)


def test_a_network_of_another_plan_is_computed_as_it_is():
    plain = unet.build_unet((4, 6, 8))

    def change(layer):
        config = layer.get_config()
        if layer.name == "decoder1_conv1":
            config["activation"] = "elu"
        return layer.__class__.from_config(config)

    other = keras.models.clone_model(plain, clone_function=change)
    image = keras.Input((None, None, 1))
    foreign = keras.Model(image, keras.layers.Conv2D(1, 1, activation="sigmoid")(image))
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype(np.float32)
    for network in (other, foreign):
        weights, forward = fuse(network)
        np.testing.assert_array_equal(forward(images, weights()), network(images))
        assert not weights()
        assert fused_unet(network) is network


def test_the_last_layer_is_computed_in_float32_so_that_p_has_its_digits():
    network = with_dtype(unet.build_unet(), "mixed_bfloat16")
    image = np.random.default_rng(0).random((1, 128, 128, 1)).astype(np.float32)
    fused, keras_own = (np.asarray(one(image)) for one in (fused_unet(network), network))
    assert len(np.unique(fused)) > 5000  # bfloat16 has 256 between two powers of two
    assert np.abs(fused - keras_own).max() < 0.02
