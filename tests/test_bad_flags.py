"""Flags and outputs that cannot be: one line, status 2, nothing written."""

import pytest
from conftest import PRETRAINED, check_refusal, run, run_predict

import train


@pytest.mark.parametrize("output, words", [
    ("file", "a file, not a folder"), ("file/inside", "Not a directory"),
    ("slices", "input folder"), ("slices/inside", "input folder"), ("link", "input folder"),
    ("y" * 300, "File name too long"),
    ("full", "not empty, and nothing is overwritten"), ("/proc/masks", "name another --output"),
    ("/dev/null", "a file, not a folder"), ("", "expected a name, got nothing"),
])  # fmt: skip
def test_an_output_that_cannot_be_is_refused(outputs, one_slice, tmp_path, capsys, output, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(one_slice)
    place = tmp_path / output if output else ""
    assert run_predict(one_slice, "--model", "small", "--output", place) == 2
    check_refusal(capsys, words)
    assert (tmp_path / "file").read_text() == (tmp_path / "full/mine.txt").read_text() == "mine"
    assert [path.name for path in one_slice.iterdir()] == ["good.png"]


@pytest.mark.parametrize("flags, words", [
    *((["--threshold", value], "between 0 and 1") for value in ("0", "1", "-1", "nan", "abc", "")),
    *((["--pixel-size", value], "above 0") for value in ("0", "-4", "nan", "inf", "nm")),
    (["--pixel-size", "1e9"], "0.2 to 200 nm"), (["--pixel-size", "1e-9"], "0.2 to 200 nm"),
    (["--max-pixels", "0"], "above 0"), (["--max-pixels", "10"], "over 10"),
    (["--model", ""], "got nothing"), (["--model", "~none/run"], "no such run"),
    (["--model", "none"], "no such run or model"),
    (["--submission", "/dev/null"], "nothing is overwritten"), (["--tresh"], "unrecognized"),
])  # fmt: skip
def test_flags_that_make_no_sense_are_refused(outputs, one_slice, tmp_path, capsys, flags, words):
    model = [] if "--model" in flags else ["--model", PRETRAINED]
    assert run_predict(one_slice, *model, "--output", tmp_path / "masks", *flags) == 2
    check_refusal(capsys, words)
    assert not list(tmp_path.glob("masks/*.png"))


def test_an_unset_variable_does_not_predict_something_else(outputs, tmp_path, capsys):
    assert run_predict("", "--model", "small", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, "got nothing")


@pytest.mark.parametrize("flags", [
    ["--epochs", "1.5"], ["--batch-size", "-1"], ["--filters", "16", "x"], ["--dilation", "0"],
    ["--threshold", "2"], ["--val-slices", "9-3"], ["--val-slices", "1-4"], ["--data", ""],
    ["--init", "none"], ["--resume", "none"],
])  # fmt: skip
def test_trainings_that_cannot_be_are_refused(outputs, data_set, tmp_path, capsys, flags):
    data = [] if {"--data", "--resume"} & set(flags) else ["--data", data_set]
    data += [] if {"--epochs", "--resume"} & set(flags) else ["--epochs", "1"]
    output = [] if "--resume" in flags else ["--output", tmp_path / "run"]
    assert run(train, *data, *output, *flags) == 2
    check_refusal(capsys)
    assert not (tmp_path / "run/model.keras").exists()


@pytest.mark.parametrize("flags, words", [
    (["--epochs", "0"], "above 0"),
    (["--learning-rate", "nan"], "above 0"),
    (["--batch-size", "3"], "a divisor of 8"),
    (["--filters", "16"], "two numbers or more"),
    (["--seed", "-1"], "whole number"),
    (["--resume", "x", "--epochs", "5"], "leave out --epochs"),
    (["--resume", "x", "--batch-size", "8"], "leave out --batch-size"),
    (["--init", "x", "--dilation", "1"], "leave them out"),
    (["--init", "x", "--filters", "16", "32", "64"], "leave them out"),
    (["--val-slices", "none"], "add --threshold"),
    (["--epoch", "5"], "unrecognized"),
])  # fmt: skip
def test_impossible_flags_of_a_training_are_refused(small_epochs, flags, words, capsys):
    assert run(train, *flags) == 2
    check_refusal(capsys, words)


@pytest.mark.parametrize("name, words", [
    ("s3://bucket/slices", "copy the slices here first"), ("a.czi", "save its slices as TIFF"),
    ("a.zarr.zip", "unpack it"), ("a.npz", "save the one that is meant"),
])  # fmt: skip
def test_what_is_not_read_is_refused_with_what_to_do(outputs, tmp_path, capsys, name, words):
    path = name if ":" in name else tmp_path / name
    if ":" not in name:
        path.write_bytes(bytes(100))
    assert run_predict(path, "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words)
    assert not (tmp_path / "masks").exists()


def test_a_model_of_keras_2_is_refused_with_what_to_do(folder, tmp_path, capsys):
    (tmp_path / "old.h5").write_bytes(bytes(100))
    assert run_predict(folder, "--model", tmp_path / "old.h5", "--threshold", "0.5") == 2
    check_refusal(capsys, "format of Keras 2", "FILE.keras")
