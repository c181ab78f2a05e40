"""A run as a BioImage.IO model package, which other programs of the field can open and run.

Format: version 0.5 of https://github.com/bioimage-io/spec-bioimage-io. `export.py` calls this.
"""

import json
import re
import shutil
import tempfile
import textwrap
from pathlib import Path

import keras
import numpy as np
import onnx
import tensorflow as tf
from bioimageio.core import test_model
from bioimageio.spec import save_bioimageio_package
from bioimageio.spec.model.v0_5 import ModelDescr
from PIL import Image

from membrane.errors import UserError
from membrane.exports.formats import write_format
from membrane.inference.receptive_field import stride_and_halo
from membrane.io.normalization import DEVIATION, LIMITS, MEAN, to_bytes
from membrane.io.writers import write_json
from membrane.runs import SYNTHETIC_NOTE
from membrane.synthetic import make_slice

SIDE = 256  # px, of the synthetic slice that tests the package and is its cover
UNET = {"10.1007/978-3-319-24574-4_28": "O. Ronneberger et al. 2015, U-Net"}
ISBI = {  # of whose slices the weights were made, alone or after those that ship
    "10.1371/journal.pbio.1000502": "A. Cardona et al. 2010, the slices of ISBI-2012",
    "10.3389/fnana.2015.00142": "I. Arganda-Carreras et al. 2015, the challenge ISBI-2012",
}
TAGS = ["segmentation", "membrane", "neurons", "electron-microscopy", "unet", "2d"]


