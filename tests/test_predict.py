import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from conftest import fail_at, write_data_set
from napari_builtins.io import napari_get_reader
from PIL import Image

import data
import predict
from membrane import runs, synthetic
from membrane.errors import UserError
from membrane.inference import outputs as outputs_module
from membrane.inference.predictor import Predictor
from membrane.io import normalization

ROOT = Path(predict.__file__).parent


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my slices"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 50)), ("b 2.tif", (33, 20)), ("c.jpg", (64, 64))):
        image = rng.integers(0, 256, size, np.uint8)
        Image.fromarray(image).save(folder / name)
    return folder


def run(*flags):
    return predict.main(["--no-tta", *map(str, flags)])


def test_every_mask_has_its_slices_name_and_size(outputs, folder, tmp_path, capsys):
    assert run(folder, "--output", tmp_path / "masks", "--probability") == 0
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
    said = capsys.readouterr().out
    assert "Model:" in said and "small" in said and "3 masks in" in said


def test_plain_masks_are_the_threshold_and_nothing_else(outputs, folder, tmp_path, capsys):
    for flags in ((), ("--plain", "--threshold", 0.6)):
        assert run(folder, *flags, "--probability", "--output", tmp_path / f"{len(flags)}") == 0
    probability = np.asarray(Image.open(tmp_path / "3/probability/c.png")) / 255
    sure = abs(probability - 0.6) > 0.004
    masks = [np.asarray(Image.open(tmp_path / name)) for name in ("0/c.png", "3/c.png")]
    assert np.array_equal((masks[1] == 255)[sure], (probability > 0.6)[sure])
    assert not np.array_equal(*masks)
    with pytest.raises(SystemExit):
        run(folder, "--plain")
    assert "--plain: a run's own threshold is not meant for it" in capsys.readouterr().err


