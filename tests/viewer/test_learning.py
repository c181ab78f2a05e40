"""From first masks to a model of one's own, by commands and keys."""

import io
import json
import zipfile

import numpy as np
import pytest
from conftest import run, run_predict
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.measure import label as connected_components
from test_correcting import Editor

import evaluate
import train
from membrane import synthetic

pytestmark = pytest.mark.slow
DECISIONS = 40  # of the five slices
TRUTH = """
const {sides, pixels} = current.decisions[asked];
const {owner, found} = growCells(current.now, sides, current, pixels);
return [shown, [1, 2].map((side) => found.filter((index) => owner[index] === side)),
        isJoined(current.decisions[asked])];
"""


def make_slices(folder, numbers):
    """Writes blurred and noisy slices and their labels, unlike any that the model knows."""
    labels = []
    for part in ("slices", "labels"):
        (folder / part).mkdir(parents=True)
    for number in numbers:
        image, interior = synthetic.make_slice(256, 256, 100 + number)
        noise = np.random.default_rng(number).normal(0, 60, image.shape)
        image = np.clip(gaussian_filter(image.astype(float), 1.5) + noise, 0, 255)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"slices/{number}.png")
        Image.fromarray(interior * np.uint8(255)).save(folder / f"labels/{number}.png")
        labels.append(connected_components(interior, connectivity=1))
    return labels


def read(path):
    return np.asarray(Image.open(path))


def score(masks, labels, capsys):
    capsys.readouterr()
    assert run(evaluate, masks, labels) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split(": ")[0]: float(line.split(": ")[1]) for line in lines if "v_" in line[:2]}


def test_five_slices_corrected_in_the_browser_teach_a_better_model(
    tmp_path, browser, downloads, capsys
):
    mine, others = tmp_path / "mine", tmp_path / "others"
    labels = make_slices(mine, range(5))
    make_slices(others, range(5, 8))
    model = ("--model", "pretrained")
    assert run_predict(mine / "slices", *model, "--output", tmp_path / "masks") == 0
    assert run_predict(others / "slices", *model, "--output", tmp_path / "before") == 0

    editor, changed = Editor(browser, downloads, tmp_path / "masks"), 0
    editor.press("n")
    for number in range(1, DECISIONS + 1):
        editor.wait(lambda n=number: editor.text("status").startswith(f"decision {n} of"))
        shown, sides, joined = browser.execute_script(TRUTH)
        under = (labels[shown].ravel()[side] for side in sides)
        most = [np.bincount(side[side > 0], minlength=1).argmax() for side in under]
        key = "l" if 0 in most else "j" if most[0] == most[1] else "s"
        changed += key in "js" and joined != (key == "j")
        editor.press(key)
    assert changed > DECISIONS / 10
    corrections = editor.save("save-corrections", "corrections.json")
    training = editor.save("save-training", "training.zip")
    with zipfile.ZipFile(io.BytesIO(training)) as archive:
        archive.extractall(tmp_path / "set")
    (tmp_path / "corrections.json").write_bytes(corrections)
    flags = ("--corrections", tmp_path / "corrections.json", "--output", tmp_path / "corrected")
    assert run_predict(mine / "slices", *model, *flags) == 0
    for path in (tmp_path / "set/train/labels").iterdir():
        assert np.array_equal(read(path), read(tmp_path / "corrected" / path.name))
    assert len(json.loads(corrections)["slices"]) == len(
        list((tmp_path / "set/train/imgs").iterdir())
    )
    first, corrected = (
        score(tmp_path / n, mine / "labels", capsys) for n in ("masks", "corrected")
    )
    assert corrected["v_rand"] > first["v_rand"] + 0.01

    run_folder = tmp_path / "run"
    flags = ("--init", "pretrained", "--epochs", "2", "--output", run_folder)
    assert run(train, "--data", tmp_path / "set", *flags) == 0
    flags = ("--model", run_folder, "--output", tmp_path / "after")
    assert run_predict(others / "slices", *flags) == 0
    before, after = (score(tmp_path / n, others / "labels", capsys) for n in ("before", "after"))
    assert after["v_rand"] > before["v_rand"] and after["v_info"] > before["v_info"]
    print(f"V_rand of slices not corrected: {before['v_rand']:.4f}, then {after['v_rand']:.4f}")
