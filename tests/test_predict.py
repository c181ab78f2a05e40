import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from conftest import PRETRAINED, check_refusal, fail_at, run, run_predict, write_data_set
from PIL import Image
from processes import command

import data
import predict
from membrane import metrics, runs, synthetic
from membrane.errors import UserError
from membrane.inference.predictor import Predictor
from membrane.io import normalization
from membrane.io.pixel_size import read_pixel_size


def test_every_mask_has_its_slices_name_and_size(outputs, folder, tmp_path, capsys):
    assert run_predict(folder, "--output", tmp_path / "masks", "--probability") == 0
    masks = tmp_path / "masks"
    assert sorted(path.name for path in masks.iterdir()) == [
        "a.png", "about", "b 2.png", "c.png", "index.html", "probability",
    ]  # fmt: skip
    for name, size in (("a", (40, 50)), ("b 2", (33, 20)), ("c", (64, 64))):
        mask = np.asarray(Image.open(masks / f"{name}.png"))
        assert mask.shape == size and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        probability = np.asarray(Image.open(masks / "probability" / f"{name}.png"))
        assert (mask[probability / 255 < 0.5 - 0.004] == 0).all()
        assert (mask == 255)[probability / 255 > 0.5 + 0.004].mean() > 0.5
    assert Image.open(masks / "about/contact_sheet.png").width > 1000
    printed = capsys.readouterr().out
    assert "Model:" in printed and "small" in printed and "3 masks in" in printed


def test_plain_masks_are_the_threshold_and_nothing_else(outputs, folder, tmp_path, capsys):
    for flags in ((), ("--plain", "--threshold", 0.6)):
        where = ("--probability", "--output", tmp_path / str(len(flags)))
        assert run_predict(folder, *flags, *where) == 0
    probability = np.asarray(Image.open(tmp_path / "3/probability/c.png")) / 255
    sure = abs(probability - 0.6) > 0.004
    masks = [np.asarray(Image.open(tmp_path / name)) for name in ("0/c.png", "3/c.png")]
    assert np.array_equal((masks[1] == 255)[sure], (probability > 0.6)[sure])
    assert not np.array_equal(*masks)
    assert run_predict(folder, "--plain") == 2
    assert "--plain: a run's own threshold is not meant for it" in capsys.readouterr().err


def test_flips_are_averaged_unless_refused(outputs, folder, tmp_path):
    maps = []
    for number, flags in enumerate(([], ["--tta"], ["--no-tta"])):
        output = tmp_path / str(number)
        where = ["--output", output, "--probability", "--threshold", "0.5"]
        assert run(predict, folder, *where, *flags) == 0
        maps.append(np.asarray(Image.open(output / "probability/a.png")))
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])


def test_the_runs_own_scaling_is_used(outputs, folder, tmp_path, monkeypatch):
    used, untouched = [], normalization.make_normalizer
    monkeypatch.setattr(
        normalization,
        "make_normalizer",
        lambda image, **how: used.append(how) or untouched(image, **how),
    )
    assert run_predict(folder, "--output", tmp_path / "masks") == 0
    scaling = json.loads((outputs / "small/run.json").read_text())["scaling"]
    assert used[0] == scaling | {"invert": False}


@pytest.fixture
def measured(outputs, tmp_path, monkeypatch):
    """The trained outputs, whose model knows its pixel size, 4 nm."""
    copy = tmp_path / "outputs"
    shutil.copytree(outputs, copy)
    record = json.loads((copy / "small/run.json").read_text())
    (copy / "small/run.json").write_text(json.dumps(record | {"pixel_size": 4.0}))
    monkeypatch.setattr(runs, "OUTPUTS", copy)
    return copy


