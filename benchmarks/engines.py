"""The engines that speed.py measures: this repository, and what people would use instead.

A process of its own calls `network`, `pipeline`, `training`, … with a precision, "float32" or
"bfloat16", and the folder that `write_inputs` has filled. Each returns the rounds to be timed: by
shape in px, their work in Mpixel or tiles, and a function that does it. A `load_` function returns
a function from a list of tiles, float32 (height, width), to their P(interior). Only there is an
engine's library imported, so that its memory counts for no other.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from result_tables import ROOT

sys.path.insert(0, str(ROOT))

from membrane import cli
from membrane.errors import UserError

MODEL = ROOT / "outputs" / "pretrained" / "model.keras"
SIDE = 512  # px, of a slice
SHAPES = ((512, 512), (384, 384), (256, 256), (256, 1024))  # px; each engine is shown at its best
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of P(interior), at most
BATCH, STEPS = 8, 24  # tiles of 256x256 px, and training steps in a round


def write_inputs(source: str, count: int, folder: Path) -> None:
    """Writes what the engines read.

    Args:
        source: of slices, as for train.py.
        count: how many of them; the first.
        folder: gets slices/*.png; slices.npy, float32 (count, 512, 512), normalised; reference.npy,
            P(interior) of the first; weights.npz; where PyTorch is installed, network.onnx.
    """
    cli.start_tensorflow()
    import data
    from membrane import runs
    from membrane.io.normalization import normalize
    from membrane.io.readers import read_named
    from membrane.io.writers import write_pages

    images = read_named(data.find_data_set(source, runs.OUTPUTS / runs.SYNTHETIC_SLICES).images)
    images = list(islice(images, count))
    if any(image.shape != (SIDE, SIDE) for _, image in images):
        raise UserError(f"{source}: expected grey slices of {SIDE}x{SIDE} px")
    for name, image in images:
        write_pages(folder / "slices" / f"{name}.png", [image])
    slices = np.stack([normalize(image) for _, image in images])
    np.save(folder / "slices.npy", slices)
    keras_network = load_keras("float32")
    np.save(folder / "reference.npy", keras_network(slices[:1, ..., None])[0, ..., 0])
    np.savez(folder / "weights.npz", **{w.path: w.numpy() for w in keras_network.weights})
    with contextlib.suppress(ModuleNotFoundError), cli.quiet():
        write_onnx(folder)


def load_keras(precision: str):
    """Returns the network of outputs/pretrained; precision "" is the one that predict.py takes."""
    cli.start_tensorflow()
    from membrane.inference.precision import choose_precision, load_network, with_dtype

    return with_dtype(load_network(MODEL), DTYPES.get(precision) or choose_precision()[0])


def network(load: Callable, precision: str, folder: Path) -> dict:
    """Prepares a network alone, loaded by a `load_` function.

    Raises:
        UserError: its P(interior) is not that of Keras in float32.
    """
    predict, slices = load(precision, folder), np.load(folder / "slices.npy")
    probability = np.asarray(predict([slices[0]])[0], np.float32).reshape(SIDE, SIDE)
    error = float(np.abs(probability - np.load(folder / "reference.npy")).max())
    if not error <= TOLERANCE[precision]:
        raise UserError(f"P(interior) differs by {error:.2g}")
    tiles = {shape: cut(slices, *shape) for shape in SHAPES}
    return {
        shape: (sum(tile.size for tile in some) / 1e6, partial(predict, some))
        for shape, some in tiles.items()
    }


def cut(slices: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Returns tiles; those wider than a slice are cut from slices side by side."""
    images = [np.hstack(group) for group in slices.reshape(-1, max(1, width // SIDE), SIDE, SIDE)]
    tops, lefts = range(0, SIDE - height + 1, height), range(0, SIDE - width + 1, width) or [0]
    return [
        np.ascontiguousarray(image[top : top + height, left : left + width])
        for image in images
        for top in tops
        for left in lefts
    ]


def load_ours(precision: str, folder: Path) -> Callable:
    """Returns this repository's predictor, several tiles at the same time."""
    keras_network, workers = load_keras(precision), cli.share_cores()
    from membrane.inference.predictor import Predictor

    predict, pool = Predictor(keras_network, workers=workers), ThreadPoolExecutor(workers)
    return lambda tiles: list(pool.map(predict, tiles))


def load_keras_predict(precision: str, folder: Path) -> Callable:
    """Returns `model.predict` on a stack of all tiles, as tutorials have it."""
    predict = load_keras(precision).predict
    return lambda tiles: predict(np.stack(tiles)[..., None], verbose=0)


def copied_unet(precision: str, folder: Path) -> dict:
    """Prepares the U-Net of 31 million parameters that most repositories copy, untrained."""
    cli.start_tensorflow()
    import keras
    from keras import layers

    def convolve(x, filters, size=3, times=2):
        for _ in range(times):
            x = layers.Conv2D(filters, size, padding="same", activation="relu")(x)
        return x

    keras.mixed_precision.set_global_policy(DTYPES[precision])
    x = image = keras.Input((None, None, 1))
    skips = []
    for filters in (64, 128, 256, 512):
        skips.append(convolve(x, filters))
        x = layers.MaxPooling2D()(skips[-1])
    x = convolve(x, 1024)
    for skip in reversed(skips):
        up = convolve(layers.UpSampling2D()(x), skip.shape[-1], size=2, times=1)
        x = convolve(layers.Concatenate()([skip, up]), skip.shape[-1])
    x = layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x)
    one_slice = np.load(folder / "slices.npy")[:1, ..., None]
    predict = partial(keras.Model(image, x).predict, one_slice, verbose=0)
    return {SHAPES[0]: (one_slice.size / 1e6, predict)}


def load_pytorch(
    precision: str, folder: Path, layout: str = "contiguous_format", compiled: bool = False
) -> Callable:
    """Returns the network in PyTorch, one tile at a time."""
    import torch

    dtype = getattr(torch, precision)
    module = build_pytorch(folder).eval().to(memory_format=getattr(torch, layout)).to(dtype)
    module = torch.compile(module) if compiled else module

    def predict(tiles):
        with torch.inference_mode():
            batches = [torch.from_numpy(tile)[None, None].to(dtype) for tile in tiles]
            return [module(batch).float().numpy() for batch in batches]

    return predict


def build_pytorch(folder: Path):
    """Returns the network as a PyTorch module with the same weights."""
    import torch
    from torch import nn
    from torch.nn.functional import interpolate, max_pool2d

    weights = np.load(folder / "weights.npz")
    dilations = {"bridge_conv1": 2, "bridge_conv2": 4}

    def convolution(name):
        kernel = torch.from_numpy(weights[f"{name}/kernel"]).permute(3, 2, 0, 1).contiguous()
        filters, channels, size, _ = kernel.shape
        dilation = dilations.get(name, 1)
        padding = dilation * (size // 2)
        layer = nn.Conv2d(channels, filters, size, padding=padding, dilation=dilation)
        layer.weight.data, layer.bias.data = kernel, torch.from_numpy(weights[f"{name}/bias"])
        return layer

    def twice(stage):
        first, second = (convolution(f"{stage}_conv{number}") for number in (1, 2))
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder1, self.encoder2 = twice("encoder1"), twice("encoder2")
            self.bottleneck = twice("bridge")
            self.decoder2, self.decoder1 = twice("decoder2"), twice("decoder1")
            self.last = convolution("probability")

        def forward(self, image):
            skip1 = self.encoder1(image)
            skip2 = self.encoder2(max_pool2d(skip1, 2))
            x = self.bottleneck(max_pool2d(skip2, 2))
            x = self.decoder2(torch.cat([skip2, interpolate(x, scale_factor=2)], 1))
            x = self.decoder1(torch.cat([skip1, interpolate(x, scale_factor=2)], 1))
            return torch.sigmoid(self.last(x).float())

    return UNet()


def write_onnx(folder: Path) -> None:
    """Writes the network as network.onnx, by PyTorch's exporter."""
    import torch

    torch.onnx.export(
        build_pytorch(folder).eval(),
        (torch.zeros(1, 1, SIDE, SIDE),),
        folder / "network.onnx",
        dynamo=False,
        input_names=["image"],
        dynamic_axes={"image": {2: "height", 3: "width"}},
    )


def find_onnx(folder: Path) -> Path:
    """Returns network.onnx."""
    if not (folder / "network.onnx").exists():
        raise ModuleNotFoundError("PyTorch writes the ONNX file", name="torch")
    return folder / "network.onnx"


def load_onnx_runtime(precision: str, folder: Path) -> Callable:
    """Returns the network in ONNX Runtime, float32, one tile at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(find_onnx(folder), providers=["CPUExecutionProvider"])
    return lambda tiles: [session.run(None, {"image": tile[None, None]})[0] for tile in tiles]


def load_openvino(precision: str, folder: Path) -> Callable:
    """Returns the network in OpenVINO, bfloat16, compiled per shape, several tiles in flight."""
    import openvino

    core, compiled = openvino.Core(), {}
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    for shape in SHAPES:
        model = core.read_model(find_onnx(folder))
        model.reshape([1, 1, *shape])
        compiled[shape] = core.compile_model(model, "CPU", options)

    def predict(tiles):
        maps, queue = {}, openvino.AsyncInferQueue(compiled[tiles[0].shape])
        queue.set_callback(
            lambda request, place: maps.update({place: request.get_output_tensor().data.copy()})
        )
        for place, tile in enumerate(tiles):
            queue.start_async([tile[None, None]], place)
        queue.wait_all()
        return [maps[place] for place in range(len(tiles))]

    return predict


def pipeline(precision: str, folder: Path, flags: list[str]) -> dict:
    """Prepares predict.py on a folder of slices, without its start and its contact sheet."""
    keras_network, workers = load_keras(precision), cli.share_cores()
    import predict
    from membrane.inference.predictor import Predictor

    predict.THUMBNAIL_PAGES = 0
    predictor = Predictor(keras_network, workers=workers)
    args = predict.parse_args([str(folder / "slices"), *flags])

    def run():
        with (
            tempfile.TemporaryDirectory() as args.output,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            predict.predict_slices(args, predictor, workers, record={}, metadata={}, device="")

    return {SHAPES[0]: (len(list(args.input.iterdir())) * SIDE**2 / 1e6, run)}


def naive_pipeline(precision: str, folder: Path) -> dict:
    """Prepares the same as tutorials have it: all slices in one `predict`, then P > 0.5."""
    predict, paths = load_keras("float32").predict, sorted((folder / "slices").iterdir())

    def run():
        with tempfile.TemporaryDirectory() as out:
            images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
            probability = predict(images[..., None].astype(np.float32), verbose=0)
            masks = (probability[..., 0] > 0.5) * np.uint8(255)
            for path, mask in zip(paths, masks, strict=True):
                Image.fromarray(mask).save(Path(out, path.name))

    return {SHAPES[0]: (len(paths) * SIDE**2 / 1e6, run)}


def make_tiles(folder: Path):
    """Returns endless batches of tiles as train.py makes them, a tf.data.Dataset."""
    cli.start_tensorflow()
    import data

    images = list(np.load(folder / "slices.npy"))
    labels = [image > np.median(image) for image in images]
    return data.tiles(data.Pairs([], images, labels), range(2**40), BATCH)


def tiles(precision: str, folder: Path) -> dict:
    """Prepares the tiles alone; their work is divided by the cores, all of which make them."""
    batches, cores = make_tiles(folder).take(2 * STEPS), len(os.sched_getaffinity(0))
    return {(256, 256): (2 * STEPS * BATCH / cores, lambda: list(batches))}


def training(precision: str, folder: Path, constant: bool = False) -> dict:
    """Prepares train.py's steps, if `constant` on one batch, whose tiles then cost nothing."""
    batches = make_tiles(folder)
    import tensorflow as tf

    from membrane.inference.fused_unet import fused_unet
    from membrane.training.callbacks import MembraneIoU
    from membrane.training.muon import Muon

    tf.config.experimental.enable_op_determinism()  # as train.py does
    batches = batches.take(1).cache().repeat() if constant else batches
    model = fused_unet(load_keras(precision))
    model.compile(optimizer=Muon(1e-4), loss="binary_crossentropy", metrics=[MembraneIoU()])
    model.make_train_function()

    def run():
        iterator = iter(batches)  # a new one: the last has made tiles during the others' turns
        for _ in range(STEPS):
            logs = model.train_function(iterator)
        float(logs["loss"])

    return {(256, 256): (STEPS * BATCH, run)}


def pytorch_training(precision: str, folder: Path) -> dict:
    """Prepares PyTorch's steps on one batch, in channels_last."""
    import torch

    module = build_pytorch(folder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)
    image = torch.rand(BATCH, 1, 256, 256)
    label = image.round()

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", getattr(torch, precision)):
                probability = module(image)
            torch.nn.functional.binary_cross_entropy(probability, label).backward()
            optimizer.step()

    return {(256, 256): (STEPS * BATCH, run)}
