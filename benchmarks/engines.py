"""The engines that speed.py measures: this repository, and what people would use instead.

An engine is a function of a precision, "float32" or "bfloat16", and of the folder that
`write_inputs` has filled. In a process of its own, it returns the rounds to be timed: by shape in
px, their work in Mpixel or tiles, and a function that does it. Only there is an engine's library
imported, so that its memory counts for no other.
"""

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from result_tables import ROOT

from membrane import cli
from membrane.errors import UserError

SIDE = 512  # px, of a slice
SHAPES = ((512, 512), (384, 384), (256, 256), (256, 1024))  # px; each engine is shown at its best
TILE = (256, 256)  # px, of a training
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of P(interior), at most
BATCH, STEPS = 8, 12  # tiles, and training steps in a round
ONNX = "network.onnx"


def write_inputs(source: str, count: int, folder: Path) -> None:
    """Writes what the engines read, of the first slices of a source as train.py takes it.

    slices/*.png; slices.npy, float32 (count, 512, 512), normalised; reference.npy, P(interior) of
    the first; weights.npz; where PyTorch is installed, network.onnx.
    """
    model = load_keras("float32")
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
    np.save(folder / "reference.npy", model(normalized[:1, ..., None])[0, ..., 0])
    np.savez(folder / "weights.npz", **{w.path: w.numpy() for w in model.weights})
    with contextlib.suppress(ModuleNotFoundError), cli.quiet():
        import torch

        axes = {"image": {2: "height", 3: "width"}}
        options = {"input_names": ["image"], "dynamic_axes": axes, "dynamo": False}
        example = torch.zeros(1, 1, SIDE, SIDE)
        torch.onnx.export(build_pytorch(folder).eval(), (example,), folder / ONNX, **options)


def network(load: Callable) -> Callable:
    """Makes an engine, a network alone, of a function that loads it.

    That function returns another, from a list of tiles, float32 (height, width), to their
    P(interior). If that is not what Keras gives in float32, the engine raises a UserError.
    """

    @functools.wraps(load)
    def engine(precision: str, folder: Path, **options) -> dict:
        predict, slices = load(precision, folder, **options), np.load(folder / "slices.npy")
        probability = np.asarray(predict([slices[0]])[0], np.float32).reshape(SIDE, SIDE)
        error = np.abs(probability - np.load(folder / "reference.npy")).max()
        if not error <= TOLERANCE[precision]:
            raise UserError(f"P(interior) differs by {error:.2g}")
        strip, rounds = np.concatenate(slices, axis=1), {}
        for height, width in SHAPES:
            windows = np.lib.stride_tricks.sliding_window_view(strip, (height, width))
            tiles = windows[::height, ::width].reshape(-1, height, width).copy()
            rounds[height, width] = tiles.size / 1e6, partial(predict, list(tiles))
        return rounds

    return engine


def load_keras(precision: str, run: Path = ROOT / "outputs" / "pretrained"):
    """Returns the network of a run; precision "" is the one that predict.py takes."""
    cli.start_tensorflow()
    from membrane.inference.loading import load_network
    from membrane.inference.precision import choose_precision, with_dtype

    model = load_network(run / "model.keras")
    return with_dtype(model, DTYPES.get(precision) or choose_precision()[0])


def load_predictor(precision: str) -> tuple:
    """Returns this repository's predictor, and how many tiles it computes at the same time."""
    cli.start_tensorflow()
    workers = cli.share_cores()  # without effect once a network is loaded
    model = load_keras(precision)
    from membrane.inference.predictor import Predictor

    return Predictor(model, workers=workers), workers


@network
def ours(precision: str, folder: Path) -> Callable:
    """This repository's predictor, several tiles at the same time."""
    predictor, workers = load_predictor(precision)
    pool = ThreadPoolExecutor(workers)
    return lambda tiles: list(pool.map(predictor, tiles))


@network
def keras_predict(precision: str, folder: Path) -> Callable:
    """`model.predict` on a stack of all tiles, as tutorials have it."""
    model = load_keras(precision)
    return lambda tiles: model.predict(np.stack(tiles)[..., None], verbose=0)


def large_unet(precision: str, folder: Path) -> dict:
    """A U-Net of the 64 to 1024 filters that most repositories copy, untrained."""
    cli.start_tensorflow()
    from membrane.inference.precision import with_dtype
    from unet import build_unet

    model = with_dtype(build_unet((64, 128, 256, 512, 1024)), DTYPES[precision])
    one_slice = np.load(folder / "slices.npy")[:1, ..., None]
    return {SHAPES[0]: (one_slice.size / 1e6, partial(model.predict, one_slice, verbose=0))}


@network
def pytorch(precision: str, folder: Path, layout="contiguous_format", compiled=False) -> Callable:
    """PyTorch, one tile at a time."""
    import torch

    dtype = getattr(torch, precision)
    model = build_pytorch(folder).eval().to(memory_format=getattr(torch, layout)).to(dtype)
    model = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def predict(tiles):
        batches = (torch.from_numpy(tile)[None, None].to(dtype) for tile in tiles)
        return [model(batch).float().numpy() for batch in batches]

    return predict


