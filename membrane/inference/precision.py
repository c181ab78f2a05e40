"""The precision that a network computes in."""

from pathlib import Path

import keras
import tensorflow as tf


def with_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """Returns a copy of a functional model, same weights, that computes in `dtype`.

    It is "float32", "float64" or "mixed_bfloat16"; with the last one, variables and the output
    layer stay float32.
    """
    output = model.outputs[0]._keras_history.operation.name

    def convert(layer):
        config = layer.get_config()
        if "dtype" in config:
            mixed_output = layer.name == output and dtype.startswith("mixed")
            config["dtype"] = "float32" if mixed_output else dtype
        return layer.__class__.from_config(config)

    copy = clone(model, clone_function=convert)
    copy.set_weights(model.get_weights())
    return copy


def clone(model: keras.Model, **options) -> keras.Model:
    """Returns what `keras.models.clone_model` does of a functional model that may be compiled.

    Keras would clone that with its optimizer, and know neither Muon nor our metric.
    """
    uncompiled = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.models.clone_model(uncompiled, **options)


def choose_precision() -> tuple[str, str]:
    """Chooses the precision by what the device computes natively.

    Returns:
        dtype: "mixed_bfloat16" or "float32", for `with_dtype`.
        description: one line for people, saying what was chosen and why.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        native = details.get("compute_capability", (0, 0)) >= (8, 0)
        name = f"GPU {details.get('device_name', gpus[0].name)}"
    else:
        info, name = Path("/proc/cpuinfo"), "CPU"  # Linux alone tells what a processor can do
        features = info.read_text(encoding="utf-8").split() if info.exists() else []
        native = "amx_bf16" in features or "avx512_bf16" in features
    if native:
        return "mixed_bfloat16", f"{name}, bfloat16, which it computes natively"
    return "float32", f"{name}, float32; no native bfloat16"
