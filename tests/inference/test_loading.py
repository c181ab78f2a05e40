"""Models from elsewhere: those that are taken, and those that cannot be trusted."""

import io
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import PRETRAINED, check_refusal, run, run_predict
from keras import layers

import export
from membrane.errors import UserError
from membrane.inference import loading


def model_of(*stack, channels=1):
    x = image = keras.Input((None, None, channels))
    for layer in stack:
        x = layer(x)
    return keras.Model(image, x)


def sigmoid():
    return layers.Conv2D(1, 3, padding="same", activation="sigmoid")


def with_nan():
    model = model_of(sigmoid())
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    return model


def two_inputs():
    images = [keras.Input((None, None, 1)) for _ in range(2)]
    return keras.Model(images, sigmoid()(layers.Add()(images)))


def repack(change):
    """Returns the shipped model with a change to its members, by name."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(PRETRAINED / "model.keras") as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in change(members).items():
                new.writestr(name, content)
        return file.getvalue()


def by_newer(members):
    version = members["metadata.json"].replace(b'"keras_version": "', b'"keras_version": "9')
    config = members["config.json"].replace(b'"Conv2D"', b'"Conv4D"')
    return members | {"metadata.json": version, "config.json": config}


def climbing(members):
    return members | {"../../climbed.txt": b"x"}


MODELS = {
    "cut short": (lambda: repack(dict)[:200_000], "cut short"),
    "text": (lambda: b"hello", "no .keras file"),
    "nothing": (lambda: b"", "no .keras file"),
    "another zip": (lambda: repack(lambda members: {"a.txt": b"x"}), "no .keras file"),
    "a bomb": (lambda: repack(lambda m: m | {"b": bytes(2 * 10**7)}), "when unpacked, over"),
    "of a newer Keras": (lambda: repack(by_newer), "saved by Keras 93."),
    "a bomb of words": (
        lambda: repack(lambda m: m | {"metadata.json": b" " * 2 * 10**7}),
        "when unpacked, over",
    ),
    "damaged": (lambda: repack(dict)[:3000] + bytes(50) + repack(dict)[3050:], "cannot be loaded"),
    "a sequence": (
        lambda: keras.Sequential([keras.Input((None, None, 1)), sigmoid()]),
        "functional",
    ),
    "of unknown shape": (lambda: keras.Sequential([sigmoid()]), "functional"),
    "code": (lambda: model_of(layers.Lambda(lambda x: x), sigmoid()), "Lambda"),
    "two inputs": (two_inputs, "expected one image"),
    "colour": (lambda: model_of(sigmoid(), channels=3), "expected one"),
    "of vectors": (
        lambda: keras.Model(*(lambda x: (x, layers.Dense(1)(x)))(keras.Input((5,)))),
        "expected one",
    ),
    "shrinking": (
        lambda: model_of(layers.Conv2D(1, 3, activation="sigmoid")),
        "not the size of its input",
    ),
    "no sigmoid": (lambda: model_of(layers.Conv2D(1, 3, padding="same")), "no sigmoid"),
    "no numbers": (with_nan, "no numbers"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:Keras:UserWarning")
def test_a_model_that_cannot_be_trusted_is_refused(
    trained, one_slice, tmp_path, monkeypatch, capsys, kind
):
    monkeypatch.setattr(loading, "MAX_MODEL_BYTES", 10**7)
    make, words = MODELS[kind]
    shutil.copytree(trained / "small", tmp_path / "run")
    made, path = make(), tmp_path / "run/model.keras"
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        made.save(path)
    assert run_predict(one_slice, "--model", tmp_path / "run", "--output", tmp_path / "masks") == 2
    check_refusal(capsys, words, str(path))
    assert run(export, tmp_path / "run", "--output", tmp_path / "run.zip") == 2
    check_refusal(capsys, words, str(path))
    assert {path.name for path in tmp_path.iterdir()} == {"slices", "run"}


@pytest.mark.filterwarnings("ignore:Skipping invalid path")
def test_a_model_writes_nowhere(one_slice, tmp_path):
    shutil.copytree(PRETRAINED, tmp_path / "a/b/run")
    (tmp_path / "a/b/run/model.keras").write_bytes(repack(climbing))
    flags = ["--model", tmp_path / "a/b/run", "--output", tmp_path / "masks"]
    assert run_predict(one_slice, *flags) == 0  # Keras leaves the climber out and says so
    assert not list(tmp_path.rglob("climbed*")) and not Path("/climbed.txt").exists()


def test_a_network_saved_for_one_size_is_loaded_for_all(tmp_path):
    x = image = keras.Input((64, 64, 1))
    x = layers.MaxPooling2D(2)(layers.Conv2D(4, 3, padding="same", activation="relu")(x))
    x = layers.Concatenate()([image, layers.UpSampling2D(2)(x)])
    fixed = keras.Model(image, layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x))
    fixed.save(tmp_path / "fixed.keras")
    free = loading.load_network(tmp_path / "fixed.keras")
    assert free.input_shape == free.output_shape == (None, None, None, 1)
    images = np.random.default_rng(0).random((2, 64, 64, 1), np.float32)
    np.testing.assert_array_equal(free(images), fixed(images))
    assert free(images[:, :20, :34]).shape == (2, 20, 34, 1)


def test_a_network_that_needs_its_size_is_refused(tmp_path):
    x = image = keras.Input((8, 8, 1))
    x = layers.Dense(64, activation="sigmoid")(layers.Flatten()(x))
    keras.Model(image, layers.Reshape((8, 8, 1))(x)).save(tmp_path / "dense.keras")
    with pytest.raises(UserError, match=r"dense\.keras: "):
        loading.load_network(tmp_path / "dense.keras")
