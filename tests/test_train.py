import json
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tifffile
from conftest import SMALL, check_refusal, read_history, read_weights, run, write_data_set
from PIL import Image

import data
import predict
import train
import unet
from membrane import runs, synthetic
from membrane.inference import fused_unet
from membrane.inference.loading import load_network
from membrane.inference.predictor import Predictor
from membrane.training import callbacks

pytestmark = pytest.mark.usefixtures("small_epochs")


def interrupt(*args, **settings):
    """Stands for a `fit` that is interrupted in its first epoch."""
    raise KeyboardInterrupt


def test_a_run_holds_what_it_should(trained):
    folder = trained / "small"
    assert {path.name for path in folder.iterdir()} == {
        "model.keras", "run.json", "history.csv", "curves.png", "validation.png",
    }  # fmt: skip
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"] and not record["synthetic"]
    assert record["train_slices"] == ["slice_1", "slice_2", "slice_3"]
    assert record["val_slices"] == ["slice_4"]
    assert 0 < record["threshold"] < 1 and 0 < record["threshold_without_tta"] < 1
    assert [row["epoch"] for row in read_history(folder)] == ["1", "2"]
    assert Image.open(folder / "validation.png").width > 5 * 500
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_training_learns(data_set, tmp_path, monkeypatch, capsys):
    seen, make = [], data.tiles

    def watch(training, *args):
        seen.append(training.images)
        return make(training, *args)

    monkeypatch.setattr(data, "tiles", watch)
    output = tmp_path / "run"
    flags = ["--epochs", "20", "--learning-rate", "0.01", "--val-slices", "2-3"]
    assert run(train, "--data", data_set, "--output", output, *SMALL, *flags) == 0
    printed = capsys.readouterr().out
    assert "hardly any membrane" not in printed and "pixel size is not known" in printed
    losses, rates = zip(
        *((float(row["loss"]), float(row["learning_rate"])) for row in read_history(output)),
        strict=True,
    )
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])
    record = json.loads((output / "run.json").read_text())
    assert record["val_slices"] == ["slice_2", "slice_3"]
    assert (
        record["validation"]["oracle"]["v_rand"]
        >= record["validation"]["leave_one_out"]["v_rand"] - 1e-9
    )
    assert rates[0] == pytest.approx(0.01) and rates == tuple(sorted(rates, reverse=True))
    assert rates[-1] == pytest.approx(0.01 / 100)
    pairs = data.load_pairs(data.find_data_set(str(data_set), tmp_path))
    assert len(seen[0]) == 2  # nothing of the held-out slices reaches the sampler
    for image, expected in zip(seen[0], [pairs.images[i] for i in (0, 3)], strict=True):
        assert np.array_equal(image, expected)
    _, held_out = data.hold_out(pairs, "2-3")
    predict = Predictor(load_network(output / "model.keras"))
    scores = callbacks.validate(predict, held_out)
    assert float(read_history(output)[-1]["val_loss"]) == pytest.approx(scores["loss"], rel=0.02)


@pytest.mark.parametrize("filters, rate, dilation", [
    ([16, 32, 64], train.LEARNING_RATE, 2), ([16, 32, 64, 128, 256], train.LEARNING_RATE_LOW, 1),
])  # fmt: skip
def test_a_deep_network_has_defaults_of_its_own(filters, rate, dilation):
    args = train.parse_args(["--filters", *map(str, filters)])
    train.resolve_defaults(args, synthetic=False)
    assert (args.learning_rate, args.dilation) == (rate, dilation)
    args = train.parse_args(["--dilation", "3", "--learning-rate", "0.5"])
    train.resolve_defaults(args, synthetic=False)
    assert (args.learning_rate, args.dilation) == (0.5, 3)


