"""What the viewer lists of large slices, and what their corrections change."""

import io
import json
import re

import numpy as np
import pytest
import tifffile
from conftest import PRETRAINED, check_refusal, read_page_data, run_predict
from PIL import Image

from membrane import synthetic
from membrane.inference import corrections, entries, masks
from membrane.viewer import page
from membrane.volumes import blocks, jobs, pyramid

SIDES, VIEW = (290, 280), 128


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Two slices that are large for a viewer of 128 px, and their masks."""
    for module in (page, entries, corrections):
        monkeypatch.setattr(module, "VIEW", VIEW)
    monkeypatch.setattr(masks, "WINDOW", 64)
    monkeypatch.setattr(masks, "WINDOW_HALO", 24)
    (tmp_path / "slices").mkdir()
    for seed, name in enumerate("ab"):
        image = synthetic.make_slice(*SIDES, seed)[0]
        image = image + np.random.default_rng(seed).normal(0, 50, SIDES)
        image = np.clip(image, 0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "slices" / f"{name}.png")
    assert predict(tmp_path, tmp_path / "masks") == 0
    return tmp_path


def predict(large, output, *flags):
    return run_predict(large / "slices", "--model", PRETRAINED, "--output", output, *flags)


def read_edit(folder, entry):
    return page.read_edit(page.picture_path(folder, entry["file"], page.EDIT))


def read(folder, name):
    return np.asarray(Image.open(folder / f"{name}.png"))


def test_a_large_slice_is_corrected_in_windows(large):
    listed = read_page_data(large / "masks")["slices"]
    assert len(listed) == 20
    assert [one["before"] for one in listed] == [None] * 10 + [*range(10)]
    assert [one["after"] for one in listed] == [*range(10, 20)] + [None] * 10
    assert [one["name"] for one in listed[:3]] == ["a", "a/y0 x0", "a/y0 x128"]
    assert "editable" not in listed[0] and "save_as" not in listed[0]
    assert listed[9]["name"] == "a/y256 x256" and listed[9]["save_as"] == "a-y256-x256.png"
    expected, made, count = read(large / "masks", "a").copy(), {}, 0
    for entry in listed[1:10]:
        edit = read_edit(large / "masks", entry)
        top, left = map(int, re.findall(r"\d+", entry["name"]))
        window = expected[top : top + VIEW, left : left + VIEW]
        assert edit["shape"] == list(window.shape)
        assert len(edit["decisions"]) == len(entry["gains"]) <= 20
        made[entry["name"]] = [{"kind": "membrane", "size": 9, "points": [[2, 2], [2, 20]]}]
        for asked in edit["decisions"][:3]:
            kind = "separate" if asked["joined"] else "join"
            made[entry["name"]].append(
                {"kind": kind} | {key: asked[key] for key in ("at", "sides", "pixels")}
            )
            count += 1
        window[:25, :7][stroke()[: min(25, len(window))]] = 0
        for one in made[entry["name"]][1:]:
            y, x = np.divmod(one["pixels"], window.shape[1])
            window[y, x] = 255 * (one["kind"] == "join")
    assert count > 12
    keys = {one["name"]: one["key"] for one in listed}
    (large / "made.json").write_text(json.dumps({"slices": made, "keys": keys}))
    assert predict(large, large / "corrected", "--corrections", large / "made.json") == 0
    assert np.array_equal(read(large / "corrected", "a"), expected)
    assert np.array_equal(read(large / "corrected", "b"), read(large / "masks", "b"))
    after = read_page_data(large / "corrected")["slices"]
    assert [one.get("corrected") for one in after[:2]] == [None, len(made["a/y0 x0"])]
    edit = read_edit(large / "corrected", after[1])
    assert edit["operations"] == made["a/y0 x0"]
    assert edit["mask"] == read_edit(large / "masks", listed[1])["mask"]


def stroke():
    """The stroke of 9 px along x = 2 from y = 2 to 20, within the window."""
    y, x = np.mgrid[:25, :7]
    return 4 * ((y - np.clip(y, 2, 20)) ** 2 + (x - 2) ** 2) <= 81


def test_the_page_of_a_volume_has_the_windows_of_the_page_of_its_slices(large, monkeypatch):
    monkeypatch.setattr(jobs, "VIEW", VIEW)
    monkeypatch.setattr(jobs, "SIDE", 2 * VIEW)
    monkeypatch.setattr(blocks, "WINDOW_HALO", masks.WINDOW_HALO)
    listed = read_page_data(large / "masks")["slices"]
    window = listed[9]  # in the last of four blocks
    asked = read_edit(large / "masks", window)["decisions"][0]
    made = [{"kind": "separate" if asked["joined"] else "join"} | asked]
    keys = {one["name"]: one["key"] for one in listed}
    (large / "made.json").write_text(json.dumps({"slices": {window["name"]: made}, "keys": keys}))
    flags = ("--corrections", large / "made.json", "--probability")
    assert predict(large, large / "folder", *flags) == 0
    assert predict(large, large / "volume", *flags, "--zarr") == 0
    folder, volume = (read_page_data(large / name)["slices"] for name in ("folder", "volume"))
    assert [one.pop("membrane") for one in volume] == pytest.approx(
        [one.pop("membrane") for one in folder]
    )
    assert volume == folder and [one.get("corrected") for one in volume[9:11]] == [1, None]
    for one in folder:
        for end in (*one["kinds"], *(["edit.js"] if "editable" in one else [])):
            ours, theirs = (
                page.picture_path(large / name, one["file"], end) for name in ("volume", "folder")
            )
            if one["place"] or end == page.MASK:
                assert ours.read_bytes() == theirs.read_bytes()
            else:
                assert Image.open(ours).size == Image.open(theirs).size
    made = pyramid.read_part(large / "volume/slices.zarr", 0, (slice(0, 2),))
    assert np.array_equal(made, [read(large / "folder", name) for name in "ab"])


def test_the_pictures_of_windows_make_that_of_their_slice(tmp_path, monkeypatch):
    for module in (page, entries, corrections):
        monkeypatch.setattr(module, "VIEW", 16)
    y, x = np.mgrid[:50, :39]
    image, mask = (2 * y + 3 * x) / 255, np.where(y % 7 + x % 5 < 4, 0, 255).astype(np.uint8)
    about = {"key": "", "slice": 4, "size": [50, 39], "pixel_size": 4.0}
    windows = []
    for place, region in entries.cut_windows(np.s_[0:50, 0:39], (50, 39)).items():
        file = f"a{place.replace('/', '-').replace(' ', '-')}"
        own = about | {"name": f"a{place}", "file": file, "place": place}
        files = page.make_views(image[region], mask[region], page.to_bytes(image[region]))
        windows.insert(0, entries.Entry(own, files, (page.LABELS,)).write(tmp_path))
    joined = entries.join_windows(tmp_path, windows, 0.25)
    assert joined.later == (page.LABELS,)  # as of the windows
    assert joined.about == about | {"name": "a", "file": "a", "place": "", "membrane": 0.25}
    whole = page.make_views(image, mask, page.to_bytes(image))
    assert joined.files.keys() == whole.keys()
    assert joined.files[page.MASK] == whole[page.MASK]
    for end in (page.SLICE, page.MAP, "thumb.jpg"):
        one, other = (
            np.asarray(Image.open(io.BytesIO(files[end])), float) for files in (joined.files, whole)
        )
        assert one.shape == other.shape == (17, 13)
        assert np.abs(one - other).max() < 6  # of 250, lost as JPEG


def test_the_cells_of_a_window_have_the_numbers_of_their_slice(large):
    assert predict(large, large / "labels", "--labels", "--no-neighbours") == 0
    labels = tifffile.imread(large / "labels/labels/a.tif")
    for entry in read_page_data(large / "labels")["slices"][1:10]:
        assert page.LABELS in entry["kinds"]
        top, left = map(int, re.findall(r"\d+", entry["name"]))
        part, mask = (
            pixels[top : top + VIEW, left : left + VIEW]
            for pixels in (labels, read(large / "labels", "a"))
        )
        path = page.picture_path(large / "labels", entry["file"], page.LABELS)
        assert np.array_equal(Image.open(path), np.where(part, part % 255 + 1, 0))
        text = page.picture_path(large / "labels", entry["file"], page.NUMBERS).read_text()
        file, listed = json.loads(f"[{text[len('loadObjects(') : -2]}]")
        assert file == entry["file"] and all(part[y, x] == number for x, y, number in listed)
        assert {number for *_, number in listed} == set(part[(part > 0) & (mask > 0)].tolist())


def test_what_an_interrupted_prediction_has_left_can_be_corrected(large):
    about = large / "masks/about/prediction.json"
    listed = read_page_data(large / "masks")["slices"]
    about.write_text(json.dumps(json.loads(about.read_text()) | {"finished": False}))
    (large / "masks/b.png").unlink()
    assert predict(large, large / "masks") == 0
    assert read_page_data(large / "masks")["slices"] == listed


def test_a_file_that_is_mended_takes_nothing_from_the_others(tmp_path):
    (tmp_path / "slices").mkdir()
    for seed, name in enumerate("abc"):
        image = synthetic.make_slice(60 + 10 * seed, 70, seed)[0]
        Image.fromarray(image).save(tmp_path / "slices" / f"{name}.png")
    good = (tmp_path / "slices/a.png").read_bytes()
    (tmp_path / "slices/a.png").write_bytes(b"none")
    flags = ("--labels", "--no-neighbours")
    assert predict(tmp_path, tmp_path / "masks", *flags) == 1
    key = read_page_data(tmp_path / "masks")["key"]
    (tmp_path / "slices/a.png").write_bytes(good)
    assert predict(tmp_path, tmp_path / "masks", *flags) == 0
    assert read_page_data(tmp_path / "masks")["key"] == key  # what the browser has stored stays
    listed = read_page_data(tmp_path / "masks")["slices"]
    assert [one["name"] for one in listed] == ["a", "b", "c"]
    for number, one in enumerate(listed):
        assert read_edit(tmp_path / "masks", one)["shape"] == [60 + 10 * number, 70]
        assert one["before"] is None and one["after"] is None  # of other sizes


def test_names_that_would_be_mixed_up_are_refused(tmp_path, capsys):
    (tmp_path / "slices").mkdir()
    image = synthetic.make_slice(40, 40, 0)[0]
    Image.fromarray(image).save(tmp_path / "slices/a[1].png")
    first, second = Image.fromarray(image), Image.fromarray(image)
    first.save(tmp_path / "slices/a.tif", save_all=True, append_images=[second])
    assert predict(tmp_path, tmp_path / "masks") == 2
    check_refusal(capsys, "the name of a page of a.tif; rename it")
