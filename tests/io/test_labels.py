"""Labels as files have them, and those that would teach nonsense."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import check_refusal, run
from PIL import Image
from skimage.measure import label as connected_components

import train
from membrane import synthetic
from membrane.errors import UserError
from membrane.io import label_checks, labels
from membrane.io.normalization import normalize


@pytest.mark.parametrize("high", [1, 255, 65535, True])
def test_binary_labels_of_any_kind_are_read(high):
    label = np.array([[0, high], [high, 0]], dtype=type(high) if high is True else np.uint16)
    assert np.array_equal(labels.to_interior(label, "x"), [[False, True], [True, False]])


def test_a_label_with_greys_is_refused():
    with pytest.raises(UserError, match="not a binary label"):
        labels.to_interior(np.array([[1, 255]], np.uint8), "without membrane, but two values")
    with pytest.raises(UserError, match=r"label 7: not a binary label.*0, 17, 255"):
        labels.to_interior(np.array([[0, 17, 255]], np.uint8), "label 7")


IMAGE, INTERIOR = synthetic.make_slice(200, 220, 3)
NUMBERS = connected_components(INTERIOR, connectivity=1)


def test_numbered_cells_are_interior_but_where_two_touch():
    interior, known = labels.read_label(NUMBERS.astype(np.uint32), "cells")
    assert known is None and np.array_equal(interior, INTERIOR)
    for numbers in ([[4, 4, 9, 9]], [[9, 9, 4, 4]], [[1, 1, 2, 2]]):
        touching = np.repeat(np.array(numbers, np.uint16), 40, 0).repeat(20, 1)
        interior, _ = labels.read_label(touching, "cells")
        assert (np.flatnonzero(~interior.any(0)) == [39, 40]).all() and interior.any()
        assert np.array_equal(labels.read_label(touching.T, "cells")[0], interior.T)
        assert connected_components(interior, connectivity=1).max() == 2


@pytest.mark.parametrize("values, ignore, expected", [
    ([0, 1, -1], None, [0, 1, None]), ([0, 1, np.nan], None, [0, 1, None]),
    ([0, 1, 255], None, [0, 1, None]), ([0, 255, 7], 7, [0, 1, None]),
    ([0, 1, 1], 0, [None, 1, 1]), ([0, 255, 255], None, [0, 1, 1]),
])  # fmt: skip
def test_pixels_of_the_ignore_value_are_not_labelled(values, ignore, expected):
    dtype = np.float32 if np.nan in values else np.int16
    interior, known = labels.read_label(np.array([values], dtype), "x", ignore)
    known = np.ones((1, 3), bool) if known is None else known
    assert [bool(i) if k else None for i, k in zip(interior[0], known[0], strict=True)] == expected
    assert not interior[~known].any()


@pytest.mark.parametrize("wrong", [
    np.where(NUMBERS % 2, 128, 255) * INTERIOR, NUMBERS + 0.5,
    np.asarray(Image.fromarray(INTERIOR * np.uint8(255)).resize((150, 140))),
])  # fmt: skip
def test_classes_and_shades_are_no_numbers_of_cells(wrong):
    with pytest.raises(UserError, match="numbers no cells"):
        labels.read_label(wrong, "x")


def test_what_is_only_labelled_near_corrections_needs_the_flag():
    label = np.full((200, 220), 128)
    label[40:90, 40:90] = INTERIOR[40:90, 40:90] * 255
    with pytest.raises(UserError, match="--ignore N"):
        labels.read_label(label, "x")
    interior, known = labels.read_label(label, "x", 128)
    assert known.sum() == 2500 and np.array_equal(interior, INTERIOR & known)


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_the_highest_number_is_minus_one_of_a_program_that_has_it(dtype):
    numbers = NUMBERS.astype(dtype)
    numbers[:9] = np.iinfo(dtype).max
    interior, known = labels.read_label(numbers, "x")
    assert not known[:9].any() and known[9:].all()
    assert np.array_equal(interior, INTERIOR & known)


def test_a_label_belongs_to_the_slice_of_its_name_with_or_without_a_suffix():
    slices = ["1", "2", "frame_0001", "cells", "4"]
    found = ["1_mask", "2", "frame_0001-labels", "cells", "2_label"]
    assert labels.pair_names(slices, found) == {
        "1": "1_mask", "2": "2", "frame_0001": "frame_0001-labels", "cells": "cells", "4": None,
    }  # fmt: skip


def test_no_label_is_that_of_two_slices():
    pixels = np.zeros((3, 3))
    slices, truth = {"1": pixels, "1_mask": pixels}, {"1_mask": pixels, "2": pixels}
    with pytest.raises(UserError, match="1_mask: the label of 1 or of 1_mask"):
        labels.pair_slices(slices, truth, (Path("."), Path(".")))


def test_exchanged_membrane_and_interior_are_told_without_a_slice():
    label_checks.check_polarity([INTERIOR], "x")
    label_checks.check_polarity([np.zeros((9, 9), bool)], "x")
    with pytest.raises(UserError, match="x: inverted"):
        label_checks.check_polarity([~INTERIOR], "x")


@pytest.mark.parametrize("suffered", label_checks.TURNS)
def test_it_is_said_how_labels_are_turned(suffered):
    pairs = [synthetic.make_slice(160, 160, seed) for seed in range(3)]
    images = [normalize(image) for image, _ in pairs]
    right = [interior for _, interior in pairs]
    label_checks.check_label_contrast("abc", images, right, Path("x"))
    undo = label_checks.TURNS[suffered]
    turned = [undo(undo(undo(label))) for label in right]  # what four times undo, or two, gives
    with pytest.raises(UserError, match=f"x: the labels are {suffered}; turn them back"):
        label_checks.check_label_contrast("abc", images, turned, Path("x"))


def edit(path, change):
    """Changes a label's pixels."""
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def each(change):
    def spoil(labels):
        for path in labels:
            edit(path, change)

    return spoil