def test_a_network_that_cannot_be_used_leaves_no_folder_behind(folder, tmp_path, capsys):
    image = keras.Input((None, None, 1))
    keras.Model(image, keras.layers.Conv2D(1, 3, activation="sigmoid")(image)).save(
        tmp_path / "valid.keras"
    )
    flags = ["--model", tmp_path / "valid.keras", "--threshold", 0.5]
    assert run(folder, *flags, "--output", tmp_path / "masks") == 2
    assert "not the size of its input" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_a_stack_gives_a_stack(outputs, tmp_path):
    stack = np.random.default_rng(0).integers(0, 4096, (3, 30, 41)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    output = tmp_path / "masks"
    assert run(tmp_path / "stack.tif", "--output", output, "--probability") == 0
    for path in (output / "stack.tif", output / "probability/stack.tif"):
        assert tifffile.imread(path).shape == stack.shape
        assert tifffile.imread(path).dtype == np.uint8


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

    def watch(self, image, scale=1.0, *normalise):
        scales.append(scale)
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
        assert run(tmp_path / name, *flags, "--output", output) == 0
        assert Image.open(output / f"{name[:-4]}.png").size == (50, 60)
    assert scales == pytest.approx([2, 1, 1, 1, 0.5, 1])  # what is resampled is predicted at 1
    assert "eight.tif has pixels of 8 nm, the model knows 4 nm" in capsys.readouterr().out


def test_a_pixel_size_means_nothing_to_a_model_without_one(outputs, folder, tmp_path, capsys):
    assert run(folder, "--pixel-size", 8, "--output", tmp_path / "masks") == 2
    assert "does not know the pixel size" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_bright_membranes_are_noticed_and_inverted_on_request(outputs, tmp_path, capsys):
    image, _ = synthetic.make_slice(256, 256, 1)
    for name, pixels in (("dark", image), ("bright", 255 - image)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    assert run(tmp_path / "dark.png", "--output", tmp_path / "a") == 0
    assert "bright membranes" not in capsys.readouterr().out
    assert run(tmp_path / "bright.png", "--output", tmp_path / "b") == 0
    assert "bright.png look like bright membranes" in capsys.readouterr().out
    assert run(tmp_path / "bright.png", "--invert", "--output", tmp_path / "c") == 0
    assert "bright membranes" not in capsys.readouterr().out
    masks = [np.asarray(Image.open(tmp_path / n)) for n in ("a/dark.png", "c/bright.png")]
    assert np.mean(masks[0] != masks[1]) < 0.01


def test_without_a_run_of_ones_own_the_shipped_one_predicts(
    trained, folder, tmp_path, monkeypatch, capsys
):
    outputs = tmp_path / "outputs"
    for name in (runs.PRETRAINED, runs.LARGE):
        shutil.copytree(trained / "small", outputs / name)
    monkeypatch.setattr(runs, "OUTPUTS", outputs)
    assert run(folder, "--output", tmp_path / "a") == 0
    assert "outputs/pretrained (ships with this repository)" in capsys.readouterr().out
    assert run(folder, "--model", "large", "--output", tmp_path / "b") == 0
    assert "outputs/large" in capsys.readouterr().out
    shutil.copytree(trained / "small", outputs / "mine")
    assert run(folder, "--output", tmp_path / "c") == 0
    assert "outputs/mine" in capsys.readouterr().out


def test_the_rest_is_done_when_a_file_is_bad(outputs, folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "bad.tif").write_bytes(b"no image")
    assert run(folder, "--output", tmp_path / "masks") == 1
    said = capsys.readouterr()
    assert "bad.png: cannot be read" in said.err and "bad.tif: cannot be read" in said.err
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    record = json.loads((tmp_path / "masks/about/prediction.json").read_text())
    assert len(record["failed"]) == 2


def test_a_stack_that_breaks_off_leaves_no_mask_and_is_not_counted(outputs, tmp_path, capsys):
    stack = np.random.default_rng(0).integers(0, 255, (4, 200, 200), np.uint8)
    tifffile.imwrite(tmp_path / "cut.tif", stack, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(tmp_path / "cut.tif") as tiff:
        offset = tiff.pages[3].dataoffsets[0]
    damaged = bytearray((tmp_path / "cut.tif").read_bytes())
    damaged[offset : offset + 50] = bytes(50)
    (tmp_path / "cut.tif").write_bytes(damaged)
    assert run(tmp_path / "cut.tif", "--output", tmp_path / "masks") == 2
    said = capsys.readouterr()
    assert "cut.tif: cannot be read" in said.err and "masks in" not in said.out
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["about"]


def test_nothing_but_bad_files_is_a_failure(outputs, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert run(tmp_path / "in", "--output", tmp_path / "masks") == 2


def test_a_slice_over_the_limit_is_refused_and_the_rest_done(outputs, folder, tmp_path, capsys):
    assert run(folder, "--output", tmp_path / "masks", "--max-pixels", "2000") == 1
    assert "c.jpg: 64x64 px, over 2,000" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "masks").glob("*.png")} == {"a.png", "b 2.png"}


@pytest.mark.parametrize("twin", ["a.tif", "A.jpg"])
def test_two_slices_of_one_name_are_refused_before_work(outputs, folder, tmp_path, capsys, twin):
    Image.new("L", (9, 9)).save(folder / twin)
    assert run(folder, "--output", tmp_path / "masks") == 2
    assert "would both be written" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_masks_are_never_overwritten(outputs, folder, tmp_path, capsys):
    assert run(folder, "--output", tmp_path / "masks") == 0
    before = (tmp_path / "masks/a.png").stat().st_mtime_ns
    assert run(folder, "--output", tmp_path / "masks") == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "masks/a.png").stat().st_mtime_ns == before


def test_unfinished_work_is_continued_also_where_no_output_was_named(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")
    fail_at(monkeypatch, outputs_module, "open_pages", 2, MemoryError)
    flags = (folder, "--model", ROOT / "outputs/pretrained")
    with pytest.raises(MemoryError):
        run(*flags)
    assert run(*flags) == 0
    assert "Going on" in capsys.readouterr().out
    assert run(*flags) == 0
    masks = tmp_path / "outputs/masks"
    assert sorted(path.name for path in masks.iterdir()) == ["my slices", "my slices-2"]


def test_its_own_unfinished_work_is_continued(outputs, folder, tmp_path, monkeypatch, capsys):
    fail_at(monkeypatch, outputs_module, "open_pages", 2, MemoryError)
    with pytest.raises(MemoryError):
        run(folder, "--output", tmp_path / "masks")
    before = (tmp_path / "masks/a.png").stat().st_mtime_ns
    assert run(folder, "--output", tmp_path / "masks", "--threshold", "0.123") == 2
    assert run(folder, "--output", tmp_path / "masks") == 0
    assert "Going on" in capsys.readouterr().out
    assert (tmp_path / "masks/a.png").stat().st_mtime_ns == before
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    record = json.loads((tmp_path / "masks/about/prediction.json").read_text())
    assert record["finished"] and list(record["membrane"]) == ["a.png", "b 2.tif", "c.jpg"]
    assert (tmp_path / "masks/about/contact_sheet.png").exists()


def test_changed_slices_are_not_mixed_into_unfinished_work(outputs, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs_module, "open_pages", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(folder, "--output", tmp_path / "masks")
    Image.new("L", (40, 50)).save(folder / "a.png")
    assert run(folder, "--output", tmp_path / "masks") == 2


def test_flips_are_averaged_unless_refused(outputs, folder, tmp_path):
    maps = []
    for number, flags in enumerate(([], ["--tta"], ["--no-tta"])):
        output = tmp_path / str(number)
        where = ["--output", str(output), "--probability", "--threshold", "0.5"]
        assert predict.main([str(folder), *where, *flags]) == 0
        maps.append(np.asarray(Image.open(output / "probability/a.png")))
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[0], maps[2])


def test_the_runs_own_scaling_is_used(outputs, folder, tmp_path, monkeypatch):
    used, untouched = [], normalization.make_normalizer
    monkeypatch.setattr(
        normalization,
        "make_normalizer",
        lambda image, **how: used.append(how) or untouched(image, **how),
    )
    assert run(folder, "--output", tmp_path / "masks") == 0
    scaling = json.loads((outputs / "small/run.json").read_text())["scaling"]
    assert used[0] == scaling | {"invert": False}


def test_the_input_folder_is_never_written_to(outputs, folder, capsys):
    for output in (folder, folder / "masks"):
        assert run(folder, "--output", output) == 2
    assert "input folder" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 3


def test_a_slice_in_colour_is_converted_and_said_once(outputs, folder, tmp_path, capsys):
    for name in ("x.png", "y.png"):
        Image.effect_noise((30, 30), 90).convert("RGB").save(folder / name)
    assert run(folder, "--output", tmp_path / "masks") == 0
    assert capsys.readouterr().out.count("in colour") == 1


def test_a_slice_without_membranes_is_remarked_on(outputs, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("L", (50, 50), 200).save(tmp_path / "in/empty.png")
    run(tmp_path / "in", "--output", tmp_path / "masks")
    assert "much membrane in empty.png" in capsys.readouterr().out


@pytest.mark.parametrize("source, words", [("gone", "no such file"), ("empty", "no image")])
def test_nothing_to_predict_is_refused(outputs, tmp_path, capsys, source, words):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / source) == 2
    assert words in capsys.readouterr().err


def test_a_bare_model_needs_a_threshold(outputs, folder, tmp_path, capsys):
    model = outputs / "small/model.keras"
    assert run(folder, "--model", model, "--output", tmp_path / "masks") == 2
    assert "--threshold" in capsys.readouterr().err
    flags = ["--model", model, "--output", tmp_path / "masks", "--threshold", "0.5"]
    assert run(folder, *flags) == 0


def write_run(outputs, name, **changes):
    record = {"format": 1, "finished": True, "synthetic": False, "flags": {}, "ended": "2026-01-01"}
    (outputs / name).mkdir(parents=True)
    (outputs / name / "run.json").write_text(json.dumps(record | changes))


def test_the_newest_finished_run_on_real_slices_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path)
    with pytest.raises(UserError, match=r"run python train\.py"):
        runs.find_run(None)
    write_run(tmp_path, "pretrained")
    assert runs.find_run(None).name == "pretrained"
    write_run(tmp_path, "b-old")
    write_run(tmp_path, "a-new", ended="2026-02-02")
    write_run(tmp_path, "drawn", ended="2026-03-03", synthetic=True)
    write_run(tmp_path, "cut", ended="2026-04-04", finished=False)
    assert runs.find_run(None).name == "a-new"
    assert runs.find_run("drawn") == tmp_path / "drawn"
    with pytest.raises(UserError, match="there are: a-new, b-old, cut, drawn, pretrained"):
        runs.find_run("other")


def test_a_run_on_synthetic_slices_says_so(outputs, folder, tmp_path, capsys):
    synthetic = tmp_path / "drawn"
    synthetic.mkdir()
    for path in (outputs / "small").iterdir():
        (synthetic / path.name).write_bytes(path.read_bytes())
    record = json.loads((synthetic / "run.json").read_text())
    (synthetic / "run.json").write_text(json.dumps(record | {"synthetic": True}))
    assert run(folder, "--model", synthetic, "--output", tmp_path / "masks") == 0
    assert "trained on synthetic slices" in capsys.readouterr().out


def test_without_a_folder_the_test_slices_of_the_data_set_are_predicted(
    outputs, data_set, tmp_path
):
    assert run("--output", tmp_path / "masks") == 0
    assert len(list((tmp_path / "masks").glob("slice_*.png"))) == 2


def test_a_data_set_without_test_slices_asks_for_a_folder(tmp_path, monkeypatch):
    root = write_data_set(tmp_path / "set", count=2, test=1)
    (root / "test").rename(root / "unused")
    assert data.find_data_set(str(root), tmp_path).test is None
    with pytest.raises(UserError, match="name a folder"):
        predict.find_test_slices({"flags": {"data": str(root)}})


def test_the_real_command_is_quiet_and_shows_progress(trained, folder, tmp_path):
    command = [sys.executable, "predict.py", folder, "--model", trained / "small"]
    command += ["--output", tmp_path / "masks"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "KERAS_BACKEND": "torch"}
    answer = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    assert "3 of 3 slices" in answer.stdout and "left" in answer.stdout


def test_labels_open_as_imagejs_with_pixel_size_and_a_table_of_cells(tmp_path):
    stack = np.stack([synthetic.make_slice(90, 120, seed)[0] for seed in range(3)])
    size = {"resolution": (1 / 4, 1 / 4), "metadata": {"unit": "nm"}}
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, **size)
    tifffile.imwrite(tmp_path / "one.tif", stack[0])
    model = ("--model", ROOT / "outputs/pretrained", "--labels")
    for name in ("stack", "one"):
        assert run(tmp_path / f"{name}.tif", "--output", tmp_path / name, *model) == 0
        with tifffile.TiffFile(tmp_path / name / f"labels/{name}.tif") as tiff:
            labels = tiff.asarray()
            assert labels.dtype == np.uint16 and tiff.series[0].axes == "ZYX"[-labels.ndim :]
            if name == "stack":
                assert tiff.imagej_metadata["unit"] == "nm"
                assert tiff.pages[0].resolution == (0.25, 0.25)
        path = str(tmp_path / name / f"labels/{name}.tif")
        ((layer, *_),) = napari_get_reader(path)(path)  # what napari itself opens it with
        assert layer.dtype == np.uint16 and np.array_equal(layer, labels)
        left, right = layer[..., :-1], layer[..., 1:]  # 0 lies between any two cells
        assert not ((left != right) & (left > 0) & (right > 0)).any() and (layer == 0).any()
        table = np.genfromtxt(tmp_path / name / f"labels/{name}.csv", delimiter=",", names=True)
        assert len(table) == sum(len(np.unique(page)) - 1 for page in np.atleast_3d(labels.T).T)
        assert table["area_px"].min() >= 1 and (table["mean_probability"] <= 1).all()
    mask = np.asarray(Image.open(tmp_path / "one/one.png")) > 0
    assert labels.shape == (90, 120) and (labels[mask] > 0).mean() > 0.97
    assert 3 < labels.max() < 60


