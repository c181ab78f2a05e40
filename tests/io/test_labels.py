"""Labels as files have them, and those that would teach nonsense."""

import shutil

import numpy as np
import pytest
from conftest import check_refusal, run
from PIL import Image

import train
from membrane.errors import UserError
from membrane.io import labels


@pytest.mark.parametrize("high", [1, 255, 65535, True])
def test_binary_labels_of_any_kind_are_read(high):
    label = np.array([[0, high], [high, 0]], dtype=type(high) if high is True else np.uint16)
    assert np.array_equal(labels.to_interior(label, "x"), [[False, True], [True, False]])


def test_a_label_with_greys_is_refused():
    with pytest.raises(UserError, match="not a binary label"):
        labels.to_interior(np.array([[1, 255]], np.uint8), "without membrane, but two values")
    with pytest.raises(UserError, match=r"label 7: not a binary label.*0, 17, 255"):
        labels.to_interior(np.array([[0, 17, 255]], np.uint8), "label 7")


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


LABELS = {
    "inverted": (each(lambda label: 255 - label), "inverted"),
    "one inverted": (
        lambda labels: edit(labels[2], lambda label: 255 - label), "slice_3: inverted"),
    "shifted by one": (shift, "fits the slice after its own"),
    "resized": (
        each(lambda label: label[::2, ::2]), "slice_1: a slice of 112x96 px with a label of 56x48"),
    "with soft edges": (each(soften), "slice_1: not a binary label"),
    "all cell": (each(lambda label: label | 255), "one class in all labels"),
    "one missing": (lambda labels: labels[3].unlink(), "has 3; every slice needs its label"),
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
