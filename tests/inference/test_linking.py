"""Cells that keep their number through a series, and what is written of them."""

import csv

import numpy as np
import pytest
import tifffile
from conftest import PRETRAINED, run_predict
from PIL import Image
from skimage.measure import label as connected_components

from membrane import synthetic
from membrane.inference.linking import Linker
from membrane.inference.sources import find_sources
from membrane.viewer.page import LABELS, NUMBERS, picture_path, read_edit


def link(slices):
    """Returns slices, None standing for a lost one, with the objects' numbers."""
    linker = Linker()
    for labels in slices:
        linker.add(labels)
    numbers = linker.link()
    assert len(numbers) == len(slices)
    return [None if one is None else own[one] for one, own in zip(slices, numbers, strict=True)]


def shuffle(labels, seed):
    """Numbers the cells of a slice in another order."""
    order = np.random.default_rng(seed).permutation(int(labels.max())) + 1
    return np.concatenate([[0], order])[labels]


def tubes(count=6, side=240, drift=2, seed=0):
    """Slices through tubes that drift, each cell with the number of its tube."""
    _, interior = synthetic.make_slice(side + drift * count, side + drift * count, seed)
    cells = connected_components(interior, connectivity=1)
    return [cells[drift * z :, drift * z :][:side, :side] for z in range(count)]


def test_a_tube_has_one_number_through_all_slices():
    true = tubes()
    found = link([shuffle(one, z) for z, one in enumerate(true)])
    middle = true[0][60:180, 60:180]
    for tube in np.unique(middle[middle > 0]):
        own = [one[real == tube] for one, real in zip(found, true, strict=True)]
        assert len(np.unique(np.concatenate(own))) == 1
    assert all(((one > 0) == (real > 0)).all() for one, real in zip(found, true, strict=True))
    everything = np.unique(np.concatenate([one.ravel() for one in found]))
    assert np.array_equal(everything, np.arange(len(everything)))  # none is left out


@pytest.mark.parametrize("lost", ["slice", "cell"])
def test_a_gap_of_one_slice_is_closed(lost):
    slices = tubes(5)
    tube = np.bincount(slices[2][slices[2] > 0]).argmax()
    place = tuple(np.argwhere((slices[1] == tube) & (slices[3] == tube))[0])
    if lost == "slice":
        slices[2] = None
    else:
        slices[2] = np.where(slices[2] == tube, 0, slices[2])
    found = link([one if one is None else shuffle(one, z) for z, one in enumerate(slices)])
    assert len({int(found[z][place]) for z in (1, 3)}) == 1


def test_a_branch_joins_the_cell_that_takes_it_up():
    before, after = np.zeros((2, 120, 200), int)
    before[10:70, 10:90], before[10:70, 93:130], before[80:110, 10:190] = 1, 2, 3
    after[10:70, 10:130], after[80:110, 10:190] = 7, 2  # 1 and 2 have come together
    one, two = link([before, after])
    assert one[20, 20] == one[20, 110] == two[20, 110] != one[90, 90] == two[90, 90]
    one, two, _ = link([after, before, before])  # the same backwards: a cell that begins
    assert one[20, 110] == two[20, 20] == two[20, 110] != one[90, 90] == two[90, 90]
    before[10:70, 93:130], before[10:17, 93:130] = 0, 2  # a speck only, of 259 px
    one, two = link([before, after])
    assert one[20, 20] == two[20, 110] != one[12, 110]


def test_an_object_joins_another_by_one_of_its_ends_only():
    slices = np.zeros((3, 120, 220), int)
    slices[:, 80:115, 10:210] = 9
    slices[0, 10:70, 10:110], slices[0, 10:70, 112:200] = 1, 2
    slices[1, 10:70, 10:60], slices[1, 10:70, 65:105], slices[1, 10:70, 110:200] = 1, 3, 2
    slices[2, 10:70, 10:60], slices[2, 10:70, 69:200] = 1, 2
    first, middle, last = link(slices)
    assert first[20, 20] == last[20, 20] != first[20, 150] == last[20, 150]
    assert middle[20, 80] == first[20, 20]  # where all of it lies; not where nine tenths do


