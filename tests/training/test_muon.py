import keras
import numpy as np
import pytest

from membrane.training.muon import ADAM_SHARE, STEP, Muon, orthogonalise

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (1, 1, 4, 64), (3, 3, 1, 4)])
def test_an_orthogonalised_kernel_has_singular_values_near_one(shape):
    kernel = RNG.normal(0, 3, shape).astype(np.float32)
    kernel[..., 0] *= 100  # of which the plain gradient would follow one direction
    values = np.linalg.svd(np.asarray(orthogonalise(kernel)).reshape(-1, shape[-1]))[1]
    assert orthogonalise(kernel).shape == shape
    assert 0.5 < values.min() <= values.max() < 1.3


def step(shape, gradient, rate=0.01):
    """How far a variable of zeros moves in the first step."""
    variable = keras.Variable(np.zeros(shape, np.float32))
    optimizer = Muon(rate)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(gradient)])
    return variable.numpy()


def test_a_kernels_step_has_one_size_whatever_the_gradients():
    for scale in (1e-4, 1e4):
        gradient = scale * RNG.normal(size=(3, 3, 16, 32)).astype(np.float32)
        move = step(gradient.shape, gradient)
        assert np.sqrt((move**2).mean()) == pytest.approx(0.01 * STEP, rel=0.2)
        assert (move * gradient).sum() < 0


@pytest.mark.parametrize("shape", [(16,), (3, 3, 1, 16), (1, 1, 16, 1)])
def test_what_is_no_matrix_moves_as_with_adam(shape):
    gradient = RNG.normal(size=shape).astype(np.float32)
    adam = keras.optimizers.Adam(ADAM_SHARE * 0.01)
    variable = keras.Variable(np.zeros(shape, np.float32))
    adam.build([variable])
    adam.apply([keras.ops.convert_to_tensor(gradient)])
    assert np.allclose(step(shape, gradient), variable.numpy(), rtol=1e-4)


def test_muon_fits_what_one_kernel_can():
    keras.utils.set_random_seed(0)
    images = RNG.normal(size=(16, 8, 8, 4)).astype(np.float32)
    layers = [keras.layers.Conv2D(6, 3, padding="same") for _ in range(2)]
    target = layers[0](images)
    model = keras.Sequential([keras.Input((8, 8, 4)), layers[1]])
    model.compile(Muon(0.05), "mse")
    before = model.evaluate(images, target, verbose=0)
    steps = (np.tile(array, (60, 1, 1, 1)) for array in (images, target))
    model.fit(*steps, verbose=0, batch_size=16, shuffle=False)
    assert model.evaluate(images, target, verbose=0) < 0.05 * before


def test_a_step_looks_ahead_by_nesterovs_momentum():
    first, second = RNG.normal(size=(2, 3, 3, 8, 8)).astype(np.float32)
    variable = keras.Variable(np.zeros(first.shape, np.float32))
    optimizer = Muon(0.01, momentum=0.9)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(first)])
    before = variable.numpy()
    optimizer.apply([keras.ops.convert_to_tensor(second)])
    mean = 0.9 * first + second
    expected = 0.01 * STEP * np.sqrt(72) * np.asarray(orthogonalise(second + 0.9 * mean))
    assert np.allclose(before - variable.numpy(), expected, atol=1e-6)
