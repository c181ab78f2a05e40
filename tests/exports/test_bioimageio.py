"""The package of BioImage.IO, by its own test: python -m pytest -m slow."""

import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import run

import export
from membrane import cli
from membrane.io import normalization

pytestmark = pytest.mark.slow


def test_a_package_passes_the_formats_own_test_and_states_all_that_is_known(outputs, tmp_path):
    with cli.quiet():
        from bioimageio import core

        from membrane.exports import bioimageio
    path, folder = tmp_path / "small.zip", tmp_path / "lr0.1 ü"
    shutil.copytree(outputs / "small", folder)
    assert run(export, folder, "--output", path, "--author", "A. Student", "--license", "MIT") == 0
    for kind in ("keras_v3", "onnx"):
        assert core.test_model(path, weight_format=kind).status == "passed"
    model = core.load_model_description(path)
    assert model.authors[0].name == "A. Student" and model.license == "MIT"
    assert model.name == "Membrane U-Net lr0-1 -"
    axis = next(axis for axis in model.inputs[0].axes if axis.id == "y")
    out = next(axis for axis in model.outputs[0].axes if axis.id == "y")
    assert (axis.size.step, out.halo) == (2, 18)  # stride and radius of two stages, dilated
    assert axis.size.min > 2 * out.halo
    assert [str(paper.doi) for paper in model.cite] == list(
        bioimageio.UNET
    )  # no slice of ISBI-2012's
    with zipfile.ZipFile(path) as package:
        record = json.loads((outputs / "small/run.json").read_text()) | {"data_root": None}
        packed = json.loads(package.read("run.json"))
        assert packed | {"flags": record["flags"]} == record
        assert packed["flags"]["data"] == Path(record["flags"]["data"]).name  # not where it lies
        text = package.read("README.md").decode()
        best = record["validation"]["oracle"]["v_rand"]  # of the one validation slice
        assert f"V_rand {best:.4f}" in text and f"threshold, {record['threshold']:g}, " in text
        tensors = [np.load(package.open(f"test_{end}.npy")) for end in ("input", "output")]
    network = keras.saving.load_model(outputs / "small/model.keras")
    ours = network.predict_on_batch(normalization.normalize(tensors[0][0, ..., 0])[None, ..., None])
    assert np.abs(ours - tensors[1]).mean() < 0.005  # its normalisation is nearly ours