def test_training_starts_from_another_runs_weights(data_set, trained, tmp_path, monkeypatch):
    begun = []

    def stop_at_once(model, *args, **settings):
        begun.append((model.get_weights(), settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", stop_at_once)
    flags = ["--data", data_set, "--init", trained / "small", "--batch-size", "2"]
    assert run(train, *flags, "--output", tmp_path / "run") == 130
    found, settings = begun[0]
    for weight, expected in zip(found, read_weights(trained / "small"), strict=True):
        assert np.array_equal(weight, expected)
    assert settings["epochs"] == train.EPOCHS_INIT < train.EPOCHS
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["flags"]["learning_rate"] == train.LEARNING_RATE_LOW
    assert record["flags"]["filters"] == [4, 8]


def test_a_training_interrupted_before_its_first_epoch_starts_from_the_same_run_again(
    data_set, trained, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr(
        keras.Model, "fit", lambda model, *_, **__: begun.append(model) or interrupt()
    )
    monkeypatch.chdir(trained)
    flags = ["--data", data_set, "--init", "./small", "--batch-size", "2"]
    assert run(train, *flags, "--output", tmp_path / "run") == 130
    monkeypatch.chdir(tmp_path)
    assert run(train, "--resume", tmp_path / "run") == 130
    assert len(begun) == 2
    for network in begun:
        assert all(map(np.array_equal, network.get_weights(), read_weights(trained / "small")))


def test_a_single_slice_can_be_trained_on_from_another_run(trained, tmp_path):
    write_data_set(tmp_path / "one", count=1)
    flags = ["--data", tmp_path / "one", "--init", trained / "small", "--epochs", "1"]
    flags += ["--batch-size", "2", "--pixel-size", "6", "--output", tmp_path / "run"]
    assert run(train, *flags) == 2
    assert run(train, *flags, "--val-slices", "none") == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    before = json.loads((trained / "small/run.json").read_text())
    assert record["threshold"] == before["threshold"] and record["pixel_size"] == 6
    assert record["val_slices"] == [] and "validation" not in record
    assert not (tmp_path / "run/validation.png").exists()


class Gate(keras.layers.Layer):
    """A student's own layer, that Keras does not know when it loads a model."""

    def call(self, x):
        return x * keras.ops.sigmoid(x)


@keras.saving.register_keras_serializable("lab")
class Scale(keras.layers.Layer):
    """One that this process could load, and another could not."""

    def call(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "layer, words",
    [
        (keras.layers.Lambda(lambda x: 2 * x), "without Lambda"),
        (Gate(), "build it from Keras' own layers"),
        (Scale(), "build it from Keras' own layers"),
        (keras.layers.Conv2D(1, 1, activation="relu"), "its last layer has no sigmoid"),
        (keras.layers.Conv2D(2, 1, activation="softmax"), "expected one image"),
        (keras.layers.Conv2D(1, 3, activation="sigmoid"), "not the size of its input"),
    ],
)
def test_a_network_that_could_not_predict_is_refused_before_it_is_trained(
    data_set, tmp_path, monkeypatch, capsys, layer, words
):
    image = keras.Input((None, None, 1))
    output = layer(image)
    if words.endswith(("Lambda", "layers")):
        output = keras.layers.Conv2D(1, 1, activation="sigmoid")(output)
    monkeypatch.setattr(unet, "build_unet", lambda *given: keras.Model(image, output))
    assert run(train, "--data", data_set, "--output", tmp_path / "run") == 2
    check_refusal(capsys, words)
    assert not (tmp_path / "run").exists()


def test_a_bare_model_cannot_be_started_from(data_set, trained, capsys):
    flags = ["--data", data_set, "--init", trained / "small/model.keras"]
    assert run(train, *flags) == 2
    assert "needs the folder of a finished run" in capsys.readouterr().err


def test_resuming_with_other_slices_is_refused(data_set, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    monkeypatch.setattr(keras.Model, "fit", interrupt)
    assert run(train, "--data", data_set, *SMALL, "--output", output) == 130
    record = json.loads((output / "run.json").read_text())
    record["data_checksum"] += 1
    (output / "run.json").write_text(json.dumps(record))
    assert run(train, "--resume", output) == 2
    assert "not the slices" in capsys.readouterr().err


def test_the_printed_command_works_from_where_one_is(data_set, tmp_path, monkeypatch, capsys):
    shutil.copytree(data_set / "train", tmp_path / "mine/train")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    flags = ["--data", "../mine", "--epochs", "1", "--output", "run"]
    assert run(train, *flags, *SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith(", the best on that one slice") for line in lines)
    (line,) = [line for line in lines if line.startswith("Next: ")]
    script = shlex.split(line)[2]
    assert Path(script).resolve() == runs.ROOT / "predict.py"
    assert shlex.split(line)[3:] == ["--model", "run", "FOLDER"]  # it has no test slices
    record = json.loads(Path("run/run.json").read_text())
    assert record["validation"]["leave_one_out"]["v_rand"] > 0  # of one slice, at 0.5


@pytest.mark.slow
def test_synthetic_slices_are_drawn_beside_the_output(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "DATA_SET", {"train": 3, "test": 1})
    monkeypatch.setattr(synthetic, "DATA_SET_SIDE", 60)
    output = tmp_path / "trial/run"
    assert run(train, "--data", "synthetic", "--epochs", "1", "--output", output, *SMALL) == 0
    assert (tmp_path / "trial/synthetic-slices/train").is_dir() and not runs.OUTPUTS.exists()
    record = json.loads((output / "run.json").read_text())
    assert predict.find_test_slices(record) == tmp_path / "trial/synthetic-slices/test/imgs"


def test_a_few_painted_regions_are_learned_from(data_set, tmp_path):
    shutil.copytree(data_set, tmp_path / "set")
    for path in (tmp_path / "set/train/labels").iterdir():
        label = np.asarray(Image.open(path)).astype(np.int16) // 255
        label[:, 50:] = 7
        path.unlink()
        tifffile.imwrite(path.with_name(f"{path.stem}_label.tif"), label)
    flags = ["--data", tmp_path / "set", "--ignore", "7", "--epochs", "2"]
    assert run(train, *flags, *SMALL, "--output", tmp_path / "run") == 0
    assert float(read_history(tmp_path / "run")[1]["val_loss"]) < 1
    assert (tmp_path / "run/validation.png").exists()


def test_a_dilation_that_cannot_be_trained_here_is_refused(data_set, tmp_path, monkeypatch, capsys):
    """An edited network where TensorFlow has no oneDNN."""
    monkeypatch.setattr(fused_unet, "fused_unet", lambda network: network)
    monkeypatch.setattr(fused_unet, "has_dilated_gradient", lambda: False)
    flags = ["--data", data_set, "--epochs", "1", *SMALL, "--output", tmp_path / "run"]
    assert run(train, *flags) == 2
    check_refusal(capsys, "on this CPU; train it without: --dilation 1")
    assert not (tmp_path / "run").exists()
    assert not fused_unet.is_dilated(unet.build_unet((4, 8)))
