import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import fail_at, write_data_set
from PIL import Image

import data
import train
import unet
from membrane import runs
from membrane.errors import UserError
from membrane.inference.loading import load_network
from membrane.inference.predictor import Predictor
from membrane.training import callbacks

ROOT = Path(train.__file__).parent


def interrupt(*args, **settings):
    """Stands for a `fit` that is interrupted in its first epoch."""
    raise KeyboardInterrupt


SMALL = ["--filters", "4", "8", "--batch-size", "2"]


@pytest.fixture(autouse=True)
def small_epochs(monkeypatch, tmp_path):
    monkeypatch.setattr(train, "TILES_PER_EPOCH", 8)
    monkeypatch.setattr(runs, "OUTPUTS", tmp_path / "outputs")


def weights(folder):
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def rows(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_holds_what_it_should(trained):
    run = trained / "small"
    assert {path.name for path in run.iterdir()} == {
        "model.keras", "run.json", "history.csv", "curves.png", "validation.png",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert record["finished"] and not record["synthetic"]
    assert record["train_slices"] == ["slice_1", "slice_2", "slice_3"]
    assert record["val_slices"] == ["slice_4"]
    assert 0 < record["threshold"] < 1 and 0 < record["threshold_without_tta"] < 1
    assert [row["epoch"] for row in rows(run)] == ["1", "2"]
    assert Image.open(run / "validation.png").width > 5 * 500
    model = keras.saving.load_model(run / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


def test_training_learns(data_set, tmp_path, capsys):
    output = tmp_path / "run"
    flags = ["--epochs", "20", "--learning-rate", "0.01", "--val-slices", "2-3"]
    assert train.main(["--data", str(data_set), "--output", str(output), *SMALL, *flags]) == 0
    assert "hardly any membrane" not in capsys.readouterr().out
    losses = [float(row["loss"]) for row in rows(output)]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:2])
    record = json.loads((output / "run.json").read_text())
    assert record["val_slices"] == ["slice_2", "slice_3"]
    assert (
        record["validation"]["oracle"]["v_rand"]
        >= record["validation"]["leave_one_out"]["v_rand"] - 1e-9
    )
    _, held_out = data.hold_out(data.load_pairs(data.find_data_set(str(data_set), tmp_path)), "2-3")
    predict = Predictor(load_network(output / "model.keras"))
    scores = callbacks.validate(predict, held_out.images, held_out.labels)
    assert float(rows(output)[-1]["val_loss"]) == pytest.approx(scores["loss"], rel=0.02)


RESUMED = [*SMALL, "--epochs", "4", "--seed", "5"]


@pytest.fixture(scope="module")
def whole(data_set, tmp_path_factory):
    """A training of four epochs that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "TILES_PER_EPOCH", 8)
        assert train.main(["--data", str(data_set), *RESUMED, "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("moment", [
    "validate",
    pytest.param("save_checkpoint", marks=pytest.mark.slow),
    pytest.param("write_history", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_resumed_training_ends_like_an_undisturbed_one(
    data_set, whole, tmp_path, monkeypatch, moment
):
    untouched = fail_at(monkeypatch, callbacks, moment, 3, MemoryError)
    with pytest.raises(MemoryError):
        train.main(["--data", str(data_set), *RESUMED, "--output", str(tmp_path / "cut")])
    monkeypatch.setattr(callbacks, moment, untouched)
    known = rows(tmp_path / "cut")
    assert len(known) == 2
    assert train.main(["--resume", str(tmp_path / "cut")]) == 0
    assert rows(tmp_path / "cut")[:2] == known
    for resumed, expected in zip(weights(tmp_path / "cut"), weights(whole), strict=True):
        assert np.array_equal(resumed, expected)
    assert [{**row, "seconds": 0} for row in rows(tmp_path / "cut")] == [
        {**row, "seconds": 0} for row in rows(whole)
    ]


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.slow
def test_a_killed_training_can_be_resumed(data_set, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, "train.py", "--data", data_set, "--output", output, "--epochs", "3"]
    command += ["--filters", "2", "2", "--batch-size", "16"]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while not (output / "history.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    known = rows(output)
    assert 1 <= len(known) < 3
    resume = [sys.executable, "train.py", "--resume", str(output)]
    answer = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0 and answer.stderr == ""
    assert "Epoch 1/3" not in answer.stdout and "Epoch 3/3" in answer.stdout
    assert rows(output)[: len(known)] == known and len(rows(output)) == 3


def test_ctrl_c_keeps_what_there_is(data_set, tmp_path, monkeypatch, capsys):
    fail_at(monkeypatch, callbacks, "validate", 2, KeyboardInterrupt)
    output = tmp_path / "run"
    flags = ["--data", str(data_set), *SMALL, "--epochs", "3", "--output", str(output)]
    assert train.main(flags) == 130
    assert "Interrupted after epoch 1 of 3. Go on with: python train.py --resume" in (
        capsys.readouterr().out
    )
    record = json.loads((output / "run.json").read_text())
    assert not record["finished"] and record["threshold"] > 0
    assert (output / "model.keras").exists() and len(rows(output)) == 1
    assert train.main(["--resume", str(output)]) == 0
    assert json.loads((output / "run.json").read_text())["finished"]
    assert not (output / callbacks.CHECKPOINT).exists()


def test_a_loss_that_is_no_number_stops_with_a_reason(data_set, tmp_path, monkeypatch, capsys):
    sound = data.tiles

    def poison(*args):
        return sound(*args).map(lambda images, labels: (images * np.nan, labels))

    monkeypatch.setattr(data, "tiles", poison)
    flags = ["--data", str(data_set), *SMALL, "--epochs", "3", "--output", str(tmp_path / "run")]
    assert train.main(flags) == 2
    message = capsys.readouterr().err
    assert "no longer a number in epoch 1" in message and "--learning-rate" in message
    assert not (tmp_path / "run" / callbacks.CHECKPOINT).exists()


def test_a_run_is_never_overwritten(data_set, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert train.main(["--data", str(data_set), "--output", str(tmp_path)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resuming_with_other_slices_is_refused(data_set, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    monkeypatch.setattr(keras.Model, "fit", interrupt)
    assert train.main(["--data", str(data_set), *SMALL, "--output", str(output)]) == 130
    record = json.loads((output / "run.json").read_text())
    record["data_checksum"] += 1
    (output / "run.json").write_text(json.dumps(record))
    assert train.main(["--resume", str(output)]) == 2
    assert "not the slices" in capsys.readouterr().err


def test_resuming_without_its_checkpoint_is_refused(data_set, tmp_path, capsys):
    output = tmp_path / "run"
    flags = ["--data", str(data_set), *SMALL, "--epochs", "1", "--output", str(output)]
    assert train.main(flags) == 0
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(record | {"finished": False}))
    before = (output / "history.csv").read_bytes()
    assert train.main(["--resume", str(output)]) == 2
    assert "checkpoint.npz is gone" in capsys.readouterr().err
    assert (output / "history.csv").read_bytes() == before


def test_only_training_slices_reach_the_sampler_and_the_rate_follows_its_schedule(
    data_set, tmp_path, monkeypatch
):
    seen, make = [], data.tiles

    def watch(training, *args):
        seen.append(training.images)
        return make(training, *args)

    monkeypatch.setattr(data, "tiles", watch)
    output = tmp_path / "run"
    flags = ["--epochs", "6", "--val-slices", "2", "--output", str(output)]
    assert train.main(["--data", str(data_set), *SMALL, *flags]) == 0
    pairs = data.load_pairs(data.find_data_set(str(data_set), tmp_path))
    assert len(seen[0]) == 3
    for image, expected in zip(seen[0], [pairs.images[i] for i in (0, 2, 3)], strict=True):
        assert np.array_equal(image, expected)
    rates = [float(row["learning_rate"]) for row in rows(output)]
    assert rates[0] == pytest.approx(train.LEARNING_RATE) and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(train.LEARNING_RATE / 100)


def test_training_starts_from_another_runs_weights(data_set, trained, tmp_path, monkeypatch):
    begun = []

    def stop_at_once(model, *args, **settings):
        begun.append((model.get_weights(), settings))
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "fit", stop_at_once)
    flags = ["--data", str(data_set), "--init", str(trained / "small"), "--batch-size", "2"]
    assert train.main([*flags, "--output", str(tmp_path / "run")]) == 130
    found, settings = begun[0]
    for weight, expected in zip(found, weights(trained / "small"), strict=True):
        assert np.array_equal(weight, expected)
    assert settings["epochs"] == train.EPOCHS_INIT < train.EPOCHS
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["flags"]["learning_rate"] == train.LEARNING_RATE_LOW
    assert record["flags"]["filters"] == [4, 8]


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


def test_a_training_interrupted_before_its_first_epoch_starts_from_the_same_run_again(
    data_set, trained, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr(
        keras.Model, "fit", lambda model, *_, **__: begun.append(model) or interrupt()
    )
    flags = ["--data", str(data_set), "--init", str(trained / "small"), "--batch-size", "2"]
    assert train.main([*flags, "--output", str(tmp_path / "run")]) == 130
    assert train.main(["--resume", str(tmp_path / "run")]) == 130
    for network in begun:
        for weight, expected in zip(network.get_weights(), weights(trained / "small"), strict=True):
            assert np.array_equal(weight, expected)
    assert len(begun) == 2


def test_a_single_slice_can_be_trained_on_from_another_run(trained, tmp_path):
    write_data_set(tmp_path / "one", count=1)
    flags = ["--data", str(tmp_path / "one"), "--init", str(trained / "small"), "--epochs", "1"]
    flags += ["--batch-size", "2", "--pixel-size", "6", "--output", str(tmp_path / "run")]
    assert train.main(flags) == 2
    assert train.main([*flags, "--val-slices", "none"]) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    before = json.loads((trained / "small/run.json").read_text())
    assert record["threshold"] == before["threshold"] and record["pixel_size"] == 6
    assert record["val_slices"] == [] and "validation" not in record
    assert not (tmp_path / "run/validation.png").exists()


def test_a_given_threshold_is_kept(data_set, tmp_path):
    flags = ["--data", str(data_set), *SMALL, "--epochs", "1", "--threshold", "0.77"]
    assert train.main([*flags, "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["threshold"] == record["threshold_without_tta"] == 0.77
    assert "validation" in record


def test_a_training_that_finds_no_membrane_says_so(data_set, tmp_path, capsys):
    flags = ["--data", str(data_set), *SMALL, "--epochs", "1"]
    assert train.main([*flags, "--output", str(tmp_path / "a")]) == 0
    assert "hardly any membrane" in capsys.readouterr().out


def test_a_bare_model_cannot_be_started_from(data_set, trained, tmp_path, capsys):
    flags = ["--data", str(data_set), "--init", str(trained / "small/model.keras")]
    assert train.main(flags) == 2
    assert "needs the folder of a finished run" in capsys.readouterr().err


def test_resuming_a_finished_run_is_refused(trained, capsys):
    assert train.main(["--resume", str(trained / "small")]) == 2
    assert "finished" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(tmp_path):
    model = unet.build_unet((2, 2))
    model.compile("adam", "mse")
    path = tmp_path / callbacks.CHECKPOINT
    history = [dict.fromkeys(callbacks.COLUMNS, 1)]
    callbacks.save_checkpoint(path, model, history)
    assert callbacks.restore_checkpoint(tmp_path, model) == history
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"checkpoint\.npz: damaged"):
        callbacks.restore_checkpoint(tmp_path, model)


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
def test_impossible_flags_are_refused_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1
