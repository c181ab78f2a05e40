"""What happens beside Keras' `fit`: a metric, validation, one checkpoint per epoch.

Keras' own callbacks serve where they can. `BackupAndRestore` writes weights and epoch in two
files and `CSVLogger` appends, so that a training killed between them could not go on as if it had
not been.
"""

import csv
import json
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from membrane import metrics
from membrane.errors import UserError
from membrane.inference.neighbours import precompute_segmentations
from membrane.inference.predictor import Predictor
from membrane.io.writers import HeldError, atomic_write
from membrane.training.augmentation import UNKNOWN

CHECKPOINT = "checkpoint.npz"  # in the folder of an unfinished run
COLUMNS = ("epoch", "loss", "membrane_iou", "learning_rate", "seconds")
THRESHOLDS = metrics.THRESHOLDS[::2]  # that a validation tries
VALIDATION_COLUMNS = ("val_loss", "val_membrane_iou", "val_v_rand", "val_v_info")


def membrane_iou(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    """Returns the IoU of the membrane pixels of each tile, P(interior) up to 0.5; a metric.

    Pixels without a label, `augmentation.UNKNOWN`, do not count.

    Keras' BinaryIoU scatters into a confusion matrix, which took 6 % of a training.
    """
    label, found = y_true < UNKNOWN, (y_pred <= 0.5) & (y_true != UNKNOWN)
    both, either = (
        tf.math.count_nonzero(pixels, axis=(1, 2, 3), dtype=tf.float32)
        for pixels in (label & found, label | found)
    )
    return tf.math.divide_no_nan(both, either)


class Validation(keras.callbacks.Callback):
    """Scores the held-out slices, `data.Pairs` that may be empty, ten times in a training.

    The network is the one in training.
    """

    def __init__(self, network: keras.Model, held_out):
        super().__init__()
        self.predict, self.held_out = Predictor(network), held_out

    def on_epoch_end(self, epoch, logs=None):
        epochs, every = self.params["epochs"], max(1, self.params["epochs"] // 10)
        if not self.held_out.names or ((epoch + 1) % every and epoch + 1 < epochs):
            return
        self.predict.refresh()
        scores = validate(self.predict, self.held_out, self.model.loss)
        logs |= {f"val_{name}": score for name, score in scores.items()}
        print(
            f"\nEpoch {epoch + 1}, validation: "
            f"V_rand {scores['v_rand']:.4f}, V_info {scores['v_info']:.4f} (the best of "
            f"{len(THRESHOLDS)} thresholds), "
            f"membrane IoU {scores['membrane_iou']:.3f}",
            flush=True,
        )


class Checkpoint(keras.callbacks.Callback):
    """Writes weights, optimizer and history as one file, and the history as CSV, every epoch.

    The history grows by a row, `COLUMNS` and `VALIDATION_COLUMNS`, per epoch.
    """

    def __init__(self, folder: Path, history: list[dict]):
        super().__init__()
        self.folder, self.history = folder, history

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            raise UserError(
                f"the loss is no longer a number in epoch {epoch + 1}; train again with a lower "
                f"--learning-rate, a tenth to begin with ({self.folder} keeps the epochs before)"
            )
        row = dict.fromkeys(COLUMNS + VALIDATION_COLUMNS)
        row |= {name: float(logs[name]) for name in row if name in logs}
        row["epoch"] = epoch + 1
        row["learning_rate"] = float(self.model.optimizer.learning_rate)
        row["seconds"] = round(time.monotonic() - self.began, 2)
        self.history.append(row)
        save_checkpoint(self.folder / CHECKPOINT, self.model, self.history)
        write_history(self.folder / "history.csv", self.history)


def validate(predict: Predictor, held_out, loss="binary_crossentropy") -> dict:
    """Scores whole slices.

    Args:
        predict: the network.
        held_out: `data.Pairs`.
        loss: as `compile` takes it.

    Returns:
        loss, membrane_iou at 0.5, and v_rand and v_info, each at its own best of `THRESHOLDS`.
    """
    maps = [predict(image) for image in held_out.images]
    loss, losses, pixels = keras.losses.get(loss), [], []
    where = held_out.known or [None] * len(maps)
    for label, known, one in zip(held_out.labels, where, maps, strict=True):
        values = np.ravel(loss(label[None, ..., None].astype(np.float32), one[None, ..., None]))
        known = np.ones(label.shape, bool) if known is None else known
        # a number, or one per pixel
        losses.append(values[known.ravel()] if values.size == known.size else values)
        pixels.append((label[known], one[known] > 0.5))
    truth, found = map(np.concatenate, zip(*pixels, strict=True))
    segmentations, known = precompute_segmentations(maps), held_out.known
    oracle = metrics.calibrate(held_out.labels, segmentations, THRESHOLDS, known)["oracle"]
    return {
        "loss": float(np.mean(np.concatenate(losses))),
        "membrane_iou": metrics.score_membrane(truth, found)["membrane_iou"],
        "v_rand": oracle["v_rand"],
        "v_info": oracle["v_info"],
    }


def save_checkpoint(path: Path, model: keras.Model, history: list[dict]) -> None:
    """Writes weights, optimizer state and history as one file, whole or not at all."""
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez(file, *[one.numpy() for one in _state(model)], history=json.dumps(history))


def restore_checkpoint(folder: Path, model: keras.Model) -> list[dict]:
    """Restores a compiled model from what `Checkpoint` wrote; returns the history.

    It has a row per finished epoch, none in a new folder.

    Raises:
        UserError: the file is damaged, of another network, or gone.
    """
    path, state = folder / CHECKPOINT, _state(model)
    if not path.exists():
        if (folder / "history.csv").exists():
            raise UserError(
                f"{folder}: {CHECKPOINT} is gone, so it cannot go on; start a new training"
            )
        return []
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = [file[f"arr_{number}"] for number in range(len(state))]
            history = json.loads(str(file["history"]))
        for variable, array in zip(state, arrays, strict=True):
            variable.assign(array)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path}: damaged or of another network; start a new training") from None
    write_history(folder / "history.csv", history)
    return history


def write_history(path: Path, history: list[dict]) -> None:
    """Writes a row per epoch as CSV, whole or not at all.

    While another program holds the file, as on Windows, it is left; the checkpoint has all rows.
    """
    try:
        with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS + VALIDATION_COLUMNS)
            writer.writeheader()
            writer.writerows(history)
    except HeldError as error:
        print(f"Note: {error}; the next epoch tries again")


def _state(model: keras.Model) -> list:
    """Returns the variables of model and optimizer, which is built here if it has not been."""
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
