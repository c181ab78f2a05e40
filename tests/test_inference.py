import keras
import numpy as np
import pytest
from keras import layers
from skimage.measure import label as connected_components

import unet
from inference import Predictor, load_network, to_mask
from slices import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=[1, 2], ids=["undilated", "dilated"])
def network(request):
    keras.utils.set_random_seed(1)
    return unet.build_unet((4, 6, 8), request.param)


def whole_slice(network, image):
    """P(interior) of the whole slice at once, its border reflected, as plainly as can be."""
    margin = 80
    sides = [(margin, margin + -side % 4) for side in image.shape]
    padded = np.pad(image, sides, mode="reflect")
    output = network(padded[None, :, :, None]).numpy()[0, :, :, 0]
    return output[margin : margin + image.shape[0], margin : margin + image.shape[1]]


@pytest.mark.parametrize("size, tile", [
    ((64, 64), 64), ((101, 90), 1024), ((101, 90), 32), ((130, 47), 40), ((5, 3), 32),
    ((66, 130), 64), ((127, 129), 12),
])  # fmt: skip
def test_tiled_prediction_equals_whole_slice(network, size, tile):
    image = RNG.random(size).astype(np.float32)
    tiled = Predictor(network, tile=tile)(image)
    assert tiled.shape == size and tiled.dtype == np.float32
    assert np.abs(tiled - whole_slice(network, image)).max() <= 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 3), (77, 1)])
def test_the_smallest_slices_are_predicted(network, size):
    probability = Predictor(network, tta=True)(RNG.random(size).astype(np.float32))
    assert probability.shape == size
    assert np.isfinite(probability).all()


def test_averaging_makes_no_difference_between_a_slice_and_its_mirror(network):
    image = RNG.random((60, 44)).astype(np.float32)
    predict = Predictor(network, tta=True)
    expected = predict(image)
    assert not np.allclose(Predictor(network)(image[::-1])[::-1], Predictor(network)(image))
    for turn in (np.flipud, np.fliplr, np.transpose, np.rot90):
        assert np.allclose(predict(turn(image)), turn(expected), atol=1e-6)


def test_averaged_tiles_equal_the_averaged_whole(network):
    image = RNG.random((90, 101)).astype(np.float32)
    tiled = Predictor(network, tta=True, tile=32)(image)
    assert np.abs(tiled - Predictor(network, tta=True)(image)).max() <= 1e-6


def test_one_trace_serves_all_sizes(network):
    predict = Predictor(network)
    for size in ((40, 40), (41, 90), (7, 7)):
        predict(np.zeros(size, np.float32))
    assert predict.predict_batch.experimental_get_tracing_count() == 1


def test_later_training_changes_the_prediction():
    network = unet.build_unet((4, 8))
    predict = Predictor(network)
    image = RNG.random((20, 20)).astype(np.float32)
    before = predict(image)
    network.set_weights([weights + 0.1 for weights in network.get_weights()])
    assert not np.array_equal(predict(image), before)


def ridge(height, depth):
    """P(interior) of two cells and a blurred membrane between them, leaky (`height`) in one row."""
    profile = np.array([1, 1, 1, 0.95, 0.8, 0.6, depth, 0.6, 0.8, 0.95, 1, 1, 1])
    probability = np.tile(profile, (9, 1))
    probability[4, 4:9] = height
    return probability


def test_a_mask_has_the_thresholds_cells_with_their_true_outlines():
    mask = to_mask(ridge(height=0.85, depth=0.2), 0.9)
    assert np.array_equal(mask[0], [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    assert connected_components(mask, connectivity=1).max() == 2  # the leak stays shut
    assert connected_components(to_mask(ridge(0.95, 0.2), 0.9), connectivity=1).max() == 1


def test_cells_that_touch_are_kept_apart_where_the_map_is_lowest():
    mask = to_mask(ridge(height=0.7, depth=0.55), 0.9)
    assert np.array_equal(np.flatnonzero(~mask[0]), [6])
    assert connected_components(mask, connectivity=1).max() == 2


def test_what_the_threshold_does_not_find_does_not_come_back():
    probability = np.full((9, 9), 0.8)
    probability[2:4, 2:4] = 0.95
    assert not to_mask(probability, 0.96).any()
    assert to_mask(probability, 0.9).all()
    assert not to_mask(np.where(probability > 0.9, 0.4, 0.1), 0.9).any()


def test_a_low_threshold_is_a_plain_one():
    probability = RNG.random((40, 50))
    for threshold in (0.2, 0.5):
        assert np.array_equal(to_mask(probability, threshold), probability > threshold)


def two_inputs():
    inputs = [keras.Input((None, None, 1)) for _ in range(2)]
    return keras.Model(inputs, layers.Add()(inputs))


def three_channels():
    image = keras.Input((None, None, 3))
    return keras.Model(image, layers.Conv2D(1, 1)(image))


@pytest.mark.parametrize("build", [two_inputs, three_channels])
def test_a_model_of_another_kind_is_refused(tmp_path, build):
    build().save(tmp_path / "other.keras")
    with pytest.raises(UserError, match="expected one image of any size"):
        load_network(tmp_path / "other.keras")


@pytest.mark.parametrize("fault", ["missing", "text", "truncated"])
def test_a_file_that_is_no_model_is_named(tmp_path, fault):
    path = tmp_path / "broken.keras"
    unet.build_unet((2, 2)).save(path)
    whole = path.read_bytes()
    path.write_bytes(b"weights" if fault == "text" else whole[: len(whole) // 2])
    if fault == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"broken\.keras"):
        load_network(path)