def build_pytorch(folder: Path):
    """Returns the network as a PyTorch module with the same weights."""
    import torch
    from torch.nn.functional import conv2d, interpolate, max_pool2d

    class UNet(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = torch.nn.ParameterDict()
            for path, array in np.load(folder / "weights.npz").items():
                weights = torch.from_numpy(array)
                kernel = weights.ndim == 4
                self.weights[path] = weights.permute(3, 2, 0, 1).contiguous() if kernel else weights

        def convolve(self, x, name, dilation=1):
            kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
            padding = dilation * (kernel.shape[-1] // 2)
            return conv2d(x, kernel, bias, padding=padding, dilation=dilation)

        def twice(self, x, stage, dilations=(1, 1)):
            for number, dilation in enumerate(dilations, start=1):
                x = self.convolve(x, f"{stage}_conv{number}", dilation).relu()
            return x

        def forward(self, image):
            skip1 = self.twice(image, "encoder1")
            skip2 = self.twice(max_pool2d(skip1, 2), "encoder2")
            x = self.twice(max_pool2d(skip2, 2), "bridge", dilations=(2, 4))
            x = self.twice(torch.cat([skip2, interpolate(x, scale_factor=2)], 1), "decoder2")
            x = self.twice(torch.cat([skip1, interpolate(x, scale_factor=2)], 1), "decoder1")
            return torch.sigmoid(self.convolve(x, "probability").float())

    return UNet()


@network
def onnx_runtime(precision: str, folder: Path) -> Callable:
    """ONNX Runtime, float32, one tile at a time."""
    cli.check_installed(("torch",), "requirements/bench.txt")  # it has written the file
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    return lambda tiles: [session.run(None, {"image": tile[None, None]})[0] for tile in tiles]


@network
def openvino(precision: str, folder: Path) -> Callable:
    """OpenVINO, bfloat16, compiled per shape, several tiles in flight."""
    cli.check_installed(("torch",), "requirements/bench.txt")  # it has written the file
    import openvino

    core, compiled = openvino.Core(), {}
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    for shape in SHAPES:
        model = core.read_model(folder / ONNX)
        model.reshape([1, 1, *shape])
        compiled[shape] = core.compile_model(model, "CPU", options)

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
    """predict.py on a folder of slices, without its start and its contact sheet."""
    predictor, workers = load_predictor(precision)
    import predict
    from membrane.inference import outputs

    outputs.SHEET_SLICES = 0
    args = predict.parse_args([str(folder / "slices"), *flags])

    def run():
        args.output = tempfile.mkdtemp(dir=folder)
        with contextlib.redirect_stdout(io.StringIO()):
            predict.predict_slices(args, predictor, workers, record={}, metadata={}, device="")

    return {SHAPES[0]: (np.load(folder / "slices.npy").size / 1e6, run)}


def naive_pipeline(precision: str, folder: Path) -> dict:
    """The same as tutorials have it: all slices in one `predict`, then P > 0.5."""
    model, paths = load_keras(precision), sorted((folder / "slices").iterdir())

    def run():
        output = Path(tempfile.mkdtemp(dir=folder))
        images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
        probability = model.predict(images[..., None].astype(np.float32), verbose=0)
        masks = (probability[..., 0] > 0.5) * np.uint8(255)
        for path, mask in zip(paths, masks, strict=True):
            Image.fromarray(mask).save(output / path.name)

    return {SHAPES[0]: (np.load(folder / "slices.npy").size / 1e6, run)}


def make_batches(folder: Path):
    """Returns endless batches of tiles as train.py makes them, a tf.data.Dataset."""
    cli.start_tensorflow(training=True)
    import data

    images = list(np.load(folder / "slices.npy"))
    labels = [image > np.median(image) for image in images]
    return data.tiles(data.Pairs([], images, labels), range(2**40), BATCH)


def tiles(precision: str, folder: Path) -> dict:
    """The tiles alone; their work is divided by the cores, all of which make them."""
    batches, count = iter(make_batches(folder)), 4 * STEPS
    work = count * BATCH / len(os.sched_getaffinity(0))
    return {TILE: (work, lambda: [next(batches) for _ in range(count)])}


def training(precision: str, folder: Path, constant: bool = False) -> dict:
    """The steps of train.py, if `constant` on one batch, whose tiles then cost nothing."""
    batches = make_batches(folder)
    import tensorflow as tf

    from membrane.inference.fused_unet import fused_unet
    from membrane.training.callbacks import membrane_iou
    from membrane.training.muon import Muon

    tf.config.experimental.enable_op_determinism()  # as train.py does
    model = fused_unet(load_keras(precision))
    model.compile(optimizer=Muon(1e-4), loss="binary_crossentropy", metrics=[membrane_iou])
    model.make_train_function()
    batches = iter(batches.take(1).cache().repeat() if constant else batches)

    def run():  # the steps of a `fit`, whose end now and then waits a second for tf.data
        for _ in range(STEPS):
            logs = model.train_function(batches)
        float(logs["loss"])

    return {TILE: (STEPS * BATCH, run)}


def pytorch_training(precision: str, folder: Path) -> dict:
    """PyTorch's steps on one batch, in channels_last."""
    import torch

    model = build_pytorch(folder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    image = torch.rand(BATCH, 1, *TILE)

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", getattr(torch, precision)):
                probability = model(image)
            torch.nn.functional.binary_cross_entropy(probability, image.round()).backward()
            optimizer.step()

    return {TILE: (STEPS * BATCH, run)}


def start(precision: str, folder: Path, command: list) -> dict:
    """A fresh process of Python, which predict.py makes a first mask in."""
    first = min((folder / "slices").iterdir())

    def run():  # python -c takes no notice of the flags
        flags = ["--model", "pretrained", "--output", tempfile.mkdtemp(dir=folder)]
        subprocess.run([sys.executable, *command, first, *flags], check=True, capture_output=True)

    return {(): (1, run)}
