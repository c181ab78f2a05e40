"""What must hold for every input, tried on those that hypothesis thinks of."""

import dataclasses

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from membrane import metrics
from membrane.inference.predictor import Predictor
from membrane.io import normalization, readers
from unet import build_unet

settings.register_profile("here", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("here")

SMALL = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
MASKS = SMALL.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2))


@st.composite
def cells_and_label(draw):
    shape = draw(SMALL)
    return draw(hnp.arrays(np.bool_, shape)), draw(hnp.arrays(np.int32, shape, elements=INTS))


INTS = st.integers(0, 4)


def count_pairs(label, cells):
    """V_rand by its meaning: ordered pairs of interior pixels that are in one cell."""
    truth = metrics.connected_components(label, connectivity=1)[label]
    cells = cells[label]
    self = np.eye(len(cells), dtype=bool)
    true = truth[:, None] == truth
    proposed = ((cells[:, None] == cells) & (cells > 0)) | self
    both = (true & proposed).sum()
    return both / true.sum(), both / proposed.sum(), 2 * both / (true.sum() + proposed.sum())


@given(cells_and_label())
def test_v_rand_is_a_count_of_pairs(pair):
    label, cells = pair
    scores = metrics.score_cells(label, cells)
    if not label.any():
        assert np.isnan(scores["v_rand"])
        return
    counted = count_pairs(label, cells)
    named = [scores[key] for key in ("v_rand_split", "v_rand_merge", "v_rand")]
    np.testing.assert_allclose(named, counted, rtol=1e-12)


@given(cells_and_label(), st.permutations([1, 2, 3, 4]))
def test_scores_are_bounded_and_do_not_depend_on_numbers_or_orientation(pair, order):
    label, cells = pair
    scores = metrics.score_cells(label, cells)
    renumbered = np.array([0, *order])[cells]
    for other in (
        metrics.score_cells(label, renumbered),
        metrics.score_cells(label.T, cells.T),
        metrics.score_cells(label[::-1, ::-1], cells[::-1, ::-1]),
    ):
        np.testing.assert_allclose(list(other.values()), list(scores.values()), atol=1e-12)
    assert all(np.isnan(one) or 0 <= one <= 1 for one in scores.values())


@given(MASKS)
def test_a_mask_is_perfect_for_itself_and_membrane_scores_are_symmetric(pair):
    one, other = pair
    forth, back = metrics.score_membrane(one, other), metrics.score_membrane(other, one)
    assert forth == back and all(0 <= score <= 1 for score in forth.values())
    assert set(metrics.score_membrane(one, one).values()) == {1.0}
    lone = metrics.thin_borders(one)
    if one.any() and np.array_equal(lone > 0, one):  # its borders are thin already
        assert metrics.score_segmentation(one, one)["v_rand"] == 1
    merged, split = metrics.find_errors(one, other)
    assert not ((merged > 0) & (split > 0)).any()


@given(hnp.arrays(np.uint8, SMALL), st.integers(1, 250), st.integers(0, 1000))
def test_normalisation_is_monotone_and_blind_to_gain_offset_and_dtype(image, gain, offset):
    normalised = normalization.normalize(image)
    assert normalised.dtype == np.float32 and normalised.shape == image.shape
    assert -1 <= normalised.min() and normalised.max() <= 2
    order = np.argsort(image, axis=None)
    assert (np.diff(normalised.ravel()[order]) >= 0).all()
    other = image.astype(np.uint16) * np.uint16(gain) + np.uint16(offset)
    for dtype in (np.uint16, np.int32, np.float32, np.float64):
        again = normalization.normalize(other.astype(dtype))
        np.testing.assert_allclose(again, normalised, atol=1e-4)


@pytest.mark.filterwarnings("error")
@given(hnp.arrays(np.float64, SMALL, elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_no_finite_slice_normalises_to_what_is_no_number(image):
    normalised = normalization.normalize(image)
    assert np.isfinite(normalised).all() and np.abs(normalised).max() <= 2


KINDS = ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64", "bool"]


@given(st.sampled_from(KINDS).flatmap(lambda kind: hnp.arrays(kind, SMALL)), st.booleans(),
       st.sampled_from([None, "zlib", "lzw", "packbits"]), st.sampled_from("<>"))  # fmt: skip
def test_every_tiff_is_read_as_it_was_written(tmp_path_factory, image, big, packed, order):
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        image = np.zeros_like(image)
    packed = None if image.dtype == np.bool_ else packed
    path = tmp_path_factory.getbasetemp() / "round.tif"
    kind = {"photometric": "minisblack", "compression": packed, "byteorder": order}
    tifffile.imwrite(path, image, bigtiff=big, **kind)
    (page,) = readers.read_pages(path)
    np.testing.assert_array_equal(page, image)


@given(st.sampled_from(["uint8", "uint16", "bool"]).flatmap(lambda kind: hnp.arrays(kind, SMALL)))
def test_every_png_is_read_as_it_was_written(tmp_path_factory, image):
    path = tmp_path_factory.getbasetemp() / "round.png"
    Image.fromarray(image).save(path)
    (page,) = readers.read_pages(path)
    assert page.shape == image.shape
    np.testing.assert_array_equal(page > 0, image > 0)
    if image.dtype != np.bool_:
        np.testing.assert_array_equal(page, image)


@pytest.fixture(scope="module")
def predictors():
    network = build_unet((2, 3, 2), dilation=2)
    return Predictor(network, tile=(10_000, 10_000)), Predictor(network)


SIDES = st.integers(1, 90)


@given(height=SIDES, width=SIDES, tile=st.tuples(SIDES, SIDES), data=st.data())
@settings(max_examples=40)
def test_no_tile_and_no_region_differs_from_the_whole_slice(predictors, height, width, tile, data):
    whole, tiled = predictors
    image = np.random.default_rng(height * 91 + width).random((height, width), np.float32)
    expected = whole(image)
    tiled.tiling = dataclasses.replace(tiled.tiling, tile=tile)
    np.testing.assert_allclose(tiled(image), expected, atol=1e-6)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    region = np.s_[top : top + tile[0], left : left + 7]
    region = tuple(
        slice(*one.indices(side)[:2]) for one, side in zip(region, image.shape, strict=True)
    )
    read = tiled.tiling.input_region(region, image.shape)
    part = tiled.predict_region(image[read], region, image.shape)
    np.testing.assert_allclose(part, expected[region], atol=1e-6)
