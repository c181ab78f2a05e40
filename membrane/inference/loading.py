"""Loads saved networks, and refuses what is none that can predict."""

import json
import zipfile
from pathlib import Path

import keras
import numpy as np

from membrane.errors import UserError, first_line
from membrane.inference.receptive_field import stride_and_radius

MAX_MODEL_BYTES = 2**30  # unpacked; beyond is no network that this program can use


def load_network(path: Path) -> keras.Model:
    """Loads a .keras file, for prediction only; one for images of one size is made one for any.

    Raises:
        UserError: the file is missing, damaged, too large, or not a functional network from one
            channel to P(interior).
    """
    if path.suffix.lower() in (".h5", ".hdf5"):
        raise UserError(
            f"{path}: a model in the format of Keras 2; open it there, or by tf_keras, and save it "
            "as FILE.keras"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such model; name a run's folder or a .keras file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > MAX_MODEL_BYTES:
                raise UserError(
                    f"{path}: {size:,} bytes when unpacked, over {MAX_MODEL_BYTES:,}; is it a "
                    "model?"
                )
            version = json.loads(archive.read("metadata.json"))["keras_version"]
    except UserError:
        raise
    except Exception:  # zipfile, zlib, json: anything
        raise UserError(
            f"{path}: no .keras file, or one that was cut short; get it again"
        ) from None
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # h5py, Keras: anything
        saved = f"saved by Keras {version}, " * (version != keras.__version__)
        raise UserError(
            f"{path}: {saved}cannot be loaded by Keras {keras.__version__}, which takes layers of "
            f"its own only ({first_line(error)})"
        ) from None
    model = _check_network(model, path)
    if not all(np.isfinite(weights).all() for weights in model.get_weights()):
        raise UserError(f"{path}: some of its weights are no numbers; train it again")
    try:
        stride_and_radius(model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return model


def check_untrained(model: keras.Model, where: str) -> keras.Model:
    """Returns a network that can be loaded again and predict, once it is trained.

    Raises:
        UserError: it has a layer that cannot be loaded from a file, or `load_network` would refuse
            what it gives.
    """
    registered = keras.saving.get_custom_objects()  # predict.py does not know them
    kept = dict(registered)
    registered.clear()
    try:
        keras.models.model_from_json(model.to_json())
    except Exception as error:  # Keras: anything
        raise UserError(
            f"{where}: the network could not be loaded again once it is trained; build it from "
            f"Keras' own layers, without Lambda ({first_line(error)})"
        ) from None
    finally:
        registered.update(kept)
    return _check_network(model, where)


def _check_network(model: keras.Model, where: str | Path) -> keras.Model:
    """Returns a network from one channel to P(interior), for images of any size.

    Raises:
        UserError: it is another.
    """
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        raise UserError(f"{where}: a {type(model).__name__}; expected a functional Keras model")
    model = _with_any_size(model, where)
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (model.inputs, model.outputs)]
    if shapes != [[(None, None, None, 1)]] * 2:
        raise UserError(
            f"{where}: its input and output are {shapes[0]} and {shapes[1]}; expected one image, "
            "(None, None, None, 1), and P(interior) of the same shape"
        )
    output = model.outputs[0]._keras_history.operation
    if getattr(output, "activation", None) is not keras.activations.sigmoid:
        raise UserError(f"{where}: its last layer has no sigmoid, so it gives no P(interior)")
    return model


def _with_any_size(model: keras.Model, where: str | Path) -> keras.Model:
    """Returns a model for images of one size as one for images of any, another as it is."""
    sizes = [tensor.shape[1:-1] for tensor in model.inputs + model.outputs]
    if len(sizes) != 2 or sizes[0] != sizes[1] or len(sizes[0]) != 2 or sizes[0] == (None, None):
        return model
    try:
        image = keras.Input((None, None, model.inputs[0].shape[-1]), name=model.inputs[0].name)
        free = keras.models.clone_model(model, input_tensors=image)
        free.set_weights(model.get_weights())
        return free
    except Exception as error:  # layers that need to know the size: anything
        raise UserError(
            f"{where}: for images of {sizes[0][0]}x{sizes[0][1]} px only ({first_line(error)}); "
            "build it with keras.Input((None, None, 1))"
        ) from None
