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
from pathlib import Path

import numpy as np
from PIL import Image
from result_tables import ROOT

sys.path.insert(0, str(ROOT))

from membrane import cli
from membrane.errors import UserError

SIDE = 512  # px, of a slice
SHAPES = ((512, 512), (384, 384), (256, 256), (256, 1024))  # px; each engine is shown at its best
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of P(interior), at most
BATCH, STEPS = 8, 12  # tiles of 256x256 px, and training steps in a round
ONNX = "network.onnx"


def write_inputs(source: str, count: int, folder: Path) -> None:
    """Writes what the engines read.

    Args:
        source: of slices, as for train.py.
        count: how many of them; the first.
        folder: gets slices/*.png; slices.npy, float32 (count, 512, 512), normalised; reference.npy,
            P(interior) of the first; weights.npz; where PyTorch is installed, network.onnx.
    """
    network = load_keras("float32")
    from quality import load_slices

    from membrane.io.normalization import normalize
    from membrane.io.writers import write_pages

    slices = load_slices(source, count)
    if any(image.shape != (SIDE, SIDE) for _, image, _ in slices):
        raise UserError(f"{source}: expected grey slices of {SIDE}x{SIDE} px")
    for name, image, _ in slices:
        write_pages(folder / "slices" / f"{name}.png", [image])
    normalized = np.stack([normalize(image) for _, image, _ in slices])
    np.save(folder / "slices.npy", normalized)
    np.save(folder / "reference.npy", network(normalized[:1, ..., None])[0, ..., 0])
    np.savez(folder / "weights.npz", **{w.path: w.numpy() for w in network.weights})
    with contextlib.suppress(ModuleNotFoundError), cli.quiet():
        write_onnx(folder)


def load_keras(precision: str):
    """Returns the network of outputs/pretrained; precision "" is the one that predict.py takes."""
    cli.start_tensorflow()
    from membrane.inference.loading import load_network
    from membrane.inference.precision import choose_precision, with_dtype

    network = load_network(ROOT / "outputs" / "pretrained" / "model.keras")
    return with_dtype(network, DTYPES.get(precision) or choose_precision()[0])


def share_cores() -> int:
    """Prepares for as many tiles at once as it returns; without effect once a network is loaded."""
    cli.start_tensorflow()
    return cli.share_cores()


