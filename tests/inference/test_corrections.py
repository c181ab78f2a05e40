import json
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import tifffile
import zarr
from conftest import PRETRAINED, check_refusal, read_page_data, run_predict
from PIL import Image
from skimage.measure import label as connected_components
from test_neighbours import make_series

from membrane import synthetic
from membrane.inference import masks, sources
from membrane.inference.corrections import Corrections, draw
from membrane.inference.decisions import find_decisions
from membrane.inference.masks import segment
from membrane.inference.sources import Source
from membrane.viewer.page import EDIT, picture_path, read_edit

SIDES = (150, 170)
STROKES = [
    {"kind": "membrane", "size": 3, "points": [[5, 140], [60, 100], [60, 90]]},
    {"kind": "cell", "size": 6, "points": [[169, 0]]},
    {"kind": "membrane", "pixels": [170, 171, 172]},
]


def distance(point, start, end):
    """The exact squared distance of a pixel from a line."""
    d, w = np.subtract(end, start).tolist(), np.subtract(point, start).tolist()
    length = d[0] ** 2 + d[1] ** 2
    t = min(max(Fraction(d[0] * w[0] + d[1] * w[1], length or 1), 0), 1)
    return (w[0] - t * d[0]) ** 2 + (w[1] - t * d[1]) ** 2


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("points", [[(9, 9)], [(2, 3), (17, 11)], [(-4, 5), (8, 25), (8, 3)]])
def test_a_stroke_is_all_that_lies_within_half_its_size(points, size):
    mask = np.zeros((20, 22), bool)
    draw(mask, np.array(points), size, True)
    lines = list(pairwise(points)) or [(points[0], points[0])]
    for place, found in np.ndenumerate(mask):
        least = min(distance(place, *line) for line in lines)
        assert found == (4 * least <= size * size)
    draw(mask, np.array(points), size, False)
    assert not mask.any()


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Three slices as a folder and a stack, the masks of the folder, and its page's scripts."""
    root = tmp_path_factory.mktemp("series")
    (root / "slices").mkdir()
    noise = np.random.default_rng(0).normal(0, 60, (3, *SIDES))
    images = [synthetic.make_slice(*SIDES, seed)[0] for seed in range(3)]
    images = np.clip(np.stack(images) + noise, 0, 255).astype(np.uint8)
    for name, image in zip("abc", images, strict=True):
        Image.fromarray(image).save(root / "slices" / f"{name}.png")
    tifffile.imwrite(root / "stack.tif", images, photometric="minisblack")
    assert predict(root / "slices", root / "masks") == 0
    return root


def predict(source, output, *flags):
    return run_predict(source, "--model", PRETRAINED, "--output", output, *flags)


def read(folder):
    return np.stack([np.asarray(Image.open(folder / f"{name}.png")) for name in "abc"])


def read_page(folder):
    names = (Source(None, f"{name}.png", 1, 0).picture_name(0) for name in "abc")
    return [read_edit(picture_path(folder, name, EDIT)) for name in names]


def decide(asked):
    """What the page saves of a decision against the present state."""
    kind = "separate" if asked["joined"] else "join"
    return {"kind": kind} | {key: asked[key] for key in ("at", "sides", "pixels")}


@pytest.fixture
def corrections(series, tmp_path):
    """Corrections of two slices, and the masks that they make of the page's own."""
    page, masks = read_page(series / "masks"), read(series / "masks")
    made = [decide(one) for one in page[0]["decisions"][:6]]
    assert len({one["kind"] for one in made}) == 2
    operations = {"a": [*made, *STROKES], "c": STROKES[:1]}
    operations["a"][0] = {"kind": "leave"} | {key: made[0][key] for key in ("at", "sides")}
    for one in made[1:]:
        masks[0].ravel()[one["pixels"]] = 255 * (one["kind"] == "join")
    for number, strokes in ((0, STROKES), (2, STROKES[:1])):
        for one in strokes:
            value = 255 * (one["kind"] == "cell")
            if "pixels" in one:
                masks[number].ravel()[one["pixels"]] = value
            else:
                drawn = np.zeros(SIDES, bool)
                draw(drawn, np.array(one["points"])[:, ::-1], one["size"], True)
                masks[number][drawn] = value
    return write(series, tmp_path, operations), masks, made[1:]


def to_json(decision):
    """What the page has of a decision on the tissue."""
    return decision.to_json(230, (slice(0, 210), slice(0, 230)))


def write(series, folder, slices):
    listed = sources.find_sources(sorted((series / "slices").iterdir()), 10**6)[0]
    content = {"slices": slices, "keys": sources.list_keys(listed)}
    (folder / "corrections.json").write_text("\ufeff" + json.dumps(content))
    return folder / "corrections.json"


