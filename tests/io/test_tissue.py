"""Pixels that are no tissue."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from membrane import synthetic
from membrane.io import normalization, tissue

SLICE, _ = synthetic.make_slice(300, 280, 0)


def pad(value, rows=60, columns=0):
    """Returns a float slice with a border of one value, and where that lies."""
    image, blank = SLICE.astype(np.float32), np.zeros(SLICE.shape, bool)
    blank[:rows] = blank[:, :columns] = True
    image[blank] = value
    return image, blank


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float16, np.float32, ">f4"])
@pytest.mark.parametrize("value", [0, 255, 128])
def test_a_border_of_any_grey_value_is_no_tissue(dtype, value):
    image, blank = pad(value, 60, 9)
    assert np.array_equal(tissue.find_blank(image.astype(dtype)), blank)


@pytest.mark.parametrize("value", [-9999, np.nan, np.inf])
def test_neither_are_pixels_without_a_grey_value(value):
    image, blank = pad(value, 150)
    assert np.array_equal(tissue.find_blank(image), blank)
    image, _ = pad(0, 0)
    image[5, 7] = value
    lost = tissue.find_blank(image)
    assert lost is None if value == -9999 else lost.sum() == 1 and lost[5, 7]


def test_all_of_a_slice_without_padding_is_tissue_and_nothing_of_an_empty_one():
    assert tissue.find_blank(SLICE) is None
    assert tissue.find_blank(np.full((40, 300), 7, np.uint8)).all()


@pytest.mark.parametrize("text_side", [14, 24])
@pytest.mark.parametrize("ground", [0, 255])
def test_an_information_bar_is_no_tissue(text_side, ground):
    bar = Image.new("L", (280, 60), ground)
    words = "HV 5.00 kV   20 000 x   4.1 mm"
    ImageDraw.Draw(bar).text((6, 14), words, 255 - ground, ImageFont.load_default(text_side))
    blank = tissue.find_blank(np.vstack([SLICE, bar]))
    assert blank[300:].mean() > 0.95 and not blank[:300].any()


def test_overexposed_cells_are_tissue():
    smooth = ndimage.gaussian_filter(SLICE.astype(float), 1.0)
    white = np.percentile(smooth, 65)
    assert tissue.find_blank(np.minimum(smooth, white).astype(np.uint8)) is None
    image, blank = pad(0, 60)
    image[~blank] = np.minimum(smooth, white)[~blank]
    found = tissue.find_blank(image.astype(np.uint8))
    assert found[:60].all() and not found[60 + tissue.NEAR :].any()


def test_a_turned_slice_is_tissue_to_its_edge():
    turned = ndimage.rotate(SLICE, 20, order=1)
    inside = ndimage.rotate(np.ones_like(SLICE), 20, order=0) > 0
    assert (tissue.find_blank(turned) == ~inside).mean() > 0.99


def test_a_part_with_enough_around_it_has_what_the_whole_slice_has(monkeypatch):
    image, _ = pad(0, 40)
    image[200:230, 100:150] = 3
    whole = tissue.find_blank(image)
    reach = tissue.REACH
    assert np.array_equal(tissue.find_blank(image[210 - reach :])[reach:], whole[210:])
    monkeypatch.setattr(tissue, "BAND", 70)
    assert np.array_equal(tissue.find_blank(image), whole)


@pytest.mark.parametrize("value", [0, 255, -9999, np.nan])
def test_grey_values_are_measured_on_tissue_alone(value):
    image, blank = pad(value, 150)
    seen = normalization.normalize(image)
    assert np.allclose(seen[150:], normalization.normalize(SLICE[150:]), atol=1e-5)
    assert np.allclose(seen[blank], normalization.MEAN, atol=0.01)


def test_of_a_large_slice_with_a_little_tissue_that_is_measured():
    image = np.zeros((2300, 2300), np.uint8)
    image[300:420, 400:560] = SLICE[:120, :160]
    sample = normalization.sample_pixels(image)
    assert sample.size and abs(sample.mean() - SLICE[:120, :160].mean()) < 8
