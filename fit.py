"""The training loop: Keras' `fit` on tiles cut on the device, one checkpoint per epoch.

A checkpoint is one file with weights, optimizer state and history, replaced in one move; the tiles
of an epoch depend on the seed and its number alone. So a training that was killed at any moment
goes on as if it had not been, and on a CPU ends with the same weights.
"""

import csv
import json
import math
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import metrics
from data import Pairs
from files import whole_file
from inference import Predictor
from masks import make_masker
from muon import Muon
from quick import quicken
from slices import UserError
from tiles import TileSampler

CHECKPOINT = "checkpoint.npz"  # in the folder of an unfinished run
COLUMNS = ("epoch", "loss", "membrane_iou", "learning_rate", "seconds")
VALIDATION_COLUMNS = ("val_loss", "val_membrane_iou", "val_v_rand", "val_v_info")
VALIDATIONS = 10  # per training


class MembraneIoU(keras.metrics.Metric):
    """IoU of the membrane pixels, P(interior) up to 0.5.

    Keras' BinaryIoU scatters into a confusion matrix, which took 6 % of a training.
    """

    def __init__(self, name: str):
        super().__init__(name=name)
        self.both = self.add_variable((), "zeros", name="both")
        self.either = self.add_variable((), "zeros", name="either")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts the membrane pixels of label and prediction: in both, and in either."""
        label, found = y_true < 0.5, y_pred <= 0.5
        self.both.assign_add(tf.math.count_nonzero(label & found, dtype=tf.float32))
        self.either.assign_add(tf.math.count_nonzero(label | found, dtype=tf.float32))

    def result(self):
        """Returns the IoU since the last reset, 0 where there is no membrane."""
        return tf.math.divide_no_nan(self.both, self.either)


class TileTraining(keras.Model):
    """A network whose training step gets the numbers of tiles, and cuts them on the device."""

    def __init__(self, network: keras.Model, sampler: TileSampler):
        super().__init__()
        self.network = network
        self.derive, self.compute = quicken(network)
        self.sampler = sampler

    def call(self, images, training=None):
        """Returns the network's P(interior)."""
        return self.compute(images, self.derive())

    def train_step(self, numbers):
        """Takes one step on the tiles of these numbers."""
        return super().train_step(self.sampler(numbers))


def fit(
    network: keras.Model,
    sampler: TileSampler,
    held_out: Pairs,
    folder: Path,
    *,
    epochs: int,
    tiles_per_epoch: int,
    batch_size: int,
    learning_rate: float,
) -> list[dict]:
    """Trains `network` in place, going on from the folder's checkpoint if there is one.

    Muon on binary cross-entropy; the learning rate rises over the first epoch and falls along a
    cosine to 1 %.

    Args:
        network: from (batch, height, width, 1) to P(interior).
        sampler: gives the tiles.
        held_out: the validation slices, scored ten times in a training; there may be none.
        folder: gets checkpoint.npz and history.csv after every epoch.
        epochs: in all, finished ones included.
        tiles_per_epoch: a multiple of batch_size.
        batch_size: tiles per step.
        learning_rate: at its peak.

    Returns:
        A row per finished epoch: `COLUMNS` and `VALIDATION_COLUMNS`, None where not validated.
        Fewer rows than `epochs` after Ctrl-C; the network is then as the last of them left it.

    Raises:
        UserError: the loss is no longer a number, or the checkpoint is damaged.
    """
    steps = tiles_per_epoch // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, (epochs - 1) * steps),
        alpha=0.01,
        warmup_target=learning_rate,
        warmup_steps=steps,
    )
    model = TileTraining(network, sampler)
    model.compile(
        optimizer=Muon(schedule),
        loss="binary_crossentropy",
        metrics=[MembraneIoU(name="membrane_iou")],
    )
    model.optimizer.build(network.trainable_variables)
    history = load_checkpoint(folder / CHECKPOINT, model)
    if not history and (folder / "history.csv").exists():
        raise UserError(f"{folder}: {CHECKPOINT} is gone, so it cannot go on; start a new training")
    if history:
        write_history(folder / "history.csv", history)
    if len(history) == epochs:
        return history
    numbers = tf.data.Dataset.range(len(history) * tiles_per_epoch, epochs * tiles_per_epoch)
    try:
        model.fit(
            numbers.batch(batch_size, drop_remainder=True),
            initial_epoch=len(history),
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=1 if sys.stdout.isatty() else 2,
            callbacks=[_Bookkeeping(history, held_out, folder, epochs)],
        )
    except KeyboardInterrupt:
        history = load_checkpoint(folder / CHECKPOINT, model)
    return history