def test_slices_that_match_no_better_than_by_chance_are_not_linked():
    slices = [tubes(1, seed=seed)[0] for seed in range(3)]
    numbers = [set(np.unique(one[one > 0])) for one in link(slices)]
    assert len(set.union(*numbers)) == sum(map(len, numbers))
    assert len(set.union(*numbers)) == sum(len(np.unique(one[one > 0])) for one in slices)


def test_no_more_than_two_slices_are_held():
    linker = Linker()
    for labels in tubes(6):
        linker.add(labels)
        assert len(linker.held) <= 2


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("form", ["folder", "stack"])
def test_labels_and_tables_follow_a_cell_through_the_series(tmp_path, form):
    tissue = synthetic.make_slice(260, 260, 0)[0]
    slices = [tissue[2 * z :, 2 * z :][:240, :240] for z in range(4)]
    if form == "stack":
        source = tmp_path / "s.tif"
        tifffile.imwrite(source, np.stack(slices), photometric="minisblack")
    else:
        source = tmp_path / "s"
        source.mkdir()
        for z, image in enumerate(slices):
            Image.fromarray(image).save(source / f"{z}.png")
    flags = ("--labels", "--pixel-size", 5, "--slice-thickness", 50, "--model", PRETRAINED)
    assert run_predict(source, "--output", tmp_path / "out", *flags) == 0
    files = sorted((tmp_path / "out/labels").glob("*.tif"))
    labels = np.concatenate([np.atleast_3d(tifffile.imread(file).T).T for file in files])
    cells = read_table(tmp_path / "out/labels/cells.csv")
    objects = read_table(tmp_path / "out/labels/objects.csv")
    found = np.bincount(labels.ravel())
    assert [int(row["label"]) for row in objects] == list(range(1, len(found)))
    assert [int(row["volume_voxels"]) for row in objects] == found[1:].tolist()
    names = [f"s.tif[{z + 1}]" if form == "stack" else f"{z}.png" for z in range(4)]
    for row in objects:
        present = [z for z in range(4) if (labels[z] == int(row["label"])).any()]
        assert int(row["slices"]) == len(present)
        assert (row["first_slice"], row["last_slice"]) == (names[present[0]], names[present[-1]])
        volume = int(row["volume_voxels"]) * 5 * 5 * 50 / 1e9
        assert float(row["volume_um3"]) == pytest.approx(volume, abs=1e-6)
    through = [row for row in objects if row["slices"] == "4"]
    assert sum(int(row["volume_voxels"]) for row in through) > 0.8 * found[1:].sum()
    for row in cells:
        here = labels[names.index(row["slice"])] == int(row["label"])
        assert (
            int(row["area_px"]) <= here.sum() and here[int(row["top"]) : int(row["bottom"])].any()
        )
        assert float(row["area_um2"]) == pytest.approx(int(row["area_px"]) * 25e-6, abs=1e-6)
        perimeter = float(row["perimeter_px"]) * 5e-3
        assert float(row["perimeter_um"]) == pytest.approx(perimeter, abs=1e-6) and perimeter > 0
    assert not (tmp_path / "out/about/labels").exists()
    sources, _ = find_sources([source] if form == "stack" else sorted(source.iterdir()), 10**6)
    shown = [one.picture_name(page) for one in sources for page in range(one.pages)]
    for z in (0, 3):
        colours = np.asarray(Image.open(picture_path(tmp_path / "out", shown[z], LABELS)))
        assert np.array_equal(colours, np.where(labels[z], labels[z] % 255 + 1, 0))
    numbers = read_edit(picture_path(tmp_path / "out", shown[3], NUMBERS))
    assert {n for _, _, n in numbers} == set(np.unique(labels[3])) - {0}
    masks = tifffile.imread(tmp_path / "out/s.tif")[3] if form == "stack" else None
    mask = np.asarray(Image.open(tmp_path / "out/3.png")) if masks is None else masks
    assert all(labels[3, y, x] == n and mask[y, x] for x, y, n in numbers)