def test_a_prediction_with_corrections_has_the_masks_that_the_page_shows(
    series, corrections, tmp_path
):
    path, expected, _ = corrections
    flags = ("--corrections", path, "--labels")
    assert predict(series / "slices", tmp_path / "masks", *flags) == 0
    assert np.array_equal(read(tmp_path / "masks"), expected)
    before, after = read_page(series / "masks"), read_page(tmp_path / "masks")
    assert [one["mask"] for one in before] == [one["mask"] for one in after]
    assert [len(one["operations"]) for one in after] == [9, 0, 1]
    labels = tifffile.imread(tmp_path / "masks/labels/a.tif")
    cells = connected_components(expected[0] > 0, connectivity=1)
    large = np.flatnonzero(np.bincount(cells.ravel())[1:] >= 32) + 1
    assert {len(set(labels[cells == cell])) for cell in large} == {1}
    assert len({labels[cells == cell][0] for cell in large}) == len(large)
    assert predict(series / "slices", tmp_path / "masks", *flags) == 2  # it is finished


def read_volume(path):
    return zarr.open_group(str(path), mode="r")["0"][:]


def test_a_volume_is_corrected_as_the_folder_is(series, corrections, tmp_path):
    path, expected, _ = corrections
    assert predict(series / "slices", tmp_path / "v", "--zarr", "--corrections", path) == 0
    assert np.array_equal(read_volume(tmp_path / "v/slices.zarr"), expected)
    folder, volume = read_page(series / "masks"), read_page(tmp_path / "v")
    for one, other in zip(folder, volume, strict=True):
        assert {**one, "operations": None} == {**other, "operations": None}
    assert [len(one["operations"]) for one in volume] == [9, 0, 1]
    known = [[(one["name"], one["key"]) for one in read_page_data(root)["slices"]]
             for root in (series / "masks", tmp_path / "v")]  # fmt: skip
    assert known[0] == known[1]


def test_a_zarr_is_corrected_on_its_own_page(series, tmp_path, capsys):
    images = tifffile.imread(series / "stack.tif")
    zarr.create_array(str(tmp_path / "v.zarr"), data=images, chunks=(1, 64, 64))
    assert predict(tmp_path / "v.zarr", tmp_path / "masks") == 0
    listed = read_page_data(tmp_path / "masks")["slices"]
    assert [one["name"] for one in listed] == ["z 0", "z 1", "z 2"]
    assert all(one["editable"] and one["save_as"] == f"{one['name']}.png" for one in listed)
    first = read_edit(picture_path(tmp_path / "masks", listed[0]["file"], EDIT))
    (asked, *_), expected = first["decisions"], read_volume(tmp_path / "masks/v.zarr")
    expected[0].ravel()[asked["pixels"]] = 255 * (not asked["joined"])
    content = {"slices": {"z 0": [decide(asked)]}, "keys": {"z 0": listed[0]["key"]}}
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps(content))
    flags = ("--corrections", path)
    assert predict(tmp_path / "v.zarr", tmp_path / "again", *flags) == 0
    assert np.array_equal(read_volume(tmp_path / "again/v.zarr"), expected)
    zarr.create_array(str(tmp_path / "w.zarr"), data=images[::-1].copy(), chunks=(1, 64, 64))
    capsys.readouterr()
    assert predict(tmp_path / "w.zarr", tmp_path / "other", *flags) == 2
    check_refusal(capsys, "z 0 is not here, or has changed")


def test_decisions_hold_at_another_threshold(series, corrections, tmp_path):
    path, _, made = corrections
    for number, threshold in enumerate((0.2, 0.8)):
        folder = tmp_path / f"{number}"
        flags = ("--threshold", threshold, "--corrections", path)
        assert predict(series / "slices", folder, *flags) == 0
        cells = connected_components(read(folder)[0], connectivity=1)
        for one in made:
            (x, y), (u, v) = one["sides"]
            assert (cells[y, x] == cells[v, u]) == (one["kind"] == "join")


def test_old_pixels_are_changed_in_a_slice_of_any_shape():
    mask = np.ones((50, 10), bool)
    made = Corrections({"a": [{"kind": "membrane", "pixels": [7, 45 * 10 + 3]}]})
    made.apply("a", mask, None, mask.shape)
    assert np.argwhere(~mask).tolist() == [[0, 7], [45, 3]]


LINE = {"kind": "cell", "size": 3, "points": [[1, 1]]}
LEAVE = {"kind": "leave", "at": [1, 1], "sides": [[1, 1], [2, 2]], "points": []}