def test_a_submission_is_the_exact_map_as_32_bit_pages(tmp_path, capsys):
    stack = np.stack([synthetic.make_slice(64, 80, seed)[0] for seed in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    flags = (tmp_path / "stack.tif", "--model", ROOT / "outputs/pretrained", "--probability")
    file = tmp_path / "submission.tif"
    assert run(*flags, "--output", tmp_path / "masks", "--submission", file) == 0
    exact = tifffile.imread(file)
    assert exact.dtype == np.float32 and exact.shape == (3, 64, 80)
    assert exact.min() >= 0 and exact.max() <= 1
    rough = tifffile.imread(tmp_path / "masks/probability/stack.tif")
    assert np.array_equal(rough, np.round(exact * 255))
    assert run(*flags, "--output", tmp_path / "again", "--submission", file) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_submission_that_lacks_pages_is_not_written(folder, tmp_path, capsys):
    (folder / "d.png").write_bytes(b"no image")
    file = tmp_path / "submission.tif"
    for output in ("other sizes", "unreadable"):
        flags = ("--model", ROOT / "outputs/pretrained", "--output", tmp_path / output)
        assert run(folder, *flags, "--submission", file) == 2
        assert str(file) in capsys.readouterr().err and not file.exists()
        for name in ("b 2.tif", "c.jpg"):
            (folder / name).unlink(missing_ok=True)