def shift(labels):
    contents = [path.read_bytes() for path in labels]
    for path, content in zip(labels, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)


def soften(label):
    return np.asarray(Image.fromarray(label).resize((56, 48)).resize(label.shape[::-1]))


def permute(labels):
    contents = [path.read_bytes() for path in labels]
    for path, number in zip(labels, (2, 3, 0, 1), strict=True):
        path.write_bytes(contents[number])


def shift_back(labels):
    contents = [path.read_bytes() for path in labels]
    for path, content in zip(labels, contents[-1:] + contents[:-1], strict=True):
        path.write_bytes(content)


LABELS = {
    "turned": (each(lambda label: label[::-1, ::-1]), "turned by 180 degrees"),
    "mirrored": (each(lambda label: label[:, ::-1]), "mirrored left to right"),
    "in another order": (permute, "in another order"),
    "shifted back": (shift_back, "fits the slice before its own"),
    "inverted": (each(lambda label: 255 - label), "inverted"),
    "one inverted": (
        lambda labels: edit(labels[2], lambda label: 255 - label), "slice_3: inverted"),
    "shifted by one": (shift, "fits the slice after its own"),
    "resized": (
        each(lambda label: label[::2, ::2]), "slice_1: 112x96 px with a label of 56x48 px"),
    "with soft edges": (each(soften), "slice_1: not a binary label"),
    "all cell": (each(lambda label: label | 255), "one class in all labels"),
    "one missing": (lambda labels: labels[3].unlink(), "slice_4 has no label of that name"),
    "one too many": (
        lambda labels: shutil.copy(labels[0], labels[0].with_name("slice_9.png")),
        "every label needs its slice"),
    "one cut short": (lambda labels: labels[0].write_bytes(labels[0].read_bytes()[:99]), "slice_1"),
    "one renamed": (
        lambda labels: labels[0].rename(labels[0].with_name("b.png")), "slice_1 has no label of"),
    "one twice": (lambda labels: shutil.copy(labels[0], labels[0].with_suffix(".bmp")), "one name"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LABELS)
def test_labels_that_would_teach_nonsense_are_refused(data_set, tmp_path, capsys, fault):
    shutil.copytree(data_set, tmp_path / "set")
    spoil, words = LABELS[fault]
    spoil(sorted((tmp_path / "set/train/labels").iterdir()))
    flags = ["--data", tmp_path / "set", "--output", tmp_path / "run", "--epochs", "1"]
    assert run(train, *flags) == 2
    check_refusal(capsys, words)
    assert not (tmp_path / "run/model.keras").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_maps_are_probabilities_whatever_their_dtype(dtype):
    highest = 1 if dtype is np.float32 else np.iinfo(dtype).max
    stored = (np.array([[0, 0.5, 1]]) * highest).astype(dtype)
    assert np.allclose(labels.to_probability(stored, "x"), [[0, 0.5, 1]], atol=0.003)


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.1, 1.0], [np.nan, 0.5]])
def test_what_is_no_probability_is_refused(values):
    with pytest.raises(UserError, match=r"x: no map of P\(interior\)"):
        labels.to_probability(np.array([values]), "x")


def test_labels_of_slices_with_little_contrast_are_taken():
    pairs = [synthetic.make_slice(160, 160, seed) for seed in range(3)]
    images = [0.5 + 0.15 * (normalize(image) - 0.5) for image, _ in pairs]
    right = [interior for _, interior in pairs]
    assert 0.02 < label_checks._mean(label_checks._contrasts(images, right, [None] * 3)) < 0.06
    known = [np.arange(160)[:, None] < [70] * 160] * 3
    partly = label_checks._contrasts(images, [one & known[0] for one in right], known)
    upper = [one[:70] for one in images], [one[:70] for one in right]
    assert np.allclose(partly, label_checks._contrasts(*upper, [None] * 3))
    label_checks.check_label_contrast("abc", images, right, Path("x"))
    flat = [np.full_like(image, 0.5) for image in images]
    with pytest.raises(UserError, match="as bright as the rest"):
        label_checks.check_label_contrast("abc", flat, right, Path("x"))
