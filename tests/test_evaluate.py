import json
import shutil

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from conftest import check_refusal, run
from ome_zarr.writer import write_image
from PIL import Image
from skimage.measure import label as connected_components

import evaluate
from membrane import metrics
from membrane.synthetic import make_slice

LARGE = {f"s{number}": make_slice(200, 220, number)[1] for number in (1, 2)}
SLICES = {f"s{number}": make_slice(60, 70, number)[1] for number in (1, 2, 10)}


def write(folder, images, suffix=".png"):
    folder.mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}{suffix}")
    return folder


@pytest.fixture
def labels(tmp_path):
    return write(tmp_path / "labels", {name: one * np.uint8(255) for name, one in SLICES.items()})


def blurred(label):
    """P(interior): high inside, a gap in the membrane of the left half."""
    probability = np.where(label, 240, 20).astype(np.uint8)
    probability[:, :35] = np.maximum(probability[:, :35], 150)
    return probability


def summary(text):
    pairs = [line.split(": ") for line in text.splitlines() if ": " in line]
    return {key: value for key, value in pairs}


def test_perfect_masks_score_one(labels, capsys):
    assert run(evaluate, labels, labels) == 0
    printed = summary(capsys.readouterr().out)
    for key in ("v_rand", "v_info", "v_rand_split", "v_rand_merge", "membrane_f1", "membrane_iou"):
        assert printed[key] == "1"
    assert "threshold" not in printed and "chance" not in printed


def test_masks_are_scored_as_metrics_scores_them(labels, tmp_path, capsys):
    shifted = {name: np.roll(one, 2, 1) for name, one in SLICES.items()}
    masks = write(tmp_path / "m", {n: one * np.uint8(255) for n, one in shifted.items()}, ".tif")
    assert run(evaluate, masks, labels, "--json", tmp_path / "scores.json") == 0
    printed = summary(capsys.readouterr().out)
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [row["name"] for row in written["slices"]] == ["s1", "s2", "s10"]
    expected = [metrics.score_slice(SLICES[name], shifted[name]) for name in SLICES]
    for key in expected[0]:
        mean = np.mean([row[key] for row in expected])
        assert written[key] == pytest.approx(mean)
        assert float(printed[key]) == pytest.approx(mean, abs=1e-6)


def test_probability_maps_need_a_threshold_and_show_the_oracle(labels, tmp_path, capsys):
    floats = {name: blurred(one) / np.float32(255) for name, one in SLICES.items()}
    assert run(evaluate, write(tmp_path / "f", floats, ".tif"), labels) == 2
    check_refusal(capsys, "probability maps; give --threshold T")
    maps = write(tmp_path / "p", {name: blurred(one) for name, one in SLICES.items()})
    assert run(evaluate, maps, labels) == 2
    assert "--threshold" in capsys.readouterr().err
    assert run(evaluate, maps, labels, "--threshold", "0.5", "--json", tmp_path / "a.json") == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["threshold"] == 0.5 and written["v_rand"] < 0.9
    assert written["v_rand_oracle"] == written["v_info_oracle"] == 1
    assert 150 / 255 <= written["threshold_oracle"] < 240 / 255
    assert {"v_rand_oracle", "threshold_oracle", "v_info_oracle"} <= summary(
        capsys.readouterr().out
    ).keys()


def test_what_a_threshold_is_not_for_is_refused(labels, capsys):
    assert run(evaluate, labels, labels, "--threshold", "0.5") == 2
    assert "masks already" in capsys.readouterr().err


def test_no_file_is_overwritten_by_the_scores(labels, capsys):
    before = (labels / "s1.png").read_bytes()
    assert run(evaluate, labels, labels, "--json", labels / "s1.png") == 2
    check_refusal(capsys, "nothing is overwritten")
    assert run(evaluate, labels, labels, "--json", labels / "s1.png" / "x.json") == 2
    check_refusal(capsys, "cannot be written")
    assert (labels / "s1.png").read_bytes() == before


def test_two_files_of_one_name_are_refused(labels, capsys):
    Image.fromarray(SLICES["s2"]).save(labels / "s1.tif")
    assert run(evaluate, labels, labels) == 2
    assert "s1.png and s1.tif have one name" in capsys.readouterr().err


