"""Writes a trained network in the form that other programs take.

python export.py                     a BioImage.IO package of the run that predict.py would use
python export.py RUN --output FILE.zip
python export.py RUN --format onnx   one file for ONNX Runtime; also tf, openvino, litert

All take normalised slices and give P(interior), without averaged flips and without a threshold.
BioImage.IO, ONNX and OpenVINO need pip install -r requirements/export.txt.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

import doors

PACKAGE = "bioimageio"
FORMATS = {  # the end of the default name, what must be installed, what model.export calls it
    PACKAGE: (".zip", ("bioimageio.core", "tf2onnx", "onnxruntime"), None),
    "tf": ("-tf", (), "tf_saved_model"),
    "onnx": (".onnx", ("tf2onnx", "onnxruntime"), "onnx"),
    "openvino": (".xml", ("openvino",), "openvino"),
    "litert": (".tflite", (), "litert"),
}
LITERT_SIDE = 512  # px: LiteRT dilates only convolutions of one size
TRIES = 5  # tf2onnx, at random, leaves out the last operation of about one network in fifty


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="export.py", description=__doc__)
    add = parser.add_argument
    add("run", nargs="?", type=doors.text, metavar="RUN", help="as for predict.py --model")
    add(
        "--output",
        type=doors.path,
        metavar="FILE",
        help="default: outputs/RUN with the end of its format",
    )
    format_help = (
        f"default: %(default)s; litert takes one size, {LITERT_SIDE}x{LITERT_SIDE} px, the others "
        "any that the network's stride divides; openvino also writes a .bin"
    )
    add("--format", choices=FORMATS, default=PACKAGE, help=format_help)
    author_help = "of the network, for a package; default: %(default)s"
    add("--author", type=doors.text, default="Membrane U-Net", metavar="NAME", help=author_help)
    license_help = (
        "of the weights, as SPDX names it, for a package; default: %(default)s, which ISBI-2012 "
        "and the models that ship ask for"
    )
    add("--license", type=doors.text, default="CC-BY-NC-4.0", metavar="ID", help=license_help)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(export, parse_args(argv), "export.py")


def export(args: argparse.Namespace) -> int:
    """Finds the run, writes it beside its place, and moves it there when it is whole."""
    from slices import UserError

    suffix, needed, _ = FORMATS[args.format]
    for name in needed:
        with contextlib.suppress(ModuleNotFoundError):  # of the part before the dot
            if importlib.util.find_spec(name):
                continue
        raise UserError(f"{name} is not installed; pip install -r requirements/export.txt")
    doors.import_tensorflow_quietly()
    import runs
    from inference import load_network

    path, record, model = runs.open_run(args.run)
    if record and "threshold" not in record:
        raise UserError(f"{path}: has no model yet; python train.py --resume {path}")
    if record.get("synthetic"):
        print(f"Note: {runs.SYNTHETIC}")
    name = path.resolve().name if path.is_dir() else path.stem
    network = load_network(model)
    output = args.output or runs.OUTPUTS / f"{name}{suffix}"
    if suffix.startswith(".") and output.suffix != suffix:
        raise UserError(f"{output}: must end in {suffix}; name another --output")
    targets = [output, output.with_suffix(".bin")] if args.format == "openvino" else [output]
    for taken in targets:
        if taken.exists():
            raise UserError(f"{taken}: exists, and nothing is overwritten; name another --output")
    print(f"Model: {runs.shown(path)}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=output.parent) as scratch:
            made = Path(scratch, output.name)
            with doors.quiet():
                if args.format == PACKAGE:
                    _write_package(args, made, model, network, record, name)
                else:
                    _write(network, args.format, made)
            for file in sorted(Path(scratch).iterdir()):  # of OpenVINO's two files the .xml last
                os.rename(file, output.parent / file.name)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
    tested = ", tested by bioimageio.core" if args.format == PACKAGE else ""
    print(f"{runs.shown(output)}: {args.format}{tested}")
    return 0


def _write_package(args, path: Path, model: Path, network, record: dict, name: str) -> None:
    """Writes a BioImage.IO package."""
    import bioimage

    card = model.with_name("MODEL_CARD.md")
    with tempfile.TemporaryDirectory() as scratch:
        weights = {"keras_v3": model, "onnx": Path(scratch, "model.onnx")}
        _write(network, "onnx", weights["onnx"])
        bioimage.write_package(
            path,
            weights,
            network,
            record,
            name="Membrane U-Net " + re.sub(r"[^\w+ ()-]", "-", name, flags=re.ASCII),
            author=args.author,
            licence=args.license,
            card=card.read_text(encoding="utf-8") if card.exists() else "",
        )


def _write(network, name: str, path: Path) -> None:
    """Writes a network by Keras' own export."""
    import tensorflow as tf

    from slices import UserError, first_line

    shape = (1, LITERT_SIDE, LITERT_SIDE, 1) if name == "litert" else (None, None, None, 1)
    taken = [tf.TensorSpec(shape, tf.float32, name="image")]
    for _ in range(TRIES):
        try:
            network.export(str(path), format=FORMATS[name][2], input_signature=taken, verbose=False)
        except Exception as error:  # TensorFlow, tf2onnx, OpenVINO: anything
            raise UserError(f"{path.name}: Keras cannot write it ({first_line(error)})") from None
        if name != "onnx" or _is_right(network, path):
            return
    raise UserError(f"{path.name}: does not give what the network gives; try another --format")


def _is_right(network, path: Path) -> bool:
    """Tells whether an ONNX file gives what the network gives."""
    import numpy as np
    import onnxruntime

    from unet import stride_and_radius

    stride, _ = stride_and_radius(network)
    image = np.random.default_rng(0).random((1, 8 * stride, 12 * stride, 1), np.float32)
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"image": image})
    except Exception:  # ONNX Runtime: anything
        return False
    return found.shape == image.shape and bool(np.abs(found - network(image)).max() < 1e-4)


if __name__ == "__main__":
    sys.exit(main())
