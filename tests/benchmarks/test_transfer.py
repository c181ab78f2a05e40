import sys
from pathlib import Path

import numpy as np
from conftest import PRETRAINED
from skimage.measure import label as connected_components

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer

from membrane import synthetic
from membrane.inference.loading import load_network
from membrane.inference.predictor import Predictor


def test_a_resized_label_keeps_its_cells_apart():
    label = np.ones((20, 30), bool)
    label[:, 9] = label[13] = False
    for shape in ((10, 15), (16, 24), (25, 37), (7, 9)):
        resized = transfer.resize_label(label, shape)
        assert resized.shape == shape
        assert connected_components(resized, connectivity=1).max() == 4


def test_a_darkened_slice_is_smaller_and_darker_and_its_label_binary():
    image = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    name, darker, label = transfer.darken("a", image, (image > 60) * np.uint8(255))
    assert name == "a" and darker.shape == label.shape == (32, 48)
    assert darker.mean() < image.mean() and set(np.unique(label)) == {0, 255}


def test_slices_are_predicted_at_a_scale_and_scored_at_their_own_size():
    image, interior = synthetic.make_slice(96, 112, 1)
    predict = Predictor(load_network(PRETRAINED / "model.keras"))
    for scale in (1, 1.25):
        label = interior * np.uint8(255)
        (scores,) = transfer.score_masks(predict, [("a", image, label)], 0.5, scale)
        assert 0.5 < scores["v_rand"] <= 1 and 0.5 < scores["v_info"] <= 1


def test_a_label_is_known_near_corrections_only():
    mask = np.zeros((120, 130), bool)
    mask[:, 20:] = True
    assert np.array_equal(transfer.make_label(mask, None), mask * 255)
    label = transfer.make_label(mask, [{"pixels": [60 * 130 + 10]}])
    y, x = np.indices(mask.shape)
    near = np.hypot(y - 60, x - 10) <= transfer.NEAR
    assert np.array_equal(label, np.where(near, mask * 255, transfer.UNKNOWN))
