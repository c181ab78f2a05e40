import numpy as np
import pytest
from scipy import ndimage

from membrane import metrics, synthetic
from membrane.inference import neighbours
from membrane.inference.masks import segment

THRESHOLD = 0.5


def make_series(count, size=(220, 260), seed=0, drift=2):
    """P(interior) and labels of slices that drift over one tissue, each with faults of its own.

    A fault is a spot where P is a little above 0.5, whatever lies there.
    """
    rng = np.random.default_rng(seed)
    _, tissue = synthetic.make_slice(*(side + drift * count for side in size), seed)
    maps, labels = [], []
    for number in range(count):
        label = tissue[drift * number :, drift * number :][: size[0], : size[1]]
        probability = np.where(label, 0.95, 0.05)
        spots = np.zeros(size, bool)
        spots[tuple(rng.integers(0, size, (60, 2)).T)] = True
        probability[ndimage.binary_dilation(spots, iterations=9)] = 0.56
        maps.append(probability.astype(np.float32))
        labels.append(label)
    return maps, labels


def close_gaps(maps, together=True):
    """Returns the masks of maps, None standing for one that is lost, and which pairs agree."""
    slices = ((z, None if one is None else segment(one > 0.5, one)) for z, one in enumerate(maps))
    found = neighbours.close_gaps(slices, THRESHOLD, together)
    numbers, segmentations, pairs = zip(*found, strict=True)
    assert numbers == tuple(range(len(maps)))
    return [one and one.mask() for one in segmentations], pairs


def score(masks, labels):
    pairs = zip(labels, masks, strict=True)
    return np.mean([metrics.score_slice(label, mask)["v_rand"] for label, mask in pairs])


@pytest.fixture(scope="module")
def series():
    maps, labels = make_series(8)
    return maps, labels, *close_gaps(maps)


def test_what_one_slice_shows_badly_its_neighbours_decide(series):
    maps, labels, masks, pairs = series
    alone, _ = close_gaps(maps, together=False)
    assert pairs == (None, *[True] * 7)
    assert score(masks, labels) > score(alone, labels) + 0.05


def test_slices_that_are_no_neighbours_change_nothing(series):
    maps = series[0]
    turned = [np.rot90(one, 2 * (z % 2))[: 200 + z] for z, one in enumerate(maps)]
    strangers = [make_series(1, seed=seed)[0][0] for seed in range(4)]
    for slices, agree in ((turned, None), (strangers, False), (maps[:1], None)):
        masks, pairs = close_gaps(slices)
        assert all(map(np.array_equal, masks, close_gaps(slices, together=False)[0]))
        assert set(pairs[1:]) <= {agree}


@pytest.mark.parametrize("limit", ["MIN_AGREEMENT", "MIN_SIGNIFICANCE", "MIN_BORDERS"])
def test_too_little_tells_no_neighbour(series, monkeypatch, limit):
    assert neighbours.MIN_BORDERS >= 2  # else there is no standard error
    one = neighbours.Series(dict(enumerate(segment(m > 0.5, m) for m in series[0][:2])).get, 0.5)
    (borders,) = (window.borders for window in one.get(0).windows)
    joined = np.equal(*one._cells(0, 0, 0)[borders.pairs].T)
    evidence = one._compare(0, 1, 0, 0)
    within, between = evidence[joined], evidence[~joined]
    difference = within.mean() - between.mean()
    error = np.hypot(
        within.std(ddof=1) / len(within) ** 0.5, between.std(ddof=1) / len(between) ** 0.5
    )
    value = {
        "MIN_AGREEMENT": difference,
        "MIN_SIGNIFICANCE": difference / error,
        "MIN_BORDERS": min(len(within), len(between)),
    }[limit]
    for factor, tells in ((0.99, True), (1.01, False)):
        monkeypatch.setattr(neighbours, limit, factor * value)
        assert one._tells(0, 1, 0) == tells


def test_where_a_slice_is_lost_the_next_but_one_serves(series):
    maps, labels, whole, _ = series
    alone, _ = close_gaps(maps, together=False)
    for lost in (None, np.zeros_like(maps[0]), make_series(1, seed=9)[0][0]):
        slices = [lost if z == 3 else one for z, one in enumerate(maps)]
        masks, pairs = close_gaps(slices)
        assert pairs[2] and not pairs[3] and not pairs[4] and pairs[5]
        beside = [z for z in range(8) if z != 3]
        found, single, together = (
            score([some[z] for z in beside], [labels[z] for z in beside])
            for some in (masks, alone, whole)
        )
        assert found > single + 0.7 * (together - single)
    slices = {z: segment(one > 0.5, one) for z, one in enumerate(maps) if z != 3}
    found = neighbours.Series(slices.get, THRESHOLD)
    assert found._neighbour(4, -1, 0) == 2 and found._neighbour(2, 1, 0) == 4


def test_a_mask_follows_from_the_slices_within_reach(series, monkeypatch):
    maps = series[0]
    held = []

    class Watched(neighbours.Series):
        def close_gaps(self, z):
            held.append(sum(self.get(near) is not None for near in range(-20, 20)))
            assert len({key[0] for key in self.known}) <= 2 * neighbours.REACH + 1
            return super().close_gaps(z)

    monkeypatch.setattr(neighbours, "Series", Watched)
    many = [maps[z % 8] for z in range(15)]
    masks, _ = close_gaps(many)
    assert max(held) == 2 * neighbours.REACH + 1
    for z in (5, 7):
        near = slice(z - neighbours.REACH, z + neighbours.REACH + 1)
        assert np.array_equal(close_gaps(many[near])[0][neighbours.REACH], masks[z])


def test_the_masks_of_a_calibration_are_those_of_a_prediction(series):
    maps, _, masks, _ = series
    for together in (True, False):
        flags = () if together else (False,)
        functions = neighbours.precompute_segmentations(maps, *flags)
        expected = masks if together else close_gaps(maps, False)[0]
        for segmentation, mask in zip(functions, expected, strict=True):
            assert np.array_equal(segmentation(THRESHOLD), mask)


def test_evidence_is_the_overlap_of_what_lies_under_two_basins():
    def cut(*walls):
        mask = np.full((30, 60), True)
        mask[:, walls] = False
        return segment(mask, np.where(mask, 0.9, 0.1)).windows[0]

    here = cut(22, 39)  # three cells: 22, 16 and 20 columns wide
    pair = [here.basins[15, 10], here.basins[15, 30]]
    border = here.borders.pairs.tolist().index(sorted(pair))
    evidence = []
    for there in (cut(58), cut(22, 39), cut(27, 39)):
        cells = np.arange(there.borders.basins)
        evidence.append(neighbours.compare(here, there, cells)[border])
    # in the last, 4 of the middle's 15 columns lie under the left one's cell, and one under none
    assert evidence == pytest.approx([1, -1, (2 * 4 / 15 - 1) * 15 / 16])