class _Bookkeeping(keras.callbacks.Callback):
    """Validates at intervals; after every epoch writes checkpoint and history."""

    def __init__(self, history, held_out, folder, epochs):
        super().__init__()
        self.history, self.held_out, self.folder, self.epochs = history, held_out, folder, epochs
        self.every = max(1, epochs // VALIDATIONS)

    def on_train_begin(self, logs=None):
        self.predict = Predictor(self.model.network)

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = dict.fromkeys(COLUMNS + VALIDATION_COLUMNS)
        row["epoch"] = epoch + 1
        row |= {key: float(logs[key]) for key in ("loss", "membrane_iou")}
        rate = self.model.optimizer.learning_rate
        row["learning_rate"] = float(keras.ops.convert_to_numpy(rate))
        row["seconds"] = round(time.monotonic() - self.began, 2)
        finite = all(np.isfinite(weights).all() for weights in self.model.get_weights())
        if not (math.isfinite(row["loss"]) and finite):
            raise UserError(
                f"the loss is no longer a number in epoch {epoch + 1}; train again with a lower "
                f"--learning-rate, a tenth to begin with ({self.folder} keeps the epochs before)"
            )
        due = (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs
        if due and self.held_out.names:
            self.predict.refresh()
            row |= validate(self.predict, self.held_out)
            print(
                f"\nEpoch {epoch + 1}, validation: "
                f"V_rand {row['val_v_rand']:.4f}, V_info {row['val_v_info']:.4f} (best threshold), "
                f"membrane IoU {row['val_membrane_iou']:.3f}",
                flush=True,
            )
        self.history.append(row)
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.history)
        write_history(self.folder / "history.csv", self.history)


def validate(predict: Predictor, held_out: Pairs) -> dict[str, float]:
    """Scores whole slices, without averaging flips; V_rand and V_info at their best threshold."""
    probabilities = [predict(image) for image in held_out.images]
    truth = np.concatenate([label.ravel() for label in held_out.labels])
    found = np.clip(np.concatenate([p.ravel() for p in probabilities]), 1e-7, 1 - 1e-7)
    maskers = [make_masker(probability) for probability in probabilities]
    best = metrics.calibrate(held_out.labels, maskers, metrics.THRESHOLDS[::2])["best"]
    return {
        "val_loss": float(-np.log(np.where(truth, found, 1 - found)).mean()),
        "val_membrane_iou": metrics.score_membrane(truth, found > 0.5)["membrane_iou"],
        "val_v_rand": best["v_rand"],
        "val_v_info": best["v_info"],
    }


def save_checkpoint(path: Path, model: keras.Model, history: list[dict]) -> None:
    """Writes weights, optimizer state and history as one file, whole or not at all."""
    arrays = [variable.numpy() for variable in _state(model)]
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, *arrays, history=json.dumps(history))


def load_checkpoint(path: Path, model: keras.Model) -> list[dict]:
    """Restores what `save_checkpoint` wrote and returns the history, empty without a file.

    Raises:
        UserError: the file is damaged or of another network.
    """
    if not path.exists():
        return []
    state = _state(model)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[f"arr_{number}"] for number in range(len(state))]
            history = json.loads(str(file["history"]))
        for variable, array in zip(state, arrays, strict=True):
            variable.assign(array)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: damaged or of another network; start a new training") from None
    return history


def write_history(path: Path, history: list[dict]) -> None:
    """Writes a row per epoch as CSV, whole or not at all."""
    with whole_file(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS + VALIDATION_COLUMNS)
        writer.writeheader()
        writer.writerows(history)


def _state(model: keras.Model) -> list:
    return [*model.network.variables, *model.optimizer.variables]
