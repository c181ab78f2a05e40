"""What lies in a folder of masks, and what is reported of it."""

import json

import numpy as np
import tifffile
from conftest import PRETRAINED, run_predict
from napari_builtins.io import napari_get_reader
from PIL import Image

from membrane import synthetic


def test_a_stack_gives_a_stack(outputs, tmp_path):
    stack = np.random.default_rng(0).integers(0, 4096, (3, 30, 41)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    output = tmp_path / "masks"
    assert run_predict(tmp_path / "stack.tif", "--output", output, "--probability") == 0
    for path in (output / "stack.tif", output / "probability/stack.tif"):
        assert tifffile.imread(path).shape == stack.shape
        assert tifffile.imread(path).dtype == np.uint8


def test_labels_open_as_imagejs_with_pixel_size_and_a_table_of_cells(tmp_path):
    stack = np.stack([synthetic.make_slice(90, 120, seed)[0] for seed in range(3)])
    size = {"resolution": (1 / 4, 1 / 4), "metadata": {"axes": "ZYX", "unit": "nm"}}
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, **size)
    tifffile.imwrite(tmp_path / "one.tif", stack[0])
    model = ("--model", PRETRAINED, "--labels")
    for name in ("stack", "one"):
        assert run_predict(tmp_path / f"{name}.tif", "--output", tmp_path / name, *model) == 0
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
        table = np.genfromtxt(tmp_path / name / "labels/cells.csv", delimiter=",", names=True)
        assert len(table) == sum(len(np.unique(page)) - 1 for page in np.atleast_3d(labels.T).T)
        assert table["area_px"].min() >= 1 and (table["mean_probability"] <= 1).all()
    mask = np.asarray(Image.open(tmp_path / "one/one.png")) > 0
    assert labels.shape == (90, 120) and (labels[mask] > 0).mean() > 0.97
    assert 3 < labels.max() < 60


def test_a_submission_is_the_exact_map_as_32_bit_pages(tmp_path, capsys):
    stack = np.stack([synthetic.make_slice(64, 80, seed)[0] for seed in range(3)])
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    flags = (tmp_path / "stack.tif", "--model", PRETRAINED, "--probability")
    file = tmp_path / "submission.tif"
    assert run_predict(*flags, "--output", tmp_path / "masks", "--submission", file) == 0
    exact = tifffile.imread(file)
    assert exact.dtype == np.float32 and exact.shape == (3, 64, 80)
    assert exact.min() >= 0 and exact.max() <= 1
    rough = tifffile.imread(tmp_path / "masks/probability/stack.tif")
    assert np.array_equal(rough, np.round(exact * 255))
    assert run_predict(*flags, "--output", tmp_path / "again", "--submission", file) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


def test_a_submission_that_lacks_pages_is_not_written(folder, tmp_path, capsys):
    (folder / "d.png").write_bytes(b"no image")
    file = tmp_path / "submission.tif"
    for output in ("other sizes", "unreadable"):
        flags = ("--model", PRETRAINED, "--output", tmp_path / output)
        assert run_predict(folder, *flags, "--submission", file) == 2
        assert str(file) in capsys.readouterr().err and not file.exists()
        for name in ("b 2.tif", "c.jpg"):
            (folder / name).unlink(missing_ok=True)


def test_the_rest_is_done_when_a_file_is_bad(outputs, folder, tmp_path, capsys):
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "bad.tif").write_bytes(b"no image")
    assert run_predict(folder, "--output", tmp_path / "masks") == 1
    printed = capsys.readouterr()
    assert "bad.png: cannot be read" in printed.err and "bad.tif: cannot be read" in printed.err
    assert len(list((tmp_path / "masks").glob("*.png"))) == 3
    record = json.loads((tmp_path / "masks/about/prediction.json").read_text())
    assert set(record["failed"]) == {"bad.png", "bad.tif"} and not record["finished"]
    Image.open(folder / "a.png").save(folder / "bad.png")
    (folder / "bad.tif").unlink()
    assert run_predict(folder, "--output", tmp_path / "masks") == 0
    assert "Going on with the unfinished masks" in capsys.readouterr().out
    assert np.array_equal(*(Image.open(tmp_path / f"masks/{name}.png") for name in ("a", "bad")))


def test_a_stack_that_breaks_off_leaves_no_mask_and_is_not_counted(outputs, tmp_path, capsys):
    stack = np.random.default_rng(0).integers(0, 255, (4, 200, 200), np.uint8)
    tifffile.imwrite(tmp_path / "cut.tif", stack, photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(tmp_path / "cut.tif") as tiff:
        offset = tiff.pages[3].dataoffsets[0]
    damaged = bytearray((tmp_path / "cut.tif").read_bytes())
    damaged[offset : offset + 50] = bytes(50)
    (tmp_path / "cut.tif").write_bytes(damaged)
    assert run_predict(tmp_path / "cut.tif", "--output", tmp_path / "masks") == 2
    printed = capsys.readouterr()
    assert "cut.tif: cannot be read" in printed.err and "masks in" not in printed.out
    assert not (tmp_path / "masks").exists()


def test_nothing_but_bad_files_is_a_failure(outputs, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bad.png").write_bytes(b"no image")
    assert run_predict(tmp_path / "in", "--output", tmp_path / "masks") == 2


def test_a_slice_in_colour_is_converted_and_reported_once(outputs, folder, tmp_path, capsys):
    for name in ("x.png", "y.png"):
        Image.effect_noise((30, 30), 90).convert("RGB").save(folder / name)
    assert run_predict(folder, "--output", tmp_path / "masks") == 0
    assert capsys.readouterr().out.count("in colour") == 1


def test_a_slice_without_membranes_is_reported(outputs, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    Image.new("L", (50, 50), 200).save(tmp_path / "in/empty.png")
    run_predict(tmp_path / "in", "--output", tmp_path / "masks")
    assert "much membrane in empty.png" in capsys.readouterr().out
