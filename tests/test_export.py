import importlib.util
import json
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import export
import unet
from membrane import cli, runs, synthetic
from membrane.exports import bioimageio, formats
from membrane.inference.loading import load_network
from membrane.io import normalization, readers

with cli.quiet():
    import onnxruntime
    import openvino
    from bioimageio import core


def run(*flags):
    return export.main(list(map(str, flags)))


def run_tf(path, image):
    network = tf.saved_model.load(str(path))
    return network.serve(image).numpy()


def run_onnx(path, image):
    return onnxruntime.InferenceSession(path).run(None, {"image": image})[0]


def run_openvino(path, image):
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(path, "CPU", exact)([image])[0]


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def run_litert(path, image):
    network = tf.lite.Interpreter(str(path)).get_signature_runner()
    return network(image=image)["output_0"]


ENGINES = {
    "tf": ("network", run_tf),
    "onnx": ("network.onnx", run_onnx),
    "openvino": ("network.xml", run_openvino),
    "litert": ("network.tflite", run_litert),
}


def check_engines(run_name, image, folder):
    """Exports a run to every format and compares what each gives of a slice of 512x512."""
    seen = normalization.normalize(image)[None, :, :, None]
    expected = load_network(runs.find_run(run_name) / "model.keras").predict_on_batch(seen)
    assert np.ptp(expected) > 0.05
    for name, (file, engine) in ENGINES.items():
        assert run(run_name, "--format", name, "--output", folder / file) == 0
        assert np.abs(engine(folder / file, seen) - expected).max() < 1e-4, name


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_every_format_gives_what_the_network_gives(outputs, tmp_path):
    check_engines("small", synthetic.make_slice(512, 512, 1)[0], tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {file for file, _ in ENGINES.values()} | {"network.bin"}


@pytest.mark.isbi
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_every_format_gives_what_the_network_gives_of_a_real_slice(isbi, tmp_path):
    _, image = next(iter(readers.read_named(isbi / "unmodified-data" / "test" / "imgs")))
    check_engines("pretrained", normalization.to_grey(image), tmp_path)


def test_a_package_passes_the_formats_own_test_and_says_all_that_is_known(outputs, tmp_path):
    path, folder = tmp_path / "small.zip", tmp_path / "lr0.1 ü"
    shutil.copytree(outputs / "small", folder)
    assert run(folder, "--output", path, "--author", "A. Student", "--license", "MIT") == 0
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
        record = json.loads((outputs / "small/run.json").read_text())
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


def test_a_bare_model_is_exported_too(outputs, tmp_path):
    assert run(outputs / "small/model.keras", "--format", "tf", "--output", tmp_path / "tf") == 0
    assert (tmp_path / "tf/saved_model.pb").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--output", "taken.zip"], "exists, and nothing is overwritten"),
        (["--output", "small.txt"], "must end in .zip"),
        (["--output", "taken.zip/small.zip"], "cannot be written"),
        (["--output", "small.xml", "--format", "openvino"], "small.bin: exists"),
        (["--output", "new.zip", "--license", "mine"], "BioImage.IO refuses it"),
        (["--format", "torch"], "invalid choice"),
        (["none"], "no such run or model"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    outputs, tmp_path, monkeypatch, capfd, flags, said
):
    monkeypatch.chdir(tmp_path)
    for name in ("taken.zip", "small.bin"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) if "torch" in flags else pytest.MonkeyPatch.context():
        assert run(*([] if "none" in flags else ["small"]), *flags) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("export.py: error: ") and said in lines[0]
    assert len(lines[0]) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.bin", "taken.zip"]
    assert (tmp_path / "taken.zip").read_text() == (tmp_path / "small.bin").read_text() == "mine"


@pytest.mark.parametrize("wrong, status", [(1, 0), (formats.ATTEMPTS, 2)])
def test_an_onnx_file_that_came_out_wrong_is_written_again(
    outputs, tmp_path, monkeypatch, capsys, wrong, status
):
    right, written = load_network(outputs / "small/model.keras"), []
    untouched = keras.Model.export

    def write(network, path, **how):
        written.append(path)
        other = unet.build_unet((2, 2)) if len(written) <= wrong else network
        untouched(other, path, **how)

    monkeypatch.setattr(keras.Model, "export", write)
    path = tmp_path / "small.onnx"
    assert run("small", "--format", "onnx", "--output", path) == status
    assert len(written) == min(wrong + 1, formats.ATTEMPTS)
    if status:
        assert "does not give what the network gives" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    else:
        image = np.random.default_rng(1).random((1, 20, 40, 1), np.float32)
        assert np.abs(run_onnx(path, image) - right(image)).max() < 1e-4


def test_an_unfinished_run_is_refused(outputs, tmp_path, capsys):
    record = json.loads((outputs / "small/run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(
        json.dumps({key: record[key] for key in ("format", "finished", "synthetic", "flags")})
    )
    assert run(tmp_path / "run", "--output", tmp_path / "run.zip") == 2
    assert "--resume" in capsys.readouterr().err


def test_a_missing_library_is_named_with_what_installs_it(outputs, tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else found(name)
    )
    assert run("small", "--format", "onnx", "--output", tmp_path / "a.onnx") == 2
    assert "tf2onnx is not installed" in capsys.readouterr().err
