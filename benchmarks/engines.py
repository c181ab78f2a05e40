"""The engines that speed.py measures: this repository, and what people would use instead.

Each `prepare_` function is called in a process of its own, with a precision, "float32" or
"bfloat16", and the folder that `write_inputs` has filled. It returns what can be timed. Only there
is an engine's library imported, so that memory and time of the start are its own.
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
from typing import NamedTuple

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
BATCH, STEPS = 8, 24  # tiles of 256x256 px, and training steps in a round


class Prepared(NamedTuple):
    """An engine that is ready.

    Args:
        rounds: by shape, how much work a round is, Mpixel or tiles, and a function that does it.
        probability: float (height, width), the network's output for the first slice.
    """

    rounds: dict[str, tuple[float, Callable[[], object]]]
    probability: np.ndarray | None = None


def write_inputs(source: str, count: int, folder: Path) -> None:
    """Writes what the engines read: slices, also as pictures, and the network's weights.

    Args:
        source: of slices, as for train.py.
        count: how many slices; the first of the data set.
        folder: gets slices/, slices.npy, float32 (count, 512, 512) and normalised, weights.npz, and
            network.onnx, if PyTorch is installed.
    """
    cli.start_tensorflow()
    import data
    from membrane import runs
    from membrane.io.normalization import normalize, to_grey
    from membrane.io.readers import read_named
    from membrane.io.writers import write_pages

    images = read_named(data.find_data_set(source, runs.OUTPUTS / runs.SYNTHETIC_SLICES).images)
    slices = []
    for (name, image), _ in zip(images, range(count), strict=False):
        if image.shape[:2] != (SIDE, SIDE):
            raise UserError(f"{source}: slices of {SIDE}x{SIDE} px are needed; {name} is not")
        write_pages(folder / "slices" / f"{name}.png", [to_grey(image)])
        slices.append(normalize(image))
    np.save(folder / "slices.npy", slices)
    weights = {}
    for layer in load_keras("float32").layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            weights |= {f"{layer.name}/kernel": kernel, f"{layer.name}/bias": bias}
            weights[f"{layer.name}/dilation"] = layer.dilation_rate[0]
    np.savez(folder / "weights.npz", **weights)
    with contextlib.suppress(ModuleNotFoundError), cli.quiet():
        write_onnx(folder)


def load_keras(precision: str):
    """Returns the network of outputs/pretrained; precision "" is the one that predict.py takes."""
    cli.start_tensorflow()
    from membrane.inference.precision import choose_precision, load_network, with_dtype

    return with_dtype(load_network(MODEL), DTYPES.get(precision) or choose_precision()[0])


def prepare_network(load: Callable, precision: str, folder: Path) -> Prepared:
    """Prepares a network alone.

    Args:
        load: returns a function from a list of tiles, float32 (height, width), to their P(interior).
        precision: passed on to it.
        folder: the same.
    """
    predict = load(precision, folder)
    slices = np.load(folder / "slices.npy")
    probability = np.asarray(predict([slices[0]])[0], np.float32).reshape(SIDE, SIDE)
    rounds = {}
    for shape in SHAPES:
        tiles = cut(slices, shape)
        rounds[name_shape(shape)] = sum(tile.size for tile in tiles) / 1e6, partial(predict, tiles)
    return Prepared(rounds, probability)


def name_shape(shape: tuple[int, int]) -> str:
    """Returns how the table names a shape."""
    return "×".join(map(str, shape))


def cut(slices: np.ndarray, shape: tuple[int, int]) -> list[np.ndarray]:
    """Returns tiles; those that are wider than a slice are cut from slices side by side."""
    height, width = shape
    images = [np.hstack(group) for group in slices.reshape(-1, max(1, width // SIDE), SIDE, SIDE)]
    lines, columns = (range(0, a - b + 1, b) for a, b in zip(images[0].shape, shape, strict=True))
    tiles = [
        image[top : top + height, left : left + width]
        for image in images
        for top in lines
        for left in columns
    ]
    return [np.ascontiguousarray(tile) for tile in tiles]


def load_ours(precision: str, folder: Path) -> Callable:
    """Returns this repository's predictor, several tiles at the same time."""
    network, workers = load_keras(precision), cli.share_cores()
    from membrane.inference.predictor import Predictor

    predict = Predictor(network, tta=False, workers=workers)
    pool = ThreadPoolExecutor(workers)
    return lambda tiles: list(pool.map(predict, tiles))


