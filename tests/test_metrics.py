import tracemalloc

import numpy as np
import pytest
from PIL import Image

from membrane import metrics
from membrane.errors import UserError

LABEL = np.ones((20, 21), bool)
LABEL[:, 10] = False


def changed(*places, value=False, base=LABEL):
    mask = base.copy()
    for place in places:
        mask[place] = value
    return mask


TOY = [
    ("itself", LABEL, 1, 1),
    ("5 px thick", changed(np.s_[:, 8:13]), 1, 1),
    ("all white", np.ones_like(LABEL), 0.666667, 0),
    ("all black", np.zeros_like(LABEL), 0.666667, 0),
    ("a hole in the membrane", changed(np.s_[7, 10], value=True), 0.666667, 0),
    ("one cell split", changed(np.s_[10, :10]), 0.841503, 0.740659),
    ("shifted", changed(np.s_[:, 12], base=np.ones_like(LABEL)), 0.857291, 0.622728),
]
GOLDEN_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
GOLDEN = {  # V_rand, then V_info, at these thresholds
    "0022": (
        (0.105240, 0.229308, 0.478594, 0.776933, 0.871752, 0.945131, 0.755066),
        (0.168834, 0.690112, 0.860291, 0.940966, 0.962342, 0.962075, 0.886112),
    ),
    "0024": (
        (0.093330, 0.279849, 0.351256, 0.730921, 0.895290, 0.917849, 0.715402),
        (0.050308, 0.702811, 0.795364, 0.926501, 0.960440, 0.950526, 0.852216),
    ),
    "0025": (
        (0.112492, 0.230629, 0.340404, 0.610741, 0.810535, 0.902389, 0.784233),
        (0.272336, 0.691125, 0.804159, 0.907190, 0.949142, 0.947871, 0.872527),
    ),
}


@pytest.mark.parametrize("name, mask, v_rand, v_info", TOY, ids=[row[0] for row in TOY])
def test_toy_table_of_the_challenge(name, mask, v_rand, v_info):
    scores = metrics.score_segmentation(LABEL, mask)
    assert scores["v_rand"] == pytest.approx(v_rand, abs=1e-6)
    assert scores["v_info"] == pytest.approx(v_info, abs=1e-6)


@pytest.mark.isbi
@pytest.mark.parametrize("number", GOLDEN)
def test_golden_table_of_the_challenges_own_program(golden, number):
    probability = np.asarray(Image.open(golden / f"prob_{number}.png")) / 255
    label = np.asarray(Image.open(golden / f"label_{number}.png")) > 127
    for threshold, v_rand, v_info in zip(GOLDEN_THRESHOLDS, *GOLDEN[number], strict=True):
        scores = metrics.score_segmentation(label, probability > threshold)
        assert scores["v_rand"] == pytest.approx(v_rand, abs=1e-3)
        assert scores["v_info"] == pytest.approx(v_info, abs=1e-3)


def test_a_diagonal_membrane_thins_to_a_line_of_single_pixels():
    rows, columns = np.indices((20, 20))
    lines = metrics.thin_borders(abs(rows - columns) > 2) == 0
    assert lines.sum(1).max() == 1 and lines.sum() >= 19  # not the stairs of 8-connected growth


def test_a_split_lowers_the_split_term_and_a_merge_the_merge_term():
    split = metrics.score_segmentation(LABEL, TOY[5][1])
    merged = metrics.score_segmentation(LABEL, np.ones_like(LABEL))
    assert split["v_rand_split"] < 0.8 and split["v_rand_merge"] > 0.99
    assert merged["v_rand_split"] == 1 and merged["v_rand_merge"] == pytest.approx(0.5)
    assert split["v_info_split"] < split["v_info_merge"]
    assert merged["v_info_merge"] == 0


def test_a_label_without_interior_has_no_score():
    scores = metrics.score_segmentation(np.zeros((4, 4), bool), LABEL[:4, :4])
    assert all(np.isnan(value) for value in scores.values())


def test_membrane_scores_are_of_the_membrane_class():
    label, mask = np.array([[0, 0, 1, 1]], bool), np.array([[0, 1, 1, 1]], bool)
    assert metrics.score_membrane(label, mask) == pytest.approx(
        {"membrane_f1": 2 / 3, "membrane_iou": 1 / 2}
    )
    assert metrics.score_membrane(label | True, label | True)["membrane_f1"] == 1


def leaky(gap):
    """A map whose membrane is P = 0.1 but for a gap of P = `gap`, inside 0.95."""
    probability = np.where(LABEL, 0.95, 0.1)
    probability[5, 10] = gap
    return probability