def test_stacks_are_paired_page_by_page(tmp_path, labels, capsys):
    stack = np.stack(list(SLICES.values()))
    tifffile.imwrite(tmp_path / "a.tif", stack * np.uint8(255), photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", stack, photometric="minisblack")
    for other in (tmp_path / "b.tif", labels):
        assert run(evaluate, tmp_path / "a.tif", other) == 0
        assert summary(capsys.readouterr().out)["v_rand"] == "1"


@pytest.mark.parametrize("spoil, words", [
    (lambda masks, labels: shutil.rmtree(masks), "no such file or folder"),
    (lambda masks, labels: [path.unlink() for path in masks.iterdir()], "no image"),
    (lambda masks, labels: (masks / "s1.png").write_bytes(b""), "s1.png: cannot be read"),
    (lambda masks, labels: Image.effect_noise((70, 60), 90).save(labels / "s1.png"),
     "s1: not a binary label"),
    (lambda masks, labels: Image.fromarray(SLICES["s1"][:-1]).save(masks / "s1.png"), "same size"),
    (lambda masks, labels: (masks / "s1.png").rename(masks / "s3.png"),
     "s3 has no label of that name"),
])  # fmt: skip
def test_what_does_not_pair_up_is_refused(labels, tmp_path, capsys, spoil, words):
    masks = write(tmp_path / "m", SLICES)
    spoil(masks, labels)
    assert run(evaluate, masks, labels) == 2
    check_refusal(capsys, words)


def test_labels_of_other_slices_are_noticed(tmp_path, capsys):
    write(tmp_path / "labels", LARGE)
    write(tmp_path / "m", {name: mask[::-1, ::-1] for name, mask in LARGE.items()})
    assert run(evaluate, tmp_path / "m", tmp_path / "labels") == 0
    assert "do these labels belong to these slices?" in capsys.readouterr().out


def test_a_page_survives_a_slice_that_has_no_score(tmp_path, capsys):
    masks = write(tmp_path / "m", {name: mask * np.uint8(255) for name, mask in LARGE.items()})
    begin = '<script type="application/json" id="scores">'
    (masks / "index.html").write_text(f"{begin}{{}}</script>")
    truth = {name: mask.astype(np.int16) for name, mask in LARGE.items()}
    truth["s1"][:] = -1
    (tmp_path / "labels").mkdir()
    for name, label in truth.items():
        tifffile.imwrite(tmp_path / f"labels/{name}.tif", label)
    assert run(evaluate, masks, tmp_path / "labels") == 0
    scores = (masks / "index.html").read_text().removeprefix(begin).removesuffix("</script>")
    first, second = json.loads(scores).values()
    assert first == {} and second.keys() == {"v_rand", "v_info"}
    assert "NaN" not in scores and summary(capsys.readouterr().out)["membrane_f1"] == "1"


def test_an_array_in_a_file_is_scored(tmp_path, capsys):
    stack = np.stack(list(LARGE.values())).astype(np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", stack * np.uint8(255), photometric="minisblack")
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["volumes/raw"], file["volumes/labels"] = stack[:, ::-1], stack
    assert run(evaluate, tmp_path / "m.tif", tmp_path / "l.h5:/volumes/labels") == 0
    assert summary(capsys.readouterr().out)["v_rand"] == "1"


def test_labels_without_prediction_are_counted(labels, tmp_path, capsys):
    masks = write(tmp_path / "m", {"s2": SLICES["s2"]})
    assert run(evaluate, masks, labels) == 0
    assert "2 labels have no prediction" in capsys.readouterr().out


def test_exchanged_membrane_and_interior_are_refused(tmp_path, capsys):
    write(tmp_path / "labels", LARGE)
    inverted = {name: ~mask for name, mask in LARGE.items()}
    write(tmp_path / "inverted", inverted)
    for masks, truth in (("inverted", "labels"), ("labels", "inverted"), ("inverted", "inverted")):
        assert run(evaluate, tmp_path / masks, tmp_path / truth) == 2
        check_refusal(capsys, f"{tmp_path / 'inverted'}: inverted")


def test_numbered_cells_zarr_suffixes_and_pixels_without_a_label_are_understood(tmp_path, capsys):
    write(tmp_path / "labels", LARGE)
    names = list(LARGE)
    for name, mask in LARGE.items():
        (tmp_path / "numbers").mkdir(exist_ok=True)
        numbers = connected_components(mask, connectivity=1).astype(np.uint16)
        tifffile.imwrite(tmp_path / f"numbers/{name}-labels.tif", numbers)
    assert run(evaluate, tmp_path / "labels", tmp_path / "numbers") == 0
    assert run(evaluate, tmp_path / "numbers", tmp_path / "labels") == 2  # another way round
    assert "v_rand: 1" in capsys.readouterr().out.splitlines()
    cells = {name: connected_components(mask, connectivity=1) for name, mask in LARGE.items()}
    write(tmp_path / "cells", {name: one.astype(np.uint16) for name, one in cells.items()}, ".tif")
    assert run(evaluate, tmp_path / "cells", tmp_path / "labels") == 0
    printed = summary(capsys.readouterr().out)
    assert printed["v_rand"] == "1" and "membrane_f1" not in printed  # their lines are no membrane
    partly = {name: np.where(mask, 1, 0).astype(np.uint8) for name, mask in LARGE.items()}
    wrong = {name: mask.copy() for name, mask in LARGE.items()}
    for name in names:
        partly[name][:30] = 255
        wrong[name][:29] = False
    write(tmp_path / "partly", partly)
    write(tmp_path / "wrong", wrong)
    assert run(evaluate, tmp_path / "wrong", tmp_path / "partly", "--json", tmp_path / "a") == 0
    scores = json.loads((tmp_path / "a").read_text())
    assert scores["v_rand"] > 0.97 and scores["membrane_f1"] > 0.97


def test_masks_as_zarr_are_scored_slice_by_slice(tmp_path, capsys):
    masks = np.stack([mask * np.uint8(255) for mask in LARGE.values()])
    group = zarr.open_group(str(tmp_path / "m.zarr"), mode="w")
    write_image(masks, group, scale_factors=(), axes="zyx")
    tifffile.imwrite(tmp_path / "labels.tif", masks[:, ::-1], photometric="minisblack")
    write(tmp_path / "folder", {name: mask * np.uint8(255) for name, mask in LARGE.items()})
    assert run(evaluate, tmp_path / "m.zarr", tmp_path / "folder") == 0
    assert summary(capsys.readouterr().out)["v_rand"] == "1"
    (tmp_path / "masks").mkdir()
    (tmp_path / "m.zarr").rename(tmp_path / "masks/m.zarr")  # as predict.py --zarr leaves it
    assert run(evaluate, tmp_path / "masks", tmp_path / "folder") == 0
    assert summary(capsys.readouterr().out)["v_rand"] == "1"
    (tmp_path / "masks/m.zarr").rename(tmp_path / "m.zarr")
    assert run(evaluate, tmp_path / "folder", tmp_path / "m.zarr") == 0
    assert summary(capsys.readouterr().out)["v_rand"] == "1"
    assert run(evaluate, tmp_path / "m.zarr", tmp_path / "labels.tif") == 0
    assert float(summary(capsys.readouterr().out)["v_rand"]) < 0.9