def load_keras_predict(precision: str, folder: Path) -> Callable:
    """Returns `model.predict` of a stack of all tiles, as tutorials have it."""
    network = load_keras(precision)
    return lambda tiles: network.predict(np.stack(tiles)[..., None], verbose=0)[..., 0]


def prepare_copied_unet(precision: str, folder: Path) -> Prepared:
    """Prepares the untrained U-Net of 31 million parameters that most repositories copy."""
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
    return Prepared({name_shape((SIDE, SIDE)): (one_slice.size / 1e6, predict)})


def load_pytorch(
    precision: str, folder: Path, layout: str = "contiguous_format", compiled: bool = False
) -> Callable:
    """Returns the network in PyTorch, one tile at a time."""
    import torch

    dtype = getattr(torch, precision)
    network = build_pytorch(folder).eval().to(memory_format=getattr(torch, layout)).to(dtype)
    network = torch.compile(network) if compiled else network

    def predict(tiles):
        with torch.inference_mode():
            batches = [torch.from_numpy(tile)[None, None].to(dtype) for tile in tiles]
            return [network(batch).float().numpy() for batch in batches]

    return predict


def build_pytorch(folder: Path):
    """Returns the network as a PyTorch module with the same weights."""
    import torch
    from torch import nn
    from torch.nn import functional

    weights = np.load(folder / "weights.npz")

    def convolution(name):
        kernel = torch.from_numpy(weights[f"{name}/kernel"]).permute(3, 2, 0, 1)
        out, channels, size, _ = kernel.shape
        dilation = int(weights[f"{name}/dilation"])
        padding = dilation * (size // 2)
        layer = nn.Conv2d(channels, out, size, padding=padding, dilation=dilation)
        layer.weight.data = kernel.contiguous()
        layer.bias.data = torch.from_numpy(weights[f"{name}/bias"])
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
            skip2 = self.encoder2(functional.max_pool2d(skip1, 2))
            x = self.bottleneck(functional.max_pool2d(skip2, 2))
            x = self.decoder2(torch.cat([skip2, functional.interpolate(x, scale_factor=2)], 1))
            x = self.decoder1(torch.cat([skip1, functional.interpolate(x, scale_factor=2)], 1))
            return torch.sigmoid(self.last(x).float())

    return UNet()


def write_onnx(folder: Path) -> None:
    """Writes the network as ONNX, by PyTorch's exporter."""
    import torch

    axes = {name: {2: "height", 3: "width"} for name in ("image", "probability")}
    torch.onnx.export(
        build_pytorch(folder).eval(),
        (torch.zeros(1, 1, SIDE, SIDE),),
        folder / "network.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["probability"],
        dynamic_axes=axes,
    )


def find_onnx(folder: Path) -> Path:
    """Returns the ONNX file, if PyTorch has written it."""
    path = folder / "network.onnx"
    if not path.exists():
        raise UserError("torch not installed, which writes the ONNX file")
    return path


def load_onnx_runtime(precision: str, folder: Path) -> Callable:
    """Returns the network in ONNX Runtime, float32, one tile at a time."""
    import onnxruntime

    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(find_onnx(folder), providers=providers)
    return lambda tiles: [session.run(None, {"image": tile[None, None]})[0] for tile in tiles]


def load_openvino(precision: str, folder: Path, hint: str) -> Callable:
    """Returns the network in OpenVINO, compiled for each shape, with as many requests as it likes."""
    import openvino

    kind = {"float32": "f32", "bfloat16": "bf16"}[precision]
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": kind}
    core, compiled = openvino.Core(), {}
    for shape in SHAPES:
        network = core.read_model(find_onnx(folder))
        network.reshape([1, 1, *shape])
        compiled[shape] = core.compile_model(network, "CPU", options)

    def predict(tiles):
        maps = [None] * len(tiles)
        queue = openvino.AsyncInferQueue(compiled[tiles[0].shape])

        def keep(request, place):
            maps[place] = request.get_output_tensor().data.copy()

        queue.set_callback(keep)
        for place, tile in enumerate(tiles):
            queue.start_async([tile[None, None]], place)
        queue.wait_all()
        return maps

    return predict


def prepare_pipeline(precision: str, folder: Path, threshold: float, plain: bool) -> Prepared:
    """Prepares what predict.py does with a folder of slices, its contact sheet left out."""
    network, workers = load_keras(precision), cli.share_cores()
    import predict
    from membrane.inference import batch, outputs
    from membrane.inference.predictor import Predictor
    from membrane.io.normalization import make_normalizer, sample_pixels

    predictor = Predictor(network, tta=False, workers=workers)
    sources, _ = batch.find_sources(folder / "slices", max_pixels=2**30)
    config = batch.PredictionConfig(
        pixel_size=None,
        override_pixel_size=None,
        max_pixels=2**30,
        invert=False,
        probability=False,
        submission=False,
        labels=False,
        thumbnail_pages=frozenset(range(predict.THUMBNAIL_PAGES)),
        viewer_pages=frozenset(range(predict.VIEWER_PAGES)),
        polarity_sample=frozenset(range(predict.POLARITY_SAMPLE)),
    )

    def predict_slice(page):
        page.normalize = make_normalizer(sample_pixels(page.image))
        page.probability = predictor(page.image, normalize=page.normalize)
        page.mask = predict.make_mask(page.probability, threshold, plain)
        return batch.finish_page(page, config)

    def run():
        with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
            pages = batch.read_slices(sources, Path(out), config)
            pages = batch.in_flight(predict_slice, pages, predictor, workers)
            outputs.write_masks(pages, len(sources), Path(out), config, [])

    return Prepared({name_shape((SIDE, SIDE)): (len(sources) * SIDE**2 / 1e6, run)})


def prepare_naive_pipeline(precision: str, folder: Path) -> Prepared:
    """Prepares the same as tutorials have it: all slices in one `predict`, then a threshold."""
    network, paths = load_keras("float32"), sorted((folder / "slices").iterdir())

    def run():
        with tempfile.TemporaryDirectory() as out:
            images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
            probability = network.predict(images[..., None].astype(np.float32), verbose=0)
            masks = (probability[..., 0] > 0.5) * np.uint8(255)
            for path, mask in zip(paths, masks, strict=True):
                Image.fromarray(mask).save(Path(out, path.name))

    return Prepared({name_shape((SIDE, SIDE)): (len(paths) * SIDE**2 / 1e6, run)})


def make_tiles(folder: Path):
    """Returns train.py's endless batches of augmented tiles, a tf.data.Dataset."""
    cli.start_tensorflow()
    import data

    images = list(np.load(folder / "slices.npy"))
    labels = [image > np.median(image) for image in images]
    return data.tiles(data.Pairs([], images, labels), range(2**40), BATCH)


def prepare_tiles(precision: str, folder: Path) -> Prepared:
    """Prepares the tiles alone; a round's work is divided by the cores, which all cut tiles."""
    tiles, cores = make_tiles(folder).take(2 * STEPS), len(os.sched_getaffinity(0))
    return Prepared({"256×256": (2 * STEPS * BATCH / cores, lambda: sum(1 for _ in tiles))})


def prepare_training(precision: str, folder: Path, constant: bool = False) -> Prepared:
    """Prepares train.py's steps.

    Args:
        precision: of the network.
        folder: of the inputs.
        constant: whether one batch is used again and again, so that tiles cost nothing.
    """
    tiles = make_tiles(folder)
    import tensorflow as tf

    from membrane.inference.fused_unet import fused_unet
    from membrane.training.callbacks import MembraneIoU
    from membrane.training.muon import Muon

    tf.config.experimental.enable_op_determinism()  # as train.py does
    tiles = tiles.take(1).cache().repeat() if constant else tiles
    model = fused_unet(load_keras(precision))
    model.compile(optimizer=Muon(1e-4), loss="binary_crossentropy", metrics=[MembraneIoU()])
    model.make_train_function()

    def run():
        batches = iter(tiles)  # a new one: an old one has made tiles while others took their turn
        for _ in range(STEPS):
            logs = model.train_function(batches)
        float(logs["loss"])

    return Prepared({"256×256": (STEPS * BATCH, run)})


def prepare_pytorch_training(precision: str, folder: Path) -> Prepared:
    """Prepares PyTorch's steps on one constant batch, in channels_last."""
    import torch

    network = build_pytorch(folder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    image, label = torch.rand(2, BATCH, 1, 256, 256)
    label = label.round()

    def run():
        for _ in range(STEPS):
            optimizer.zero_grad()
            with torch.autocast("cpu", getattr(torch, precision)):
                probability = network(image)
            torch.nn.functional.binary_cross_entropy(probability, label).backward()
            optimizer.step()

    return Prepared({"256×256": (STEPS * BATCH, run)})