def test_a_slice_is_resampled_to_the_models_pixel_size(measured, tmp_path, monkeypatch, capsys):
    scales, untouched = [], Predictor.__call__

    def watch(self, image, scale=(1.0, 1.0), *normalise):
        scales.append(scale[1])
        return untouched(self, image, scale, *normalise)

    monkeypatch.setattr(Predictor, "__call__", watch)
    image, _ = synthetic.make_slice(60, 50, 1)
    stated = {"resolution": (1e7 / 8, 1e7 / 8), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "eight.tif", image, **stated)
    Image.fromarray(image).save(tmp_path / "silent.png")
    for name, flags in (
        ("eight.tif", []),
        ("eight.tif", ["--pixel-size", 4.01]),
        ("silent.png", []),
        ("silent.png", ["--pixel-size", 2]),
    ):
        output = tmp_path / f"masks{len(scales)}"
        assert run_predict(tmp_path / name, *flags, "--output", output) == 0
        assert Image.open(output / f"{name[:-4]}.png").size == (50, 60)
    assert scales == pytest.approx([2, 1, 1, 1, 0.5, 1])  # what is resampled is predicted at 1
    assert "eight.tif has pixels of 8 nm, the model knows 4 nm" in capsys.readouterr().out


def test_a_pixel_size_means_nothing_to_a_model_without_one(outputs, folder, tmp_path, capsys):
    assert run_predict(folder, "--pixel-size", 8, "--output", tmp_path / "masks") == 2
    assert "does not know the pixel size" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
    stated = {"resolution": (1e7 / 8, 1e7 / 8), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "eight.tif", synthetic.make_slice(60, 50, 1)[0], **stated)
    for flags in ([], ["--zarr"]):
        assert run_predict(tmp_path / "eight.tif", *flags, "--output", tmp_path / str(flags)) == 0
        note = "pixels of 8 nm, the model does not know its own: not resampled"
        assert note in capsys.readouterr().out


