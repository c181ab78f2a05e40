import dataclasses
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import data
import unet
from membrane import cli, metrics, runs
from membrane.inference import precision
from membrane.inference.fused_unet import fuse
from membrane.inference.loading import load_network
from membrane.inference.masks import segment
from membrane.inference.predictor import Predictor

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2])
def network(request):
    keras.utils.set_random_seed(1)
    return unet.build_unet((4, 6, 8), request.param)


def whole_slice(network, image):
    """P(interior) of the whole slice at once, as plainly as can be."""
    padded = np.pad(image, [(0, -side % 4) for side in image.shape], mode="reflect")
    output = network(padded[None, :, :, None]).numpy()[0, :, :, 0]
    return output[: image.shape[0], : image.shape[1]]


@pytest.mark.parametrize("size, tile", [
    ((64, 64), 64), ((101, 90), 1024), ((101, 90), 32), ((130, 47), 40), ((5, 3), 32),
    ((66, 130), 64), ((127, 129), 12),
])  # fmt: skip
def test_tiled_prediction_equals_whole_slice(network, size, tile):
    image = RNG.random(size).astype(np.float32)
    tiled = Predictor(network, tile=(tile, tile), workers=2)(image)
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
    tiled = Predictor(network, tta=True, tile=(32, 32))(image)
    assert np.abs(tiled - Predictor(network, tta=True)(image)).max() <= 1e-6


@pytest.mark.parametrize("size, shapes", [
    ((512, 512), {(512, 512)}),  # as a whole
    ((512, 1024), {(256 + 20, 1024)}),
    ((700, 2000), {(236 + 20, 1020), (236 + 40, 1020), (228 + 20, 1020)}),
])  # fmt: skip
def test_tiles_have_long_rows_and_a_bounded_number_of_pixels(network, size, shapes):
    predict, seen = Predictor(network), set()
    predict.tiling = dataclasses.replace(predict.tiling, halo=20)
    predict.predict_batch = lambda batch: seen.add(batch.shape[1:3]) or tf.zeros(batch.shape)
    predict(np.zeros(size, np.float32))
    assert seen == shapes


def test_one_trace_serves_all_sizes(network):
    predict = Predictor(network)
    for size in ((40, 40), (41, 90), (7, 7)):
        predict(np.zeros(size, np.float32))
    assert predict.predict_batch.experimental_get_tracing_count() == 1


def test_later_training_changes_the_prediction_when_it_is_refreshed():
    network = unet.build_unet((4, 8))
    predict = Predictor(network)
    image = RNG.random((20, 20)).astype(np.float32)
    before = predict(image)
    network.set_weights([weights + 0.1 for weights in network.get_weights()])
    assert np.array_equal(predict(image), before)
    predict.refresh()
    assert np.array_equal(predict(image), Predictor(network)(image))
    assert not np.array_equal(predict(image), before)


def test_a_slice_is_predicted_at_the_scale_the_network_is_trained_at():
    predict = Predictor(unet.build_unet((2, 2)))
    compute, sizes = predict.predict_batch, []
    predict.predict_batch = lambda batch: sizes.append(batch.shape) or compute(batch)
    image = RNG.random((40, 60), np.float32)
    assert np.array_equal(predict(image, (1.0, 1.0)), predict(image))
    sizes.clear()
    probability = predict(image, (2.0, 0.5))
    assert sizes == [(1, 80, 30, 1)]
    assert probability.shape == (40, 60) and 0 <= probability.min() <= probability.max() <= 1


def test_tiles_are_normalised_as_the_whole_slice_is(network):
    deep = RNG.integers(300, 900, (90, 70)).astype(np.uint16)
    predict = Predictor(network, tta=True, tile=(32, 32))
    lazily = predict(deep, normalize=lambda tile: tile.astype(np.float32) / 1000)
    assert np.array_equal(lazily, predict(deep.astype(np.float32) / 1000))


@pytest.mark.isbi
def test_bfloat16_gives_the_masks_of_float32(isbi, tmp_path):
    record = runs.read_run(runs.OUTPUTS / runs.PRETRAINED)
    network = load_network(runs.OUTPUTS / runs.PRETRAINED / "model.keras")
    kinds = ("float32", "mixed_bfloat16")
    predictors = [Predictor(precision.with_dtype(network, kind)) for kind in kinds]
    pairs = data.load_pairs(data.find_data_set(str(isbi), tmp_path)).subset(range(2, 25, 5))
    differences, scores = [], []
    for image, label in zip(pairs.images, pairs.labels, strict=True):
        maps = [predict(image) for predict in predictors]
        cut = [segment(one > 0.5, one).close_gaps(record["threshold"]) for one in maps]
        masks = [one.mask() for one in cut]
        differences.append(np.mean(masks[0] != masks[1]))
        scores.append([metrics.score_segmentation(label, mask)["v_rand"] for mask in masks])
    assert 0 < np.mean(differences) < 0.0015
    assert abs(np.diff(np.mean(scores, axis=0))[0]) < 0.003


@pytest.mark.parametrize("tta", [False, True])
def test_batches_of_tiles_give_what_single_tiles_give(network, tta):
    image = RNG.random((190, 180), np.float32)
    single = Predictor(network, tta, (32, 32))(image)
    many = Predictor(network, tta, (32, 32), batch=8)
    compute, sizes = many.predict_batch, []
    many.predict_batch = lambda batch: sizes.append(len(batch)) or compute(batch)
    assert np.allclose(many(image), single, atol=1e-5)
    assert 2 < max(sizes) <= 8


def test_a_device_out_of_memory_gets_half_the_tiles_and_it_is_said(network, capsys):
    image = RNG.random((150, 130), np.float32)
    predict = Predictor(network, True, (64, 64), batch=8)
    expected, compute, sizes = predict(image), predict.predict_batch, []

    def fail(batch):
        sizes.append(len(batch))
        if len(batch) > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        return compute(batch)

    predict.predict_batch = fail
    assert np.allclose(predict(image), expected, atol=1e-5)
    assert predict.batch == 4 and max(sizes) > 4
    assert capsys.readouterr().out.count("exceed the device's memory") == 1


def test_on_a_gpu_the_hosts_threads_and_the_devices_streams_are_two_numbers(network, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    predict = Predictor(network, workers=16)
    assert predict.pool._max_workers == 2 and predict.batch == 8
    assert cli.share_cores() == len(os.sched_getaffinity(0)) and cli.share_cores(5) == 5


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_under_xla_as_on_a_gpu_the_same_is_predicted(dtype):
    fused = fuse(precision.with_dtype(unet.build_unet(), dtype))
    images, weights = RNG.random((1, 64, 64, 1), np.float32), fused.weights()
    compiled = tf.function(lambda images: fused.forward(images, weights), jit_compile=True)
    expected = fused.forward(tf.constant(images), weights)
    assert np.allclose(compiled(images), expected, atol=1e-5 if dtype == "float32" else 0.02)
