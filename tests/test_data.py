import shutil
import socket

import numpy as np
import pytest
import tifffile
from PIL import Image

import data
from data import Pairs
from membrane import synthetic
from membrane.errors import UserError
from membrane.synthetic import make_slice

SLICES = [make_slice(40, 48, seed) for seed in range(12)]


def write_folders(root, images, labels, names, high=255):
    for folder, stack in ((images, 0), (labels, 1)):
        (root / folder).mkdir(parents=True)
        for name, pair in zip(names, SLICES, strict=False):
            pixels = pair[0] if stack == 0 else pair[1] * np.uint8(high)
            Image.fromarray(pixels).save(root / folder / name)


def write_stacks(root):
    tifffile.imwrite(root / "train-volume.tif", np.stack([image for image, _ in SLICES]))
    labels = np.stack([label * np.uint8(255) for _, label in SLICES])
    tifffile.imwrite(root / "train-labels.tif", labels)


def frames(count=12):
    return [f"frame_{number:04d}.png" for number in range(1, count + 1)]


LAYOUTS = {
    "kaggle": lambda root: write_folders(
        root / "unmodified-data", "train/imgs", "train/labels", frames()
    ),
    "kaggle without prefix": lambda root: write_folders(
        root, "train/imgs", "train/labels", frames()
    ),
    "organisers": write_stacks,
    "numbered": lambda root: write_folders(
        root, "image", "label", [f"{number}.png" for number in range(12)]
    ),
    "0 and 1": lambda root: write_folders(root, "image", "label", frames(), high=1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_people_have_are_recognised(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    pairs = data.load_pairs(data.find_data_set(str(tmp_path), tmp_path))
    assert len(pairs.names) == 12
    for label, (_, expected) in zip(pairs.labels, SLICES, strict=True):
        assert np.array_equal(label, expected)


def test_an_archive_unpacked_into_a_folder_of_its_own_is_found(tmp_path):
    (tmp_path / "ISBI-2012-challenge").mkdir()
    write_stacks(tmp_path / "ISBI-2012-challenge")
    found = data.find_data_set(str(tmp_path), tmp_path)
    assert found.images.name == "train-volume.tif" and found.test is None


@pytest.mark.parametrize("folder, words", [(".", "no labelled slices"), ("gone", "no such folder")])
def test_a_folder_without_a_data_set_is_refused(tmp_path, folder, words):
    with pytest.raises(UserError, match=words):
        data.find_data_set(str(tmp_path / folder), tmp_path)


def test_synthetic_slices_are_written_once_and_known_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "DATA_SET", {"train": 3, "test": 1})
    monkeypatch.setattr(synthetic, "DATA_SET_SIDE", 40)
    folder = tmp_path / "synthetic"
    first = data.find_data_set("synthetic", folder)
    assert first.is_synthetic and len(data.load_pairs(first).names) == 3
    monkeypatch.setattr(data, "write_data_set", None)  # to write them again would fail
    assert data.find_data_set("synthetic", folder) == first
    assert data.find_data_set(str(folder), tmp_path).is_synthetic


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_a_cached_download_is_used_without_network(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    versions = tmp_path / "datasets" / data.HANDLE
    for version in ("9", "10", "11"):
        LAYOUTS["kaggle"](versions / "versions" / version)
    for version in ("9", "10"):  # 11 is only half there
        (versions / f"{version}.complete").touch()
    found = data.find_data_set(None, tmp_path)
    assert found.root == versions / "versions/10/unmodified-data"
    assert not found.is_synthetic


def test_without_network_and_cache_the_ways_out_are_named(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as refusal:
        data.find_data_set(None, tmp_path)
    for words in ("cannot be downloaded", "kaggle.com/datasets", "ISBI-2012-challenge.zip",
                  "--data DIR", "--data synthetic"):  # fmt: skip
        assert words in str(refusal.value)


def numbered_pairs(count=10):
    images = [np.full((30, 30), number / 16, np.float32) for number in range(count)]
    return Pairs([str(n) for n in range(count)], images, [np.ones((30, 30), bool)] * count)


@pytest.mark.parametrize("val_slices, held_out", [
    (None, ["8", "9"]), ("1-3", ["0", "1", "2"]), ("4", ["3"]), ("10-10", ["9"]),
])  # fmt: skip
def test_whole_slices_are_held_out(val_slices, held_out):
    training, validation = data.hold_out(numbered_pairs(), val_slices)
    assert validation.names == held_out
    assert sorted(training.names + held_out, key=int) == numbered_pairs().names


@pytest.mark.parametrize("val_slices", ["0-3", "9-11", "3-2", "a", "1,2", "1-10"])
def test_impossible_hold_outs_are_refused(val_slices):
    with pytest.raises(UserError, match="--val-slices"):
        data.hold_out(numbered_pairs(), val_slices)


@pytest.mark.isbi
def test_real_slices_load_and_pair_up(isbi, tmp_path):
    pairs = data.load_pairs(data.find_data_set(str(isbi), tmp_path))
    assert pairs.names == [f"frame_{number:04d}" for number in range(1, len(pairs.names) + 1)]
    assert {image.shape for image in pairs.images} == {(512, 512)}
    assert 0.15 < 1 - np.mean(pairs.labels) < 0.3
    copied = tmp_path / "train"
    shutil.copytree(data.find_data_set(str(isbi), tmp_path).images.parent, copied)
    assert data.load_pairs(data.find_data_set(str(tmp_path), tmp_path)).names == pairs.names


@pytest.mark.parametrize("layout", ["one folder", "two folders"])
def test_labels_whose_names_have_a_suffix_are_found(data_set, tmp_path, layout):
    parts = {"imgs": "{}.png", "labels": "{}_mask.png"}
    for part, name in parts.items():
        target = tmp_path if layout == "one folder" else tmp_path / "train" / part
        target.mkdir(parents=True, exist_ok=True)
        for path in (data_set / "train" / part).iterdir():
            shutil.copy(path, target / name.format(path.stem))
    pairs = data.load_pairs(data.find_data_set(str(tmp_path), tmp_path))
    usual = data.load_pairs(data.find_data_set(str(data_set), tmp_path))
    assert pairs.names == usual.names and pairs.checksum() == usual.checksum()


def test_pixels_that_are_not_labelled_come_with_the_pairs_and_weigh_nothing(data_set, tmp_path):
    shutil.copytree(data_set, tmp_path / "set")
    found = data.find_data_set(str(tmp_path / "set"), tmp_path)
    for number, rows in ((2, 40), (3, None), (1, 0), (4, 0)):
        path = found.labels / f"slice_{number}.png"
        label = np.asarray(Image.open(path)) // 255
        label[:rows] = 255  # beside 0 and 1; in the third one alone
        Image.fromarray(label).save(path)
        if number == 3:
            with pytest.raises(UserError, match=r"slice_1: has 0 and 255.*--ignore 255"):
                data.load_pairs(found)
    pairs = data.load_pairs(found)
    assert pairs.known[0] is None and not pairs.known[1][:40].any() and pairs.known[1][40:].all()
    assert not pairs.known[2].any() and not pairs.labels[2].any()
    with pytest.raises(UserError, match="beside slices 1-2 no pixel is labelled"):
        data.hold_out(pairs.subset([0, 1, 2]), "1-2")
    image, label, weight = map(np.concatenate, zip(*data.tiles(pairs, range(40), 8), strict=True))
    assert image.shape == label.shape == weight.shape == (40, 256, 256, 1)
    assert np.array_equal(weight, label != 0.5) and 0.7 < weight.mean() < 0.98
    assert set(np.unique(label)) == {0, 0.5, 1} and weight.any((1, 2, 3)).all()
    usual = data.load_pairs(data.find_data_set(str(data_set), tmp_path))
    assert len(next(iter(data.tiles(usual, range(8), 8)))) == 2


@pytest.mark.parametrize("count, held", [(2, 1), (5, 1), (20, 4), (25, 5), (30, 6)])
def test_the_last_fifth_is_held_out(count, held):
    names = [str(number) for number in range(count)]
    pixels = [np.ones((4, 4), bool)] * count
    training, validation = data.hold_out(Pairs(names, pixels, pixels))
    assert validation.names == names[-held:] and training.names == names[:-held]
