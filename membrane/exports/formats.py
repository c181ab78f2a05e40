"""The formats that Keras itself exports: TensorFlow, ONNX, OpenVINO, LiteRT."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from membrane.errors import UserError, first_line


class Format(NamedTuple):
    """A format: the end of its default name, and what must be installed."""

    suffix: str
    needs: tuple[str, ...] = ()


PACKAGE = "bioimageio"
FORMATS = {
    PACKAGE: Format(".zip", ("bioimageio.core", "tf2onnx", "onnxruntime")),
    "tf": Format("-tf"),
    "onnx": Format(".onnx", ("tf2onnx", "onnxruntime")),
    "openvino": Format(".xml", ("openvino",)),
    "litert": Format(".tflite"),
}
LITERT_SIDE = 512  # px: LiteRT dilates only convolutions of one size
ATTEMPTS = 5  # tf2onnx, at random, leaves out the last operation of about one network in fifty
TOLERANCE = 1e-4  # of P(interior)


@contextlib.contextmanager
def moved_when_whole(output: Path, name: str) -> Iterator[Path]:
    """Gives a temporary path; what is written there is moved to `output` when the block succeeds.

    Raises:
        UserError: something is there already, or nothing can be written there.
    """
    for taken in [output, output.with_suffix(".bin")] if name == "openvino" else [output]:
        if taken.exists():
            raise UserError(f"{taken}: exists, and nothing is overwritten; name another --output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=output.parent) as scratch:
            yield Path(scratch, output.name)
            for file in sorted(Path(scratch).iterdir()):  # of OpenVINO's two files the .xml last
                os.rename(file, output.parent / file.name)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None


def write_format(network, name: str, path: Path) -> None:
    """Writes a network, float32, by Keras' own export in one of the `FORMATS`.

    The network takes one channel, with sides divisible by its stride, and gives P(interior).

    Raises:
        UserError: Keras cannot write it, or an ONNX file does not give what the network gives.
    """
    import tensorflow as tf

    shape = (1, LITERT_SIDE, LITERT_SIDE, 1) if name == "litert" else (None, None, None, 1)
    signature = [tf.TensorSpec(shape, tf.float32, name="image")]
    keras_name = "tf_saved_model" if name == "tf" else name
    for _ in range(ATTEMPTS):
        try:
            network.export(str(path), format=keras_name, input_signature=signature, verbose=False)
        except Exception as error:  # TensorFlow, tf2onnx, OpenVINO: anything
            raise UserError(f"{path.name}: Keras cannot write it ({first_line(error)})") from None
        if name != "onnx" or _gives_the_same(network, path):
            return
    raise UserError(f"{path.name}: does not give what the network gives; try another --format")


def _gives_the_same(network, path: Path) -> bool:
    """Tells whether an ONNX file gives what the network gives."""
    import numpy as np
    import onnxruntime

    from membrane.inference.receptive_field import stride_and_halo

    stride, _ = stride_and_halo(network)
    image = np.random.default_rng(0).random((1, 8 * stride, 12 * stride, 1), np.float32)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"image": image})
    except Exception:  # ONNX Runtime: anything
        return False
    return found.shape == image.shape and bool(np.abs(found - network(image)).max() < TOLERANCE)
