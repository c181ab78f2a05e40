import numpy as np
import pytest

from membrane import synthetic
from membrane.io import normalization, readers

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), np.uint8)


@pytest.mark.parametrize("convert", [
    lambda image: image,
    lambda image: image.astype(np.uint16) * 16,  # 12 bits in a 16-bit file
    lambda image: image.astype(np.uint16) * 257,
    lambda image: image.astype(np.float64) * 3e-4 - 7,
    lambda image: (image * 0.5 + 60).astype(np.float32),  # half the contrast, brighter
])  # fmt: skip
def test_normalised_grey_does_not_depend_on_dtype_or_exposure(convert):
    expected = normalization.normalize(GREY)
    assert expected.dtype == np.float32
    assert np.allclose(normalization.normalize(convert(GREY)), expected, atol=2e-4)


def test_normalised_slice_has_the_training_mean_and_deviation():
    image = normalization.normalize(RNG.normal(900, 50, (300, 300)).astype(np.uint16), 0.4, 0.1)
    assert abs(image.mean() - 0.4) < 2e-3 and abs(image.std() - 0.1) < 4e-3


def test_a_few_hot_pixels_do_not_darken_the_rest():
    hot = GREY.astype(np.uint16)
    hot[0, :3] = 65535
    assert np.abs(normalization.normalize(hot)[1:] - normalization.normalize(GREY)[1:]).max() < 0.05


def test_a_constant_slice_becomes_the_mean():
    for value in (0, 255):
        constant = normalization.normalize(np.full((5, 5), value, np.uint8))
        assert np.allclose(constant, normalization.MEAN)


def test_resizing_keeps_grey_values_and_averages_when_it_shrinks():
    image = np.random.default_rng(0).random((40, 60), np.float32)
    assert normalization.resize(image, (80, 120)).shape == (80, 120)
    small = normalization.resize(image, (4, 6))
    assert small.dtype == np.float32 and small.std() < image.std() / 4
    assert np.allclose(normalization.resize(np.full((9, 9), 0.3), (20, 5)), 0.3)


def test_bright_membranes_look_inverted_and_dark_ones_do_not():
    for seed in range(4):
        image = normalization.normalize(synthetic.make_slice(300, 400, seed)[0])
        assert not normalization.looks_inverted(image)
        assert normalization.looks_inverted(2 * normalization.MEAN - image)
    for image in (
        np.zeros((1, 1)),
        np.full((50, 60), 0.5),
        np.random.default_rng(0).random((99, 99)),
    ):
        assert not normalization.looks_inverted(normalization.normalize(image))


@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_polarity_is_told_at_the_pixel_size_that_the_network_knows(scale):
    image = normalization.normalize(synthetic.make_slice(300, 400, 1)[0])
    other = normalization.resize(image, (round(300 / scale), round(400 / scale)))
    assert not normalization.looks_inverted(other, (scale, scale))
    assert normalization.looks_inverted(2 * normalization.MEAN - other, (scale, scale))


@pytest.mark.isbi
def test_real_slices_polarity_is_told(isbi):
    for _, image in readers.read_named(isbi / "unmodified-data/test/imgs"):
        assert not normalization.looks_inverted(normalization.normalize(image))
        assert normalization.looks_inverted(normalization.normalize(255 - image))


def test_probabilities_are_rounded_to_bytes(monkeypatch):
    monkeypatch.setattr(normalization, "LOOK", 2)
    values = np.array([[0.0], [0.001], [0.002], [0.5], [0.999], [1.0]], np.float32)
    assert normalization.to_bytes(values).ravel().tolist() == [0, 0, 1, 128, 255, 255]


def test_grey_values_are_measured_on_all_of_a_slice_or_on_patches_all_over_it(monkeypatch):
    monkeypatch.setattr(normalization, "PATCH", 8)
    limit = normalization.PATCHES * 8**2
    for shape in ((30, 50), (limit // 64, 64)):
        assert normalization.sample_regions(shape) == [np.s_[0 : shape[0], 0 : shape[1]]]
    seen = np.zeros((70, 90), int)
    wide = normalization.sample_regions((15, 20000))
    assert len(wide) == 64 and len({rows.start for rows, _ in wide}) == 1
    for part in normalization.sample_regions(seen.shape):
        seen[part] += 1
    assert seen.size > limit and seen.sum() == limit and seen.max() == 1
    assert seen[0, 0] == seen[-1, -1] == seen[0, -1] == seen[-1, 0] == 1


def test_a_slice_without_tissue_still_has_a_grey_value():
    nothing = np.zeros((40, 50), np.uint8)
    assert normalization.sample_pixels(nothing).tolist() == [0]
    assert normalization.pixels_of_tissue([nothing]).size == 0


def test_no_digit_of_32_bit_slices_is_lost():
    image = (2**30 + np.random.default_rng(0).integers(0, 50, (40, 50))).astype(np.int32)
    small = (image - 2**30).astype(np.uint8)
    assert np.allclose(normalization.normalize(image), normalization.normalize(small), atol=1e-4)


def test_a_slice_with_as_many_dark_as_bright_pieces_is_not_called_inverted():
    rows, columns = np.indices((400, 400))
    waves = (np.sin(rows / 8) * np.sin(columns / 8)).astype(np.float32)
    for image in (waves, -waves):
        for tilt in (-0.2, 0.0, 0.2):  # a tenth more pieces of one kind is no evidence
            assert not normalization.looks_inverted(0.5 + 0.2 * image + tilt * 0.01)


def test_the_middle_of_a_slice_is_in_its_middle():
    look = normalization.LOOK
    rows, columns = normalization.middle_region((look + 41, look - 1))
    assert (rows.start, rows.stop) == (20, 20 + look)
    assert (columns.start, columns.stop) == (0, look - 1)


def test_colours_weigh_as_the_eye_sees_them():
    colours = np.eye(3, dtype=np.float32)[None] * 100  # red, green, blue
    assert np.allclose(normalization.to_grey(colours), [[29.9, 58.7, 11.4]])