@pytest.mark.parametrize("slices, words", [
    ({"d": [LINE]}, "d is not here, or has changed"),
    ({"a": [{"kind": "melt", "pixels": [1]}]}, "not corrections"),
    ({"a": [LINE | {"size": 99}]}, "not corrections"),
    ({"a": [LINE | {"points": []}]}, "not corrections"),
    ({"a": [LINE | {"points": [[0, 0], [2**32, 1]]}]}, "not corrections"),
    ({"a": [LINE | {"points": [[1]]}]}, "not corrections"),
    ({"a": [{"kind": "join", "at": [1, 1], "sides": [[1, 1]], "pixels": [1]}]}, "not corrections"),
    ({"a": [{"kind": "cell", "pixels": [-1]}]}, "not corrections"),
    ({"a": [{"kind": "cell", "pixels": ""}]}, "not corrections"),
    ({"a": [{"kind": "cell", "pixels": {}}]}, "not corrections"),
    ([1], "not corrections"),
])  # fmt: skip
def test_what_is_no_correction_of_these_slices_is_refused(series, tmp_path, capsys, slices, words):
    path = write(series, tmp_path, slices)
    for more in ((), ("--zarr",)):
        flags = ("--corrections", path, *more)
        assert predict(series / "slices", tmp_path / "masks", *flags) == 2
        check_refusal(capsys, words, "corrections.json")
        assert not (tmp_path / "masks").exists()


def test_a_slice_that_has_changed_is_refused_and_one_that_is_gone_is_left_out(
    series, corrections, tmp_path, capsys
):
    path, _, _ = corrections
    (tmp_path / "slices").mkdir()
    for name in "ac":
        content = (series / "slices" / f"{name}.png").read_bytes()
        (tmp_path / "slices" / f"{name}.png").write_bytes(content)
    made = json.loads(path.read_text("utf-8-sig"))
    made["slices"] |= {"b": [LINE], "c": [LEAVE]}
    path.write_text(json.dumps(made))
    flags = ("--no-neighbours", "--corrections", path)
    assert predict(tmp_path / "slices", tmp_path / "masks", *flags) == 0
    said = "Corrections: 10 on 2 slices or windows; those on 1 more, which are not here"
    assert said in capsys.readouterr().out
    (tmp_path / "slices/c.png").write_bytes(content[:-1] + b"x")
    assert predict(tmp_path / "slices", tmp_path / "more", *flags) == 2
    check_refusal(capsys, "c is not here, or has changed")


@pytest.fixture(scope="module")
def tissue():
    """A map of P(interior), one of another model, and decisions against the first one's mask."""
    maps, _ = make_series(1, (210, 230), seed=3)
    one = segment(maps[0] > 0.5, maps[0]).close_gaps(0.5)
    found = [decision for decision in find_decisions(one, count=60) if decision.smaller > 100][:12]
    assert 2 < sum(decision.joined for decision in found) < 10
    return maps[0], np.roll(maps[0], (1, 2), (0, 1)), [decide(to_json(one)) for one in found]


def test_a_decision_is_about_the_border_wherever_another_model_draws_it(tissue):
    _, other, made = tissue
    segmentation, moved = segment(other > 0.5, other).close_gaps(0.5), 0
    before = segmentation.mask()
    for one in made:
        (x, y), (u, v) = one["sides"]
        if before[y, x] and before[v, u]:
            mask = before.copy()
            (done,) = Corrections({"a": [one]}).apply("a", mask, segmentation, mask.shape)["a"]
            cells = connected_components(mask, connectivity=1)
            assert (cells[y, x] == cells[v, u]) == (one["kind"] == "join")
            assert np.flatnonzero(mask != before).tolist() == done["pixels"]
            moved += done["pixels"] != one["pixels"]
    assert moved > 6


def test_a_region_is_corrected_as_the_slice_is(tissue, monkeypatch):
    monkeypatch.setattr(masks, "WINDOW", 128)
    monkeypatch.setattr(masks, "WINDOW_HALO", 24)
    one, _, _ = tissue
    whole = segment(one > 0.5, one).close_gaps(0.5)
    made = [decide(to_json(one)) | {"pixels": []} for one in find_decisions(whole, count=60)]
    made = Corrections({"a": made})
    expected, rows = whole.mask(), (slice(128, 210), slice(0, 230))
    made.apply("a", expected, whole, one.shape)
    part = segment(one > 0.5, one, rows).close_gaps(0.5)
    found = part.mask()
    before = found.copy()
    made.apply("a", found, part, one.shape, rows)
    assert (before != found).sum() > 50 and np.array_equal(found, expected[rows])


def test_pixels_and_decisions_beyond_a_region_change_nothing_in_it():
    mask = np.zeros((10, 10), bool)
    operations = [{"kind": "cell", "pixels": [0, 5 * 30 + 4, 29 * 30]}]
    rows = slice(5, 15), slice(0, 10)
    Corrections({"a": operations}).apply("a", mask, None, (30, 30), rows)
    assert np.argwhere(mask).tolist() == [[0, 4]]
