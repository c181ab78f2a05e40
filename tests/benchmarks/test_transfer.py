import sys
from pathlib import Path

import numpy as np
from skimage.measure import label as connected_components

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import transfer


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