def write_package(
    path: Path, model: Path, network, record: dict, name: str, author: str, licence: str
) -> None:
    """Writes a network as a package that bioimageio.core has run from both weight formats.

    The model is a .keras file, and the network is what it holds, in float32. The record, a run.json
    or empty, comes along, and so does MODEL_CARD.md if it lies beside the model. The name is that
    of the run; the licence is that of the weights, as SPDX names it.

    Raises:
        UserError: the package would not be valid, or would not give what the network gives.
    """
    name = "Membrane U-Net " + re.sub(r"[^\w+ ()-]", "-", name, flags=re.ASCII)
    card = model.with_name("MODEL_CARD.md")
    card = card.read_text(encoding="utf-8") if card.exists() else f"# {name}\n"
    stride, halo = stride_and_halo(network)
    if halo is None:
        raise UserError(
            f"{model}: sees whole slices, of which a BioImage.IO package cannot say how to cut "
            "them; take another --format"
        )
    scaling = {"mean": MEAN, "deviation": DEVIATION} | record.get("scaling", {})
    drawn, _ = make_slice(SIDE, SIDE, seed=0)
    image = drawn.astype(np.float32)[None, ..., None]
    seen = (image - image.mean()) / image.std() * scaling["deviation"] + scaling["mean"]
    probability = np.asarray(network(np.clip(seen, *LIMITS)))
    shown = to_bytes(probability[0, ..., 0])
    parameters = f"{network.count_params():,} parameters"
    flags = record.get("flags", {})
    papers = UNET | (ISBI if flags.get("data") == "kaggle" or flags.get("init") else {})
    # the package names folders of this machine, but not where they are
    named = {key: Path(one).name if isinstance(one, str) else one for key, one in flags.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(model, folder / "model.keras")
        write_format(network, "onnx", folder / "model.onnx")
        for end, tensor, picture in (("input", image, drawn), ("output", probability, shown)):
            np.save(folder / f"test_{end}.npy", tensor)
            Image.fromarray(picture).save(folder / f"sample_{end}.png")
        Image.fromarray(np.hstack([drawn, shown])).save(folder / "cover.png")
        readme = _document(card, record, stride, halo)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        write_json(folder / "run.json", record | {"flags": named, "data_root": None})
        opsets = onnx.load(folder / "model.onnx").opset_import
        versions = {"keras_version": keras.__version__, "backend": ["tensorflow", tf.__version__]}
        opset = next(one.version for one in opsets if not one.domain)
        weights = {
            "keras_v3": {"source": "model.keras", **versions},
            "onnx": {"source": "model.onnx", "opset_version": opset, "parent": "keras_v3"},
        }
        description = {
            "type": "model",
            "format_version": ModelDescr.implemented_format_version,
            "name": name,
            "description": f"P(cell interior) in EM slices, from {parameters}",
            "authors": [{"name": author}],
            "license": licence,
            "cite": [{"text": text, "doi": doi} for doi, text in papers.items()],
            "tags": TAGS,
            "covers": [{"source": "cover.png"}],
            "documentation": {"source": "README.md"},
            "attachments": [{"source": "run.json"}],
            "weights": weights,
            **_describe_tensors(stride, halo, scaling, record.get("pixel_size")),
        }
        source = folder / "bioimageio.yaml"
        source.write_text(json.dumps(description), encoding="utf-8")  # JSON is YAML
        try:
            package = save_bioimageio_package(source, output_path=folder / "package.zip")
        except ValueError as error:
            reason = textwrap.shorten(str(error), 200, placeholder=" …")
            raise UserError(f"{path.name}: BioImage.IO refuses it: {reason}") from None
        for kind in weights:
            result = test_model(package, weight_format=kind)
            if result.status != "passed":
                reasons = "; ".join(error.msg for error in result.errors)
                raise UserError(f"{path.name}: its test fails, {kind}: {reasons}")
        shutil.move(package, path)


def _describe_tensors(stride: int, halo: int, scaling: dict, pixel_size: float | None) -> dict:
    """Returns what goes into the network, how its grey values are scaled, and what comes out."""
    unit = {"unit": "nanometer", "scale": pixel_size} if pixel_size else {}
    size = {"min": 2 * halo + stride, "step": stride}
    sizes = [{"tensor_id": "image", "axis_id": axis} for axis in "yx"]
    linear = {"gain": scaling["deviation"], "offset": scaling["mean"]}
    image = {
        "id": "image",
        "description": "a grey slice with dark membranes, of any bit depth and exposure",
        "data": {"type": "float32"},
        "preprocessing": [
            {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x", "channel"]}},
            {"id": "scale_linear", "kwargs": linear},
            {"id": "clip", "kwargs": {"min": LIMITS[0], "max": LIMITS[1]}},
        ],
        **_describe_files("input", "grey", [size, size], unit),
    }
    probability = {
        "id": "probability",
        "description": "P(cell interior); 0 = membrane",
        "data": {"type": "float32", "range": [0.0, 1.0]},
        **_describe_files("output", "interior", sizes, {"halo": halo, **unit}),
    }
    return {"inputs": [image], "outputs": [probability]}


def _describe_files(end: str, channel: str, sizes: list[dict], more: dict) -> dict:
    """Returns the axes of the network's input or output, and the files with examples of it."""
    sides = zip("yx", sizes, strict=True)
    spaces = [{"type": "space", "id": axis, "size": size, **more} for axis, size in sides]
    return {
        "axes": [{"type": "batch"}, *spaces, {"type": "channel", "channel_names": [channel]}],
        "test_tensor": {"source": f"test_{end}.npy"},
        "sample_tensor": {"source": f"sample_{end}.png"},
    }


def _document(card: str, record: dict, stride: int, halo: int) -> str:
    """Returns the package's README: the model card, how to use the network, how good it is."""
    used = (
        f"A slice may have any size; tiles that start on multiples of {stride} px and carry "
        f"{halo} px around them give what the whole slice gives. "
    )
    if record.get("synthetic"):
        used += f"**It was {SYNTHETIC_NOTE}.** "
    if "threshold" in record:
        used += (
            f"The run's threshold, {record['threshold']:g}, is not meant for single pixels: the "
            "program that made this package averages 8 flips and rotations and judges borders of "
            "cells as a whole. For P > T pixel by pixel take 0.8 to 0.95, and try it on slices of "
            "yours. "
        )
    cross_validation = record.get("cross_validation", {}).items()
    scores = {f"cross-validated, {title}": one for title, one in cross_validation}
    if "oracle" in (validation := record.get("validation", {})):
        quoted = validation.get("leave_one_out")
        if not quoted:
            how = "at its best"
        elif len(record["val_slices"]) > 1:
            how = "each at the threshold best for the others"
        else:
            how = "at a threshold that was not chosen on it"
        scores[f"of {', '.join(record['val_slices'])}, {how}"] = quoted or validation["oracle"]
    scored = "\n".join(
        f"- {what}: V_rand {one['v_rand']:.4f}, V_info {one['v_info']:.4f}"
        for what, one in scores.items()
    )
    return (
        f"{card}\n## In this package\n\n{used}`run.json` is the record of the training.\n\n"
        "## Validation\n\nScores as the ISBI-2012 challenge defines them, higher is better:\n\n"
        f"{scored or 'None is on record.'}\n\n"
        "Score masks of your own labelled slices with a program that gives V_rand and V_info, not "
        "pixel accuracy: one missing pixel of membrane joins two cells.\n"
    )
