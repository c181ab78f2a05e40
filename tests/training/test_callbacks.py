"""Checkpoint, history, and trainings that are interrupted and go on."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import SMALL, fail_at, read_history, read_weights, run, shorten
from tensorflow.python.framework import config

import data
import train
import unet
from membrane.errors import UserError
from membrane.inference.fused_unet import fused_unet
from membrane.inference.precision import with_dtype
from membrane.io import writers
from membrane.training import callbacks
from membrane.training.muon import Muon

pytestmark = pytest.mark.usefixtures("small_epochs")
RESUMED = [*SMALL, "--epochs", "4", "--seed", "5"]


@pytest.fixture(scope="module")
def whole(data_set, tmp_path_factory):
    """A training of four epochs that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        assert run(train, "--data", data_set, *RESUMED, "--output", output) == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["validate", "save_checkpoint", "write_history"])
def test_a_resumed_training_ends_like_an_undisturbed_one(
    data_set, whole, tmp_path, monkeypatch, moment
):
    untouched = fail_at(monkeypatch, callbacks, moment, 3, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run(train, "--data", data_set, *RESUMED, "--output", tmp_path / "cut")
    monkeypatch.setattr(callbacks, moment, untouched)
    known = read_history(tmp_path / "cut")
    assert len(known) == 2
    assert run(train, "--resume", tmp_path / "cut") == 0
    assert read_history(tmp_path / "cut")[:2] == known
    check_same(tmp_path / "cut", whole)


def check_same(resumed, undisturbed):
    """Two trainings came to the same weights, by the same way."""
    weights = zip(read_weights(resumed), read_weights(undisturbed), strict=True)
    assert all(np.array_equal(one, other) for one, other in weights)
    one, other = (
        [row | {"seconds": 0} for row in read_history(run)] for run in (resumed, undisturbed)
    )
    assert one == other


def test_ctrl_c_keeps_what_there_is_and_it_ends_like_an_undisturbed_training(
    data_set, trained, tmp_path, monkeypatch, capsys
):
    fail_at(monkeypatch, callbacks, "validate", 2, KeyboardInterrupt)
    output = tmp_path / "run"
    flags = ["--data", data_set, *SMALL, "--epochs", "2", "--output", output]
    assert run(train, *flags) == 130
    assert "Interrupted after epoch 1 of 2. Go on with: python train.py --resume" in (
        capsys.readouterr().out
    )
    record = json.loads((output / "run.json").read_text())
    assert not record["finished"] and record["threshold"] > 0
    assert (output / "model.keras").exists() and len(read_history(output)) == 1
    assert run(train, "--resume", output) == 0
    assert json.loads((output / "run.json").read_text())["finished"]
    assert not (output / callbacks.CHECKPOINT).exists()
    check_same(output, trained / "small")


def test_a_loss_that_is_no_number_stops_with_a_reason(data_set, tmp_path, monkeypatch, capsys):
    sound = data.tiles

    def poison(*args):
        return sound(*args).map(lambda images, labels: (images * np.nan, labels))

    monkeypatch.setattr(data, "tiles", poison)
    flags = ["--data", data_set, *SMALL, "--epochs", "3", "--output", tmp_path / "run"]
    assert run(train, *flags) == 2
    message = capsys.readouterr().err
    assert "no longer a number in epoch 1" in message and "--learning-rate" in message
    assert not (tmp_path / "run" / callbacks.CHECKPOINT).exists()


def test_resuming_without_its_checkpoint_is_refused(trained, tmp_path, capsys):
    output = shutil.copytree(trained / "small", tmp_path / "run")
    record = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(record | {"finished": False}))
    before = (output / "history.csv").read_bytes()
    assert run(train, "--resume", output) == 2
    assert "checkpoint.npz is gone" in capsys.readouterr().err
    assert (output / "history.csv").read_bytes() == before


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


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_step_of_the_training_compiles_under_xla_as_on_a_gpu(precision):
    images = np.random.default_rng(0).random((2, 64, 64, 1)).astype(np.float32)
    losses = []
    for jit in (False, True):
        keras.utils.set_random_seed(0)
        model = fused_unet(with_dtype(unet.build_unet((4, 8)), precision))
        model.compile(
            optimizer=Muon(1e-3), loss="binary_crossentropy", metrics=[callbacks.membrane_iou]
        )
        model.optimizer.build(model.trainable_variables)
        # as on a GPU; a training of another test has made it deterministic, which XLA cannot do
        config.disable_op_determinism()
        step = tf.function(model.train_step, jit_compile=jit, reduce_retracing=True)
        batch = images, np.round(images), np.ones_like(images)
        losses.append([])
        for _ in range(3):
            model.reset_metrics()
            losses[-1].append(float(step(batch)["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "float32" else 0.02)
    assert losses[1][2] < losses[1][0]


def test_a_history_that_another_program_has_open_ends_no_training(tmp_path, monkeypatch, capsys):
    path = tmp_path / "history.csv"
    path.write_text("old")
    tries = []

    def held(part, target):
        tries.append(target)
        raise PermissionError(13, "in use")

    monkeypatch.setattr(writers, "HELD_SECONDS", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(writers.os, "replace", held)
        callbacks.write_history(path, [])
    assert len(tries) == 3 and path.read_text() == "old"
    assert "another program has it open; the next epoch tries again" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    callbacks.write_history(path, [])
    assert path.read_text().startswith("epoch")


def test_the_held_out_slices_are_scored_ten_times_and_at_the_end(monkeypatch, capsys):
    held_out = data.Pairs(["a"], [np.zeros((16, 16), np.float32)], [np.ones((16, 16), bool)])
    scored = []
    scores = dict.fromkeys(("loss", "membrane_iou", "v_rand", "v_info"), 0.5)
    monkeypatch.setattr(callbacks, "validate", lambda *args: scored.append(args) or scores)
    network = unet.build_unet((2, 2))
    some = {40: [*range(3, 40, 4)], 5: [0, 1, 2, 3, 4], 25: [*range(1, 24, 2), 24]}
    for epochs, expected in some.items():
        validation, found = callbacks.Validation(network, held_out), []
        validation.set_model(network)
        validation.set_params({"epochs": epochs})
        for epoch in range(epochs):
            logs = {}
            validation.on_epoch_end(epoch, logs)
            found += [epoch] if logs else []
        assert found == expected
        printed = capsys.readouterr().out
        said = [f"Epoch {epoch + 1}, validation: V_rand 0.5000" for epoch in found]
        assert all(words in printed for words in said)
        assert printed.count("validation") == len(found)
        assert len(scored) == len(found)
        scored.clear()


def test_whole_slices_are_scored_where_their_labels_are_known():
    label = np.zeros((32, 32), bool)
    label[:, :20] = True
    images = [np.where(label, 0.9, 0.1).astype(np.float32)]
    everywhere = callbacks.validate(lambda image: image, data.Pairs(["a"], images, [label]))
    assert everywhere["loss"] == pytest.approx(-np.log(0.9), rel=1e-4)
    assert everywhere["membrane_iou"] == 1
    images[0][:8] = 0.5  # wrong, but not labelled
    known = np.ones(label.shape, bool)
    known[:8] = False
    partly = callbacks.validate(
        lambda image: image, data.Pairs(["a"], images, [label & known], [known])
    )
    assert partly["loss"] == pytest.approx(everywhere["loss"]) and partly["membrane_iou"] == 1


def test_pixels_without_a_label_do_not_count_towards_the_iou_of_a_batch():
    label = np.array([0, 0, 1, 1, 0.5, 0.5], np.float32).reshape(1, 1, 6, 1)
    found = np.array([0.1, 0.9, 0.1, 0.9, 0.1, 0.1], np.float32).reshape(1, 1, 6, 1)
    assert float(callbacks.membrane_iou(label, found)[0]) == pytest.approx(1 / 3)