def network(load: Callable, precision: str, folder: Path) -> dict:
    """Prepares a network alone, loaded by a `load_` function.

    Raises:
        UserError: its P(interior) is not that of Keras in float32.
    """
    predict, slices = load(precision, folder), np.load(folder / "slices.npy")
    probability = np.asarray(predict([slices[0]])[0], np.float32).reshape(SIDE, SIDE)
    error = np.abs(probability - np.load(folder / "reference.npy")).max()
    if not error <= TOLERANCE[precision]:
        raise UserError(f"P(interior) differs by {error:.2g}")
    rounds = {}
    for height, width in SHAPES:
        wide = np.concatenate(np.split(slices, max(1, width // SIDE)), axis=2)
        tiles = np.lib.stride_tricks.sliding_window_view(wide, (height, width), (1, 2))
        tiles = tiles[:, ::height, ::width].reshape(-1, height, width).copy()
        rounds[height, width] = tiles.size / 1e6, partial(predict, list(tiles))
    return rounds


def load_ours(precision: str, folder: Path) -> Callable:
    """Returns this repository's predictor, several tiles at the same time."""
    workers, network = share_cores(), load_keras(precision)
    from membrane.inference.predictor import Predictor

    predict, pool = Predictor(network, workers=workers), ThreadPoolExecutor(workers)
    return lambda tiles: list(pool.map(predict, tiles))


def load_keras_predict(precision: str, folder: Path) -> Callable:
    """Returns `model.predict` on a stack of all tiles, as tutorials have it."""
    network = load_keras(precision)
    return lambda tiles: network.predict(np.stack(tiles)[..., None], verbose=0)


def large_unet(precision: str, folder: Path) -> dict:
    """Prepares a U-Net of the 64 to 1024 filters that most repositories copy, untrained."""
    cli.start_tensorflow()
    from membrane.inference.precision import with_dtype
    from unet import build_unet

    network = with_dtype(build_unet((64, 128, 256, 512, 1024)), DTYPES[precision])
    one_slice = np.load(folder / "slices.npy")[:1, ..., None]
    return {SHAPES[0]: (one_slice.size / 1e6, partial(network.predict, one_slice, verbose=0))}


def load_pytorch(precision: str, folder: Path, layout="contiguous_format", compiled=False):
    """Returns the network in PyTorch, one tile at a time."""
    import torch

    dtype = getattr(torch, precision)
    network = build_pytorch(folder).eval().to(memory_format=getattr(torch, layout)).to(dtype)
    network = torch.compile(network) if compiled else network

    def predict(tiles):
        with torch.inference_mode():
            batches = (torch.from_numpy(tile)[None, None].to(dtype) for tile in tiles)
            return [network(batch).float().numpy() for batch in batches]

    return predict


def build_pytorch(folder: Path):
    """Returns the network as a PyTorch module with the same weights."""
    import torch
    from torch import nn
    from torch.nn.functional import interpolate, max_pool2d

    weights = {name: torch.from_numpy(w) for name, w in np.load(folder / "weights.npz").items()}

    def convolution(name, dilation=1):
        kernel = weights[f"{name}/kernel"].permute(3, 2, 0, 1).contiguous()
        filters, channels, size, _ = kernel.shape
        padding = dilation * (size // 2)
        layer = nn.Conv2d(channels, filters, size, padding=padding, dilation=dilation)
        layer.weight.data, layer.bias.data = kernel, weights[f"{name}/bias"]
        return layer

    def twice(stage, dilations=(1, 1)):
        first, second = (convolution(f"{stage}_conv{i + 1}", dilations[i]) for i in (0, 1))
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder1, self.encoder2 = twice("encoder1"), twice("encoder2")
            self.bottleneck = twice("bridge", dilations=(2, 4))
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
    """Writes the network as ONNX, by PyTorch's exporter."""
    import torch

    network, example = build_pytorch(folder).eval(), torch.zeros(1, 1, SIDE, SIDE)
    axes = {"image": {2: "height", 3: "width"}}
    options = {"input_names": ["image"], "dynamic_axes": axes, "dynamo": False}
    torch.onnx.export(network, (example,), folder / ONNX, **options)


def find_onnx(folder: Path) -> Path:
    """Returns the ONNX file."""
    if not (folder / ONNX).exists():
        raise ModuleNotFoundError("PyTorch is to write the ONNX file", name="torch")
    return folder / ONNX


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
        network = core.read_model(find_onnx(folder))
        network.reshape([1, 1, *shape])
        compiled[shape] = core.compile_model(network, "CPU", options)

    def predict(tiles):
        maps, queue = [None] * len(tiles), openvino.AsyncInferQueue(compiled[tiles[0].shape])

        def keep(request, place):
            maps[place] = request.get_output_tensor().data.copy()

        queue.set_callback(keep)
        for place, tile in enumerate(tiles):
            queue.start_async([tile[None, None]], place)
        queue.wait_all()
        return maps

    return predict


def pipeline(precision: str, folder: Path, flags: list[str]) -> dict:
    """Prepares predict.py on a folder of slices, without its start and its contact sheet."""
    workers, network = share_cores(), load_keras(precision)
    import predict
    from membrane.inference.predictor import Predictor

    predict.THUMBNAIL_PAGES = 0
    predictor = Predictor(network, workers=workers)
    args = predict.parse_args([str(folder / "slices"), *flags])
    mpixels = len(list(args.input.iterdir())) * SIDE**2 / 1e6

    def run():
        with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
            args.output = output
            predict.predict_slices(args, predictor, workers, record={}, metadata={}, device="")

    return {SHAPES[0]: (mpixels, run)}


def naive_pipeline(precision: str, folder: Path) -> dict:
    """Prepares the same as tutorials have it: all slices in one `predict`, then P > 0.5."""
    network, paths = load_keras(precision), sorted((folder / "slices").iterdir())

    def run():
        with tempfile.TemporaryDirectory() as output:
            images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
            probability = network.predict(images[..., None].astype(np.float32), verbose=0)
            masks = (probability[..., 0] > 0.5) * np.uint8(255)
            for path, mask in zip(paths, masks, strict=True):
                Image.fromarray(mask).save(Path(output, path.name))

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
    batches, cores = iter(make_tiles(folder)), len(os.sched_getaffinity(0))
    work = 4 * STEPS * BATCH / cores
    return {(256, 256): (work, lambda: [next(batches) for _ in range(4 * STEPS)])}


def training(precision: str, folder: Path, constant: bool = False) -> dict:
    """Prepares train.py's steps, if `constant` on one batch, whose tiles then cost nothing."""
    batches = make_tiles(folder)
    import tensorflow as tf

    from membrane.inference.fused_unet import fused_unet
    from membrane.training.callbacks import membrane_iou
    from membrane.training.muon import Muon

    tf.config.experimental.enable_op_determinism()  # as train.py does
    batches = batches.take(1).cache().repeat() if constant else batches
    model = fused_unet(load_keras(precision))
    model.compile(optimizer=Muon(1e-4), loss="binary_crossentropy", metrics=[membrane_iou])
    model.make_train_function()
    batches = iter(batches)

    def run():  # the steps of a `fit`, whose end now and then waits a second for tf.data
        for _ in range(STEPS):
            logs = model.train_function(batches)
        float(logs["loss"])

    return {(256, 256): (STEPS * BATCH, run)}


def pytorch_training(precision: str, folder: Path) -> dict:
    """Prepares PyTorch's steps on one batch, in channels_last."""
    import torch

    network = build_pytorch(folder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    image = torch.rand(BATCH, 1, 256, 256)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", getattr(torch, precision)):
                probability = network(image)
            torch.nn.functional.binary_cross_entropy(probability, image.round()).backward()
            optimizer.step()

    return {(256, 256): (STEPS * BATCH, run)}