def test_bright_membranes_are_noticed_and_inverted_on_request(outputs, tmp_path, capsys):
    image, _ = synthetic.make_slice(256, 256, 1)
    for name, pixels in (("dark", image), ("bright", 255 - image)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert run_predict(tmp_path / "dark.png", "--output", tmp_path / "a") == 0
    assert "bright membranes" not in capsys.readouterr().out
    assert run_predict(tmp_path / "bright.png", "--output", tmp_path / "b") == 0
    assert "bright.png looks like bright membranes" in capsys.readouterr().out
    assert run_predict(tmp_path / "bright.png", "--invert", "--output", tmp_path / "c") == 0
    assert "bright membranes" not in capsys.readouterr().out
    masks = [np.asarray(Image.open(tmp_path / n)) for n in ("a/dark.png", "c/bright.png")]
    assert np.mean(masks[0] != masks[1]) < 0.01


def test_a_bare_model_needs_a_threshold(outputs, folder, tmp_path, capsys):
    model = outputs / "small/model.keras"
    assert run_predict(folder, "--model", model, "--output", tmp_path / "masks") == 2
    assert "--threshold" in capsys.readouterr().err
    flags = ["--model", model, "--output", tmp_path / "masks", "--threshold", "0.5"]
    assert run_predict(folder, *flags) == 0


def test_without_a_folder_the_test_slices_of_the_data_set_are_predicted(
    outputs, data_set, tmp_path
):
    assert run_predict("--output", tmp_path / "masks") == 0
    assert len(list((tmp_path / "masks").glob("slice_*.png"))) == 2


def test_a_data_set_without_test_slices_asks_for_a_folder(tmp_path):
    root = write_data_set(tmp_path / "set", count=2, test=1)
    (root / "test").rename(root / "unused")
    assert data.find_data_set(str(root), tmp_path).test is None
    with pytest.raises(UserError, match="name a folder"):
        predict.find_test_slices({"flags": {"data": str(root)}})
    with pytest.raises(
        UserError, match=r"^name a folder of slices: .*FOLDER \(none: no such folder"
    ):
        predict.find_test_slices({"flags": {"data": "none"}})


@pytest.mark.parametrize("source, words", [("gone", "no such file"), ("empty", "no image")])
def test_nothing_to_predict_is_refused(outputs, tmp_path, capsys, source, words):
    (tmp_path / "empty").mkdir()
    assert run_predict(tmp_path / source) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_command_is_quiet_and_shows_progress(trained, folder, tmp_path):
    flags = ["--model", trained / "small", "--output", tmp_path / "masks"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "KERAS_BACKEND": "torch"}
    answer = subprocess.run(
        command("predict", folder, *flags), capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert "3 of 3 slices" in answer.stdout and "left" in answer.stdout


def test_a_slice_with_padding_is_predicted_as_if_the_rest_were_not_there(tmp_path, capsys):
    image, _ = synthetic.make_slice(256, 300, 4)
    (tmp_path / "in").mkdir()
    for name, value in (("black", 0), ("white", 255), ("nothing", np.nan), ("minus", -9999)):
        padded = np.full(
            (256, 500), value, np.float32 if name in ("nothing", "minus") else np.uint8
        )
        padded[:, :300] = image
        dtype = np.uint8 if value in (0, 255) else np.float32
        tifffile.imwrite(tmp_path / f"in/{name}.tif", padded.astype(dtype))
    Image.fromarray(image).save(tmp_path / "in/whole.png")
    flags = ["--model", PRETRAINED, "--probability", "--labels", "--output", tmp_path / "masks"]
    assert run_predict(tmp_path / "in", *flags) == 0
    assert "40% of black.tif is no tissue" in capsys.readouterr().out
    whole = np.asarray(Image.open(tmp_path / "masks/whole.png")) > 0
    for name in ("black", "white", "nothing", "minus"):
        mask = np.asarray(Image.open(tmp_path / f"masks/{name}.png"))
        assert not mask[:, 300:].any()
        assert metrics.score_segmentation(whole, mask[:, :300] > 0)["v_info"] > 0.98
        assert not np.asarray(Image.open(tmp_path / f"masks/probability/{name}.png"))[:, 300:].any()
        labels = tifffile.imread(tmp_path / f"masks/labels/{name}.tif")
        assert not labels[:, 300:].any() and (labels[:, :300] > 0).mean() > 0.9


def test_several_files_are_predicted_by_one_command(outputs, folder, tmp_path):
    paths = [folder / "a.png", folder / "c.jpg"]
    assert run_predict(*paths, "--output", tmp_path / "masks") == 0
    assert sorted(path.name for path in (tmp_path / "masks").glob("*.png")) == ["a.png", "c.png"]


def test_masks_of_an_ome_tiff_open_as_the_stack_they_are(outputs, tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (3, 40, 50), np.uint8)
    size = {"PhysicalSizeX": 8, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 8}
    known = {"axes": "ZYX", **size, "PhysicalSizeYUnit": "nm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=known, photometric="minisblack")
    assert run_predict(tmp_path / "a.ome.tif", "--output", tmp_path / "masks") == 0
    assert tifffile.imread(tmp_path / "masks/a.tif").shape == stack.shape
    assert read_pixel_size(tmp_path / "masks/a.tif") == pytest.approx((8, 8))


def test_pixels_that_are_not_square_are_resampled_each_side_by_its_own(measured, tmp_path, capsys):
    image, _ = synthetic.make_slice(120, 100, 1)
    stated = {"resolution": (1e7 / 4, 1e7 / 8), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "flat.tif", image[::2], **stated)
    assert run_predict(tmp_path / "flat.tif", "--output", tmp_path / "masks") == 0
    assert "pixels of 8x4 (y, x) nm" in capsys.readouterr().out
    assert Image.open(tmp_path / "masks/flat.png").size == (100, 60)


@pytest.mark.parametrize("error, words", [
    (MemoryError, "out of memory; train.py: a lower --batch-size"),
    (tf.errors.ResourceExhaustedError(None, None, "OOM"), "out of the device's memory; train.py:"),
])  # fmt: skip
def test_memory_that_is_short_is_one_line(
    outputs, folder, tmp_path, monkeypatch, capsys, error, words
):
    fail_at(monkeypatch, Predictor, "__call__", 1, error)
    assert run_predict(folder, "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words, "--no-tta")
    assert not (tmp_path / "masks").exists()


def test_a_submission_never_goes_into_the_input_folder(outputs, folder, tmp_path, capsys):
    flags = ["--output", tmp_path / "masks", "--submission", folder / "maps.tif"]
    assert run_predict(folder, *flags) == 2
    check_refusal(capsys, "lies in the input folder; name another --submission")
    assert len(list(folder.iterdir())) == 3 and not (tmp_path / "masks").exists()
