"""Every exported format against the network itself: python -m pytest -m slow."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import run

import export
import unet
from membrane import cli, runs, synthetic
from membrane.exports import formats
from membrane.inference.loading import load_network
from membrane.io import normalization, readers

with cli.quiet():
    import onnxruntime
    import openvino

pytestmark = pytest.mark.slow


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
        assert run(export, run_name, "--format", name, "--output", folder / file) == 0
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
    assert run(export, "small", "--format", "onnx", "--output", path) == status
    assert len(written) == min(wrong + 1, formats.ATTEMPTS)
    if status:
        assert "does not give what the network gives" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    else:
        image = np.random.default_rng(1).random((1, 20, 40, 1), np.float32)
        assert np.abs(run_onnx(path, image) - right(image)).max() < 1e-4