def test_calibration_finds_the_threshold_that_closes_the_gap():
    maskers = [leaky(0.6).__gt__] * 2
    result = metrics.calibrate([LABEL, LABEL], maskers, (0.3, 0.5, 0.7, 0.8, 0.97))
    assert result["threshold"] in (0.7, 0.8)
    assert result["oracle"]["v_rand"] == result["leave_one_out"]["v_rand"] == 1
    assert [row["v_rand"] < 1 for row in result["table"]] == [True, True, False, False, True]


def test_the_thresholds_rise_from_0_to_1():
    assert np.all(np.diff([0, *metrics.THRESHOLDS, 1]) > 0) and len(metrics.THRESHOLDS) > 10


def test_a_plateau_is_preferred_to_a_peak():
    def rows(*scores):
        return [{"v_rand": score, "v_info": score} for score in scores]

    assert metrics.choose_threshold([rows(0.1, 0.95, 0.1, 0.9, 0.93, 0.9)]) == 4
    assert metrics.choose_threshold([rows(0.9, 0.8, 0.1)]) == 1  # nothing is known beyond 0.9
    assert metrics.choose_threshold([rows(np.nan, np.nan), rows(0.1, 0.9)]) == 1


def test_the_fixed_score_never_sees_the_slice_it_scores():
    maskers = [leaky(0.6).__gt__, leaky(0.85).__gt__]
    result = metrics.calibrate([LABEL, LABEL], maskers, (0.7, 0.9))
    assert result["oracle"]["v_rand"] == 1
    assert result["leave_one_out"]["v_rand"] == pytest.approx((1 + 2 / 3) / 2, abs=1e-6)


def test_labels_without_interior_cannot_choose_a_threshold():
    with pytest.raises(UserError, match="no cell interior"):
        metrics.calibrate([LABEL & False], [leaky(0.6).__gt__])


def test_one_slice_is_scored_at_a_threshold_that_was_not_chosen_on_it():
    for prior, nearest in ((0.58, 0.6), (0.9, 0.8)):
        result = metrics.calibrate([LABEL], [leaky(0.6).__gt__], (0.4, 0.6, 0.8), prior=prior)
        assert result["leave_one_out"] == metrics.score_slice(LABEL, leaky(0.6) > nearest)


def test_the_errors_of_very_many_cells_need_no_table_of_each_with_each():
    mask = np.zeros((240, 240), bool)
    mask[::2, ::2] = True  # 14,400 cells: a full table would have 1.6 GB
    tracemalloc.start()
    merged, split = metrics.find_errors(mask, mask)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**26 and not merged.any() and not split.any()


def test_pixels_without_a_label_do_not_count():
    known = np.ones(LABEL.shape, bool)
    known[:4] = False
    mask = leaky(0.6) > 0.7
    other = mask.copy()
    other[:4] ^= True
    label = LABEL & known
    whole = metrics.score_slice(LABEL, LABEL, known)
    assert whole["v_rand"] == whole["membrane_f1"] == 1
    assert all(map(np.isnan, metrics.score_slice(LABEL & False, LABEL, LABEL & False).values()))
    for key in ("membrane_f1", "membrane_iou"):
        scores = [metrics.score_slice(label, one, known)[key] for one in (mask, other)]
        assert scores[0] == scores[1] != metrics.score_slice(label, other)[key]


def test_merged_and_split_parts_are_found_and_numbered_by_size():
    label = np.ones((60, 100), bool)
    label[:, 30] = label[:, 70] = False  # cells of 30, 39 and 29 columns
    merged, split = metrics.find_errors(label, label)
    assert not merged.any() and not split.any()
    joined = label.copy()
    joined[5, 30] = True
    merged, split = metrics.find_errors(label, joined)
    assert set(np.unique(merged)) == {0, 1} and not split.any()
    assert (merged[:, :30] == 1).all() and not merged[:, 31:].any()
    cut = label.copy()
    cut[20] = False
    merged, split = metrics.find_errors(label, cut)
    assert not merged.any() and not split[21:].any()
    assert [int((split == number).sum()) for number in (1, 2, 3)] == [20 * 39, 20 * 30, 20 * 29]
    corner = np.zeros((40, 40), bool)
    corner[:20, :20] = corner[20:, 20:] = True  # two cells, for the challenge
    merged, split = metrics.find_errors(corner, np.ones_like(corner))
    assert merged.sum() == 400 and not split.any()
    beside = np.roll(label, 1, axis=1)
    beside[:, 0] = True
    assert not any(parts.any() for parts in metrics.find_errors(label, beside))
