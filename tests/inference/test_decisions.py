import numpy as np
import pytest
from skimage.measure import label as connected_components
from test_neighbours import make_series

from membrane.inference import decisions, masks
from membrane.inference.basins import Borders
from membrane.inference.decisions import find_decisions
from membrane.inference.masks import Window, segment
from membrane.inference.tiling import full_region
from membrane.inference.window_cells import WindowCells, find_border, open_windows

THRESHOLD = 0.6


def tissue(gap):
    """P(interior) of two cells side by side; the upper half of their membrane has P = `gap`."""
    probability = np.full((60, 101), 0.95, np.float32)
    probability[:, 49:52] = 0.05
    probability[:30, 49:52] = gap
    return probability


def decide(probability, threshold=THRESHOLD):
    return segment(probability > 0.5, probability).close_gaps(threshold)


def count_cells(mask):
    return connected_components(mask, connectivity=1).max()


@pytest.mark.parametrize("gap, joined", [(0.6, False), (0.995, True)])
def test_one_decision_makes_two_cells_one_or_one_two(gap, joined):
    segmentation = decide(tissue(gap))
    mask = segmentation.mask()
    first = find_decisions(segmentation)[0]
    assert first.joined is joined and count_cells(mask) == 2 - joined
    assert np.sign(first.odds) == (1 if joined else -1)
    assert 40 < first.length < 100 and first.smaller > 1500
    assert first.at[0] < 30 and 47 < first.at[1] < 53
    assert sorted(side[1] > 50 for side in first.sides) == [False, True]
    assert all(mask[side] for side in first.sides)
    mask.ravel()[first.pixels] = not joined
    assert count_cells(mask) == 1 + joined


def test_how_close_a_decision_is_counts_from_the_threshold():
    odds = [find_decisions(decide(tissue(0.6), threshold))[0].odds for threshold in (0.5, 0.6)]
    assert odds[0] - odds[1] == pytest.approx(np.log(0.6 / 0.4))


def test_those_come_first_that_are_close_and_matter_and_their_number_is_bounded(monkeypatch):
    maps, _ = make_series(1, (300, 300))
    found = find_decisions(decide(maps[0]))
    gains = [one.gain for one in found]
    assert gains == sorted(gains, reverse=True) and len(found) == decisions.PER_SLICE
    assert len(find_decisions(decide(maps[0]), count=7)) == 7
    monkeypatch.setattr(decisions, "PER_PIXELS", 300 * 100)
    monkeypatch.setattr(decisions, "MOST", 50)
    assert len(find_decisions(decide(maps[0]))) == 50
    assert decisions._gain(0.1, 400) > decisions._gain(-1.1, 400) > decisions._gain(-1.1, 100)


def test_every_decision_changes_what_it_says_and_is_found_again(monkeypatch):
    monkeypatch.setattr(masks, "WINDOW", 128)
    monkeypatch.setattr(masks, "WINDOW_HALO", 24)
    maps, _ = make_series(1, (210, 230), seed=3)
    segmentation = decide(maps[0])
    mask = segmentation.mask()
    found = find_decisions(segmentation, count=60)
    kinds = [one.joined for one in found]
    assert 5 < sum(kinds) < len(kinds) - 5
    cells = connected_components(mask, connectivity=1)
    rows = slice(128, 210), slice(0, 230)  # a region that starts where a window does
    part = segment(maps[0] > 0.5, maps[0], rows).close_gaps(THRESHOLD)
    windows, below = open_windows(segmentation), open_windows(part)
    for one in found:
        changed = mask.copy()
        changed.ravel()[one.pixels] = not one.joined
        assert (changed != mask).sum() == len(one.pixels) > 0
        after = connected_components(changed, connectivity=1)
        same = [labels[one.sides[0]] == labels[one.sides[1]] for labels in (cells, after)]
        assert same == [one.joined, not one.joined]
        again = find_border(windows, one.at, one.sides, not one.joined)
        assert np.array_equal(again, one.pixels)
        assert find_border(windows, one.at, one.sides, one.joined).size == 0
        if one.at[0] >= 128:
            at, *sides = ((y - 128, x) for y, x in (one.at, *one.sides))
            again = find_border(below, at, sides, not one.joined)
            assert np.array_equal(again + 128 * 230, one.pixels)


def test_a_side_is_beside_the_border_off_its_line_and_in_what_touches_it():
    shape, region = (60, 70), np.s_[20:60, 10:70]  # of the slice, and of it what the window sees
    mask, basins = np.ones(shape, bool)[region], np.zeros(shape, np.int32)
    basins[:, 28:31], basins[:, 31:] = 1, 2
    mask[:, 34 - 10] = False  # membrane: what lies beyond is of basin 2, and not at the border
    line = np.flatnonzero(np.tile(np.arange(70) == 30, (60, 1))[region])
    borders = Borders(
        basins=3,
        pairs=np.array([[1, 2]]),
        odds=np.array([9.0]),
        lengths=np.array([40]),
        line=np.stack([line, np.zeros_like(line)]),
    )
    window = Window(region, full_region(mask.shape), mask, basins[region], borders)
    cells = WindowCells(window, np.array([0, 1, 1]), 0.0, 0.5, shape)
    [found] = decisions._within_cells(cells, 1)
    assert np.array_equal(found.pixels, np.arange(20, 60) * 70 + 30)
    for row in (39, 20, 59):
        at = np.array([row, 30])
        sides = decisions._find_sides(cells, region, borders.pairs[0], at, found.pixels)
        (y, x), (below, beyond) = sides
        assert 28 <= x < 30 and 31 <= beyond < 34
        assert 5 <= np.hypot(y - row, x - 30) <= 7 and 5 <= np.hypot(below - row, beyond - 30) <= 7
    mask[:, 28 - 10 : 30 - 10] = False
    del cells.free
    assert (
        decisions._find_sides(cells, region, borders.pairs[0], np.array([39, 30]), found.pixels)
        is None
    )


def test_of_what_is_membrane_now_no_border_is_found():
    windows = open_windows(decide(tissue(0.6)))
    at, sides = (10, 50), ((10, 40), (10, 60))
    assert find_border(windows, at, sides, True).size
    assert find_border(windows, at, ((10, 40), (50, 50)), True) is None
    assert find_border(windows, at, ((10, 40), (90, 60)), True) is None
    assert find_border(windows, (70, 50), sides, True) is None
    assert find_decisions(decide(np.full((20, 20), 0.9, np.float32))) == []


def test_what_is_written_for_the_page_counts_x_first():
    first = find_decisions(decide(tissue(0.6)))[0]
    written = first.to_json(101, (slice(0, 60), slice(0, 101)))
    assert written["at"] == [first.at[1], first.at[0]]
    assert written["sides"][1] == [first.sides[1][1], first.sides[1][0]]
    assert written["pixels"] == first.pixels.tolist() and written["joined"] is False
    y, x = np.divmod(first.pixels, 101)
    part = first.to_json(101, (slice(0, 40), slice(30, 80)))
    assert part["at"] == [first.at[1] - 30, first.at[0]]
    assert part["pixels"] == (y * 50 + x - 30).tolist()
