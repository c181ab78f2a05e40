import numpy as np
import pytest
from scipy import special
from skimage.measure import label as connected_components

from membrane.inference import basins, masks
from membrane.inference.neighbours import precompute_segmentations

RNG = np.random.default_rng(0)


def close_gaps(probability, threshold):
    return masks.segment(probability > 0.5, probability).close_gaps(threshold).mask()


def agglomerate(parts, probability, threshold):
    borders = basins.measure_borders(parts, probability > 0.5, probability)
    return basins.agglomerate(borders, threshold)


def two_cells(membrane=0.1, gap=0.95, rows=slice(28, 34)):
    """P(interior) of two cells and the membrane between them, with a gap in some rows."""
    probability = np.full((60, 60), 0.98)
    probability[:, 29:32] = membrane
    probability[rows, 29:32] = gap
    return probability


def count_cells(mask):
    return connected_components(mask, connectivity=1).max()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_a_gap_in_a_membrane_is_closed_by_a_line(threshold):
    probability = two_cells()
    assert count_cells(probability > threshold) == 1
    mask = close_gaps(probability, threshold)
    assert count_cells(mask) == 2
    closed = (probability > 0.5) & ~mask
    assert closed.sum() == 6 and closed[28:34, 28:33].sum() == 6


@pytest.mark.parametrize("probability", [
    two_cells(rows=slice(0, 60)),
    two_cells(rows=slice(6, 60)),
    np.full((9, 9), 0.8),
    np.full((9, 9), 0.3),
    np.where(RNG.random((40, 50)) > 0.5, 0.2, 0.4),
])  # fmt: skip
def test_where_no_membrane_is_to_be_closed_the_mask_is_the_plain_one(probability):
    assert np.array_equal(close_gaps(probability, 0.5), probability > 0.5)


def test_the_threshold_tells_how_much_of_a_membrane_must_be_there():
    probability = two_cells(membrane=0.6, gap=0.4)
    assert count_cells(close_gaps(probability, 0.5)) == 1
    assert count_cells(close_gaps(probability, 0.7)) == 2


def test_a_precomputed_segmentation_gives_the_same_masks(monkeypatch):
    monkeypatch.setattr(masks, "WINDOW", 48)
    monkeypatch.setattr(masks, "WINDOW_HALO", 16)
    for probability in (np.tile(two_cells(membrane=0.4, gap=0.7), (2, 1)), np.full((5, 60), 0.7)):
        (segment,) = precompute_segmentations([probability])
        for threshold in (0.2, 0.5, 0.9):
            assert np.array_equal(segment(threshold), close_gaps(probability, threshold))


def test_a_line_lies_on_the_darker_pixels_of_a_border():
    probability = two_cells(gap=0.9)
    probability[28:34, 30] = np.linspace(0.7, 0.8, 6)
    probability[28:34, 29] = np.linspace(0.8, 0.7, 6)
    upright = close_gaps(probability, 0.5)
    for mask, one in ((upright, probability), (close_gaps(probability.T, 0.5).T, probability)):
        closed = (one > 0.5) & ~mask
        assert closed.sum(1)[28:34].tolist() == [1] * 6
        for row in (28, 33):
            assert closed[row, 29 + one[row, 29:31].argmin()]


def test_a_line_between_equal_pixels_lies_on_the_lower_and_right_ones():
    parts = np.repeat([[1, 3], [2, 4]], 4, axis=0).repeat(4, axis=1)
    flat = np.full((8, 8), 0.6)
    borders = basins.measure_borders(parts, flat > 0.5, flat)
    drawn = np.zeros((8, 8), bool)
    drawn.ravel()[borders.line[0]] = True
    assert drawn[4].all() and drawn[:, 4].all() and drawn.sum() == 15


def test_borders_that_come_together_count_as_one():
    """One half of a membrane is open between two basins, but the other is shut: two cells."""
    shut, ajar = -4.0, 1.0
    parts = np.repeat([[1, 3], [2, 4]], 10, axis=0).repeat(10, axis=1)
    odds = np.full((20, 20), 5.0)
    odds[:10, 9:11], odds[10:, 9:11] = ajar, shut
    cells = agglomerate(parts, special.expit(odds), 0.5)
    assert cells[1] == cells[2] and cells[3] == cells[4] and cells[1] != cells[3]
    odds[10:, 9:11] = -ajar / 2
    cells = agglomerate(parts, special.expit(odds), 0.5)
    assert cells[1] == cells[2] == cells[3] == cells[4]


def test_a_border_comes_along_when_its_basin_is_joined():
    pairs, odds = np.array([[1, 2], [1, 4], [1, 5], [2, 3]]), np.array([3.0, -9, -9, -0.5])
    borders = basins.Borders(6, pairs, odds, np.ones(4, int), np.zeros((2, 0), int))
    assert len(set(basins.agglomerate(borders, 0.5)[1:])) == 4  # 3 stays apart from 1 and 2
    assert len(set(basins.agglomerate(borders, 0.3)[1:])) == 3


def test_a_large_slice_is_masked_in_windows_as_it_is_whole(monkeypatch):
    probability = np.tile(two_cells(), (3, 2))
    whole = close_gaps(probability, 0.5)
    monkeypatch.setattr(masks, "WINDOW", 48)
    monkeypatch.setattr(masks, "WINDOW_HALO", 64)
    assert (close_gaps(probability, 0.5) == whole).mean() > 0.999
    assert probability.shape > (2 * 48, 48) and 0.05 < whole.mean() < 0.99


def test_labels_number_the_cells_and_grow_to_one_pixel_lines():
    mask = np.ones((40, 90), bool)
    mask[:, 28:33] = mask[:, 60:63] = False
    mask[10:14, 30:32] = True  # a speck
    probability = np.where(mask, 0.9, 0.1).astype(np.float32)
    probability[:, 31] = 0.05  # where the membrane is darkest
    labels = masks.label_cells(probability, mask)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert np.mean(labels[:, 31] == 0) > 0.8 and np.all((labels == 0).sum(1) == 2)
    cells = masks.measure_cells(labels, probability)
    assert list(cells["label"]) == [1, 2, 3] and sum(cells["area_px"]) == (labels > 0).sum()
    first = probability[labels == 1].mean()
    assert abs(cells["mean_probability"][0] - first) < 1e-3 and cells["right"][2] == 90


def test_a_mask_without_cells_has_no_labels():
    for mask in (np.zeros((9, 9), bool), np.eye(9) > 0):
        assert not masks.label_cells(np.ones((9, 9), np.float32), mask).any()


def test_a_pixel_that_is_certainly_interior_does_not_outweigh_a_border():
    parts = np.ones((10, 8), np.int32)
    parts[:, 4:] = 2
    probability = np.ones((10, 8), np.float32)
    probability[:6, 3:5] = 1e-4
    assert len(set(agglomerate(parts, probability, 0.5)[1:])) == 2
    probability[:3, 3:5] = 1
    assert len(set(agglomerate(parts, probability, 0.5)[1:])) == 1


def test_borders_that_become_one_count_by_their_lengths():
    parts = np.full((12, 8), 3, np.int32)
    parts[:5, :4], parts[5:, :4] = 1, 2
    probability = np.ones((12, 8), np.float32)
    probability[:5, 4:], probability[5:, 4:] = 0.9, 0.35  # (5 * 2.197 - 7 * 0.619) / 12 = 0.554
    for threshold, cells in ((0.65, 2), (0.62, 1)):  # log-odds 0.619, 0.490
        assert len(set(agglomerate(parts, probability, threshold)[1:])) == cells
