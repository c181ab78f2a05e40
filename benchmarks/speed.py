"""Measures speed and memory beside what people would use instead: Keras, PyTorch, ONNX, OpenVINO.

pip install -r requirements/bench.txt
python benchmarks/speed.py            every engine, table and ratios; about twelve minutes
python benchmarks/speed.py --quick    the ratios only, in under five minutes; writes no table

Every engine has the weights of outputs/pretrained, the same real slices, and a process of its own.
The processes take turns, one works while the others wait: a noisy machine is unfair to none.
What is reported is the median of the rounds. Before any timing all must give the same P(interior).
"""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import doors
import quality
from quality import HERE

STARTED = time.time()
RESULT = HERE / "speed.json"
MODEL = HERE.parent / "outputs" / "pretrained" / "model.keras"
SHAPES = ((512, 512), (384, 384), (256, 256), (256, 1024))  # px; each engine is shown at its best
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # of P(interior), at most
CHANNELS_LAST = "PyTorch channels_last"  # its quicker layout, which must be asked for
COPIED = "Keras, U-Net of 31 M parameters"  # as most tutorials have it
NETWORKS = (  # network alone: engine and precision
    ("ours", "bfloat16"),
    ("ours", "float32"),
    ("Keras model.predict", "float32"),
    ("Keras model.predict", "bfloat16"),
    ("PyTorch", "float32"),
    ("PyTorch", "bfloat16"),
    (CHANNELS_LAST, "float32"),
    (CHANNELS_LAST, "bfloat16"),
    ("PyTorch compiled", "float32"),
    ("PyTorch compiled", "bfloat16"),
    ("ONNX Runtime", "float32"),
    ("OpenVINO latency", "bfloat16"),
    ("OpenVINO throughput", "bfloat16"),
    (COPIED, "float32"),
    (COPIED, "bfloat16"),
)
QUICK = [  # those that the ratios need
    ("ours", "bfloat16"),
    ("ours", "float32"),
    ("PyTorch", "float32"),
    ("PyTorch", "bfloat16"),
    (CHANNELS_LAST, "bfloat16"),
    ("OpenVINO throughput", "bfloat16"),
]
ROUNDS, TRAINING_ROUNDS = 5, 11  # a tenth is to be seen in the latter, in a second and a half
PIPELINES = ("ours, --plain", "ours", "naive Keras")  # files to mask files; plain: like naive
TRAININGS = ("ours", "ours, one constant batch", CHANNELS_LAST)
SLICES, QUICK_SLICES = 24, 8  # per round
GOAL = 0.95  # V_rand of the validation slices at their best threshold


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="speed.py", description=__doc__)
    parser.add_argument("--data", default="kaggle", help="as for train.py; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="fewer engines and slices, no table")
    parser.add_argument("--engine", nargs=3, help=argparse.SUPPRESS)  # what a process is to be
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    args = parse_args(argv)
    return doors.run(serve if args.engine else measure, args, "speed.py")


def measure(args: argparse.Namespace) -> int:
    """Starts every engine, lets them take turns, prints the table and the ratios."""
    count = QUICK_SLICES if args.quick else SLICES
    with tempfile.TemporaryDirectory() as scratch:
        write_slices(args.data, count, Path(scratch, "slices"))
        networks = [engine for engine in NETWORKS if not args.quick or engine in QUICK]
        jobs = [("network", *engine) for engine in networks]
        jobs += [("pipeline", engine, "") for engine in PIPELINES]
        jobs += [("training", engine, "bfloat16") for engine in TRAININGS]
        results = []
        for kind in ("network", "pipeline", "training"):
            group = [Engine(job, scratch) for job in jobs if job[0] == kind]
            if kind == "network":
                check_alike(group)
            for _ in range(TRAINING_ROUNDS if kind == "training" else ROUNDS):
                for engine in group:
                    engine.take_turn()
            results += [engine.finish() for engine in group]
        if not args.quick:
            results += time_training(args.data, Path(scratch, "run"))
        results += time_cold_starts(Path(scratch))
    if args.quick:
        print(draw_table(results))
    else:
        RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        quality.write_tables(draw_tables())
    print("", *draw_ratios(results), sep="\n")
    return 0


def time_cold_starts(scratch: Path) -> list[dict]:
    """Returns how long a fresh process takes to import TensorFlow, and to make a first mask."""
    first = min((scratch / "slices").iterdir())
    predict = [str(HERE.parent / "predict.py"), str(first), "--model", "pretrained", "--output"]
    times = {"import tensorflow": [], "predict.py, one slice": []}
    for number in range(ROUNDS):
        for what, flags in zip(times, (["-c", "import tensorflow"], predict), strict=True):
            flags = [*flags, str(scratch / f"cold-{number}")] if flags is predict else flags
            began = time.perf_counter()
            subprocess.run([sys.executable, *flags], check=True, capture_output=True)
            times[what].append(time.perf_counter() - began)
    return [
        {"kind": "start", "engine": what, "precision": "", "first": statistics.median(seconds)}
        for what, seconds in times.items()
    ]


def time_training(source: str, folder: Path) -> list[dict]:
    """Returns how long train.py takes for an epoch, and until its validation slices score well."""
    command = [sys.executable, str(HERE.parent / "train.py"), "--data", source]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in process.stdout:
        if (score := re.search(r"validation: V_rand ([\d.]+)", line)) and float(score[1]) >= GOAL:
            break
    else:
        raise SystemExit(f"train.py: ended without V_rand {GOAL}")
    seconds = time.perf_counter() - began
    process.terminate()  # which it takes as the end of the training
    process.communicate()
    with open(folder / "history.csv", encoding="utf-8", newline="") as file:
        epoch = statistics.median(float(row["seconds"]) for row in csv.DictReader(file))
    about = {"kind": "training", "precision": ""}
    return [
        {**about, "engine": "train.py, an epoch of 96 tiles", "first": epoch},
        {**about, "engine": f"train.py, to V_rand {GOAL} in validation", "first": seconds},
    ]


class Engine:
    """A process that works when told to.

    Args:
        job: kind, engine and precision.
        scratch: the folder with the slices, for its own files as well.
    """

    def __init__(self, job: tuple[str, str, str], scratch: str):
        self.job, self.times = job, []
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "SCRATCH": scratch}
        command = [sys.executable, __file__, "--engine", *job]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, env=environment, text=True
        )
        self.begun = self.read()

    def read(self) -> dict:
        """Returns the next answer."""
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{' '.join(self.job)}: ended with status {self.process.wait()}")

    def take_turn(self) -> None:
        """Lets it work once."""
        print("go", file=self.process.stdin, flush=True)
        self.times.append(self.read()["seconds"])

    def finish(self) -> dict:
        """Ends it and returns what is known of it."""
        self.process.stdin.close()
        end = self.read()
        self.process.wait()
        work = self.begun["work"]
        rates = {
            shape: work[shape] / statistics.median(times[shape] for times in self.times)
            for shape in work
        }
        best = max(rates, key=rates.get)
        kind, engine, precision = self.job
        return {
            "kind": kind,
            "engine": engine,
            "precision": precision,
            "best": best,
            "rate": rates[best],
            "rates": rates,
            "first": self.begun.get("first"),
            "peak_mib": end["peak_mib"],
        }


def check_alike(engines: list[Engine]) -> None:
    """Stops when an engine's P(interior) is not that of the first float32 one."""
    import numpy as np

    engines = [engine for engine in engines if engine.begun["map"]]
    maps = [np.load(engine.begun["map"]) for engine in engines]
    reference = next(m for m, e in zip(maps, engines, strict=True) if e.job[2] == "float32")
    for engine, one in zip(engines, maps, strict=True):
        error = float(np.abs(one - reference).max())
        if not error <= TOLERANCE[engine.job[2]]:
            raise SystemExit(f"{' '.join(engine.job)}: P(interior) differs by {error:.2g}")


def write_slices(source: str, count: int, folder: Path) -> None:
    """Writes the first slices of a data set as PNG files of 512x512."""
    doors.import_tensorflow_quietly()
    import files
    import grey
    import runs
    import slices

    import data

    data_set = data.find_data_set(source, runs.OUTPUTS / runs.DRAWN)
    for name, image in list(slices.read_named(data_set.images))[:count]:
        files.write_pages(folder / f"{name}.png", [grey.to_grey(image)])


def serve(args: argparse.Namespace) -> int:
    """Is one engine: prepares, computes a first result, then works whenever a line comes in."""
    import resource

    kind, engine, precision = args.engine
    scratch = Path(os.environ["SCRATCH"])
    make = {"network": make_network, "pipeline": make_pipeline, "training": make_training}[kind]
    work, rounds, about = make(engine, precision, scratch)
    for run in rounds.values():
        run()
    print(json.dumps({"work": work, **about}), flush=True)
    for _ in sys.stdin:
        seconds = {}
        for shape, run in rounds.items():
            began = time.perf_counter()
            run()
            seconds[shape] = time.perf_counter() - began
        print(json.dumps({"seconds": seconds}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mib": peak}), flush=True)
    return 0


def make_network(engine: str, precision: str, scratch: Path) -> tuple[dict, dict, dict]:
    """Returns Mpixel per round, the rounds, and what else is known, of a network alone."""
    import numpy as np

    predict_all = PREPARE[engine](precision)
    tiles = {name(shape): cut(read_slices(scratch), shape) for shape in SHAPES}
    whole = name(SHAPES[0])
    first = np.asarray(predict_all(tiles[whole][:1])[0], np.float32).reshape(SHAPES[0])
    elapsed = time.time() - STARTED
    if engine == COPIED:  # another network, and one slice is enough of it
        tiles, path = {whole: tiles[whole][:1]}, None
    else:
        path = str(scratch / f"{engine}-{precision}.npy")
        np.save(path, first)
    rounds = {shape: lambda t=t: predict_all(t) for shape, t in tiles.items()}
    work = {shape: sum(one.size for one in t) / 1e6 for shape, t in tiles.items()}
    return work, rounds, {"map": path, "first": elapsed}


def read_slices(scratch: Path) -> list:
    """Returns the slices, normalised."""
    import grey
    import slices

    return [grey.normalise(image) for _, image in slices.read_named(scratch / "slices")]


def name(shape: tuple[int, int]) -> str:
    """Returns how the table names a shape."""
    return "×".join(map(str, shape))


def cut(images: list, shape: tuple[int, int]) -> list:
    """Returns tiles of a shape, where they are wider than a slice from two side by side."""
    import numpy as np

    height, width = shape
    if width > images[0].shape[1]:
        images = [np.hstack(pair) for pair in zip(images[::2], images[1::2], strict=True)]
    rows, cols = ([*range(0, a - b + 1, b)] for a, b in zip(images[0].shape, shape, strict=True))
    return [image[t : t + height, s : s + width] for image in images for t in rows for s in cols]


DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def load_keras(precision: str):
    """Returns the network in a precision."""
    doors.import_tensorflow_quietly()
    from inference import load_network

    import unet

    return unet.with_dtype(load_network(MODEL), DTYPES[precision])


def build_copied_unet(precision: str):
    """Returns the U-Net of 64 to 1024 filters that most repositories copy, untrained."""
    doors.import_tensorflow_quietly()
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
    return keras.Model(image, layers.Conv2D(1, 1, activation="sigmoid", dtype="float32")(x))


def prepare_ours(precision: str) -> Callable:
    """Returns a function from tiles to maps: this repository, several tiles in flight."""
    doors.import_tensorflow_quietly()
    workers = doors.share_cores()
    from inference import Predictor

    predict = Predictor(load_keras(precision), tta=False, workers=workers)
    pool = ThreadPoolExecutor(workers)
    return lambda tiles: list(pool.map(predict, tiles))


def predict_naively(network) -> Callable:
    """Returns the same: `model.predict` on a stack of all tiles, as tutorials do it."""
    import numpy as np

    return lambda tiles: list(network.predict(np.stack(tiles)[..., None], verbose=0))


def prepare_pytorch(precision: str, layout: str, compiled: bool = False) -> Callable:
    """Returns the same: PyTorch, one tile at a time."""
    import torch

    network = build_pytorch().eval().to(memory_format=getattr(torch, layout))
    if precision == "bfloat16":
        network = network.to(torch.bfloat16)
    run = torch.compile(network) if compiled else network
    dtype = getattr(torch, precision)

    def predict(tiles):
        with torch.inference_mode():
            batches = (torch.from_numpy(t.copy())[None, None].to(dtype) for t in tiles)
            return [run(batch).float().numpy() for batch in batches]

    return predict


def write_onnx() -> Path:
    """Writes the network as ONNX, by PyTorch's exporter, and returns the file."""
    import torch

    path = Path(os.environ["SCRATCH"], f"network-{os.getpid()}.onnx")
    names = {"input_names": ["image"], "output_names": ["probability"]}
    axes = {name: {2: "height", 3: "width"} for name in ("image", "probability")}
    example = torch.zeros(1, 1, 512, 512)
    torch.onnx.export(
        build_pytorch().eval(), (example,), path, dynamo=False, dynamic_axes=axes, **names
    )
    return path


def prepare_onnx(precision: str) -> Callable:
    """Returns the same: ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(write_onnx(), providers=["CPUExecutionProvider"])
    return lambda tiles: [session.run(None, {"image": t[None, None]})[0] for t in tiles]


def prepare_openvino(precision: str, hint: str) -> Callable:
    """Returns the same: OpenVINO, asynchronous where the hint is THROUGHPUT."""
    import openvino

    kind = {"float32": "f32", "bfloat16": "bf16"}[precision]
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": kind}
    core = openvino.Core()
    compiled = {}
    for shape in SHAPES:
        network = core.read_model(write_onnx())
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


PREPARE = {
    "ours": prepare_ours,
    "Keras model.predict": lambda precision: predict_naively(load_keras(precision)),
    COPIED: lambda precision: predict_naively(build_copied_unet(precision)),
    "PyTorch": lambda precision: prepare_pytorch(precision, "contiguous_format"),
    CHANNELS_LAST: lambda precision: prepare_pytorch(precision, "channels_last"),
    "PyTorch compiled": lambda precision: prepare_pytorch(precision, "channels_last", True),
    "ONNX Runtime": prepare_onnx,
    "OpenVINO latency": lambda precision: prepare_openvino(precision, "LATENCY"),
    "OpenVINO throughput": lambda precision: prepare_openvino(precision, "THROUGHPUT"),
}


def build_pytorch():
    """Returns the network in PyTorch, with the same weights."""
    import torch
    from torch import nn

    network = load_keras("float32")
    kernels = {layer.name: layer for layer in network.layers if layer.weights}

    def convolve(name):
        layer = kernels[name]
        kernel, bias = (torch.from_numpy(w.numpy()) for w in layer.weights)
        size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
        copy = nn.Conv2d(*kernel.shape[2:], size, padding=dilation * (size // 2), dilation=dilation)
        copy.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        copy.bias.data = bias
        return copy

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolutions = nn.ModuleDict({name: convolve(name) for name in kernels})

        def twice(self, stage, x):
            for number in (1, 2):
                x = torch.relu(self.convolutions[f"{stage}_conv{number}"](x))
            return x

        def forward(self, x):
            skips = []
            for stage in ("encoder1", "encoder2"):
                x = self.twice(stage, x)
                skips.append(x)
                x = nn.functional.max_pool2d(x, 2)
            x = self.twice("bridge", x)
            for stage in ("decoder2", "decoder1"):
                x = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
                x = self.twice(stage, torch.cat([skips.pop(), x], 1))
            return torch.sigmoid(self.convolutions["probability"](x).float())

    return UNet()


def make_pipeline(engine: str, precision: str, scratch: Path) -> tuple[dict, dict, dict]:
    """Returns Mpixel per round and the round, from a folder of slices to a folder of masks."""
    folder = scratch / "slices"
    count = len(list(folder.iterdir()))
    if engine != "naive Keras":
        import contextlib
        import io

        doors.import_tensorflow_quietly()
        workers = doors.share_cores()
        from inference import Predictor
        from pipeline import Recipe, find_files, predict_pages
        from results import write_masks

        from unet import choose_dtype, with_dtype

        network = with_dtype(load_keras("float32"), choose_dtype()[0])
        sources, _ = find_files(folder, 2**30)
        recipe = Recipe(
            predictor=Predictor(network, tta=False, workers=workers),
            threshold=0.9 if engine == PIPELINES[0] else 0.5,
            plain=engine == PIPELINES[0],
            scaling={},
            pixel_size=None,
            given_size=None,
            invert=False,
            probability=False,
            submission=False,
            labels=False,
            max_pixels=2**30,
            on_sheet=frozenset(range(30)),
            on_page=frozenset(range(1000)),
            looked_at=frozenset(range(5)),
        )

        def run():
            with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
                pages = predict_pages(sources, Path(out), recipe, workers)
                write_masks(pages, count, Path(out), recipe, [])

    else:
        import numpy as np
        from PIL import Image

        network = load_keras("float32")

        def run():
            with tempfile.TemporaryDirectory() as out:
                paths = sorted(folder.iterdir())
                images = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
                probabilities = network.predict(images[..., None].astype(np.float32), verbose=0)
                masks = (probabilities[..., 0] > 0.5) * np.uint8(255)
                for path, mask in zip(paths, masks, strict=True):
                    Image.fromarray(mask).save(Path(out, path.name))

    whole = name((512, 512))
    return {whole: count * 512**2 / 1e6}, {whole: run}, {}


def make_training(engine: str, precision: str, scratch: Path) -> tuple[dict, dict, dict]:
    """Returns tiles per round, and the round: some steps with batches of 8 tiles of 256x256."""
    import numpy as np

    steps, batch = 12, 8
    if engine == CHANNELS_LAST:
        import torch

        network = build_pytorch().to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(network.parameters(), 1e-4)
        image, label = torch.rand(2, batch, 1, 256, 256)
        label = label.round()

        def run():
            for _ in range(steps):
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    probability = network(image)
                loss = torch.nn.functional.binary_cross_entropy(probability, label)
                loss.backward()
                optimizer.step()
    else:
        network = load_keras(precision)
        import fit
        import tensorflow as tf
        from muon import Muon
        from tiles import TileSampler

        images = read_slices(scratch)
        sampler = TileSampler(images, [image > np.median(image) for image in images], 0)
        if engine != "ours":
            constant = sampler(tf.range(batch, dtype=tf.int64))
            sampler = lambda numbers: constant  # noqa: E731
        model = fit.TileTraining(network, sampler)
        model.compile(optimizer=Muon(1e-4), loss="binary_crossentropy")
        numbers = tf.data.Dataset.range(batch).repeat().batch(batch, drop_remainder=True)
        model.make_train_function()
        batches = iter(numbers)

        def run():  # the steps of a `fit`, whose end now and then waits a second for tf.data
            for _ in range(steps):
                logs = model.train_function(batches)
            float(logs["loss"])

    tile = name((256, 256))
    return {tile: steps * batch}, {tile: run}, {}


def draw_tables() -> dict[str, str]:
    """Returns the table of the last measurement by its name, if there was one."""
    if not RESULT.exists():
        return {}
    return {"speed": draw_table(json.loads(RESULT.read_text(encoding="utf-8")))}


def draw_table(results: list[dict]) -> str:
    """Returns the results in Markdown."""
    lines = [
        "| what | engine | precision | speed | at | time | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    units = {"network": "Mpixel/s", "pipeline": "Mpixel/s", "training": "tiles/s"}
    for row in results:
        what = row["kind"], row["engine"], row["precision"]
        first = f"{row['first']:.1f} s" if row["first"] else ""
        if "rate" not in row:
            cells = (*what, "", "", first, "")
        else:
            speed = f"{row['rate']:.3g} {units[row['kind']]}"
            cells = (*what, speed, f"{row['best']} px", first, f"{row['peak_mib']:.0f} MiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_ratios(results: list[dict]) -> list[str]:
    """Returns how many times as fast as others this repository is, one line each."""
    start, mask = (row["first"] for row in results if row["kind"] == "start")
    timed = [row for row in results if "rate" in row]
    rate = {(row["kind"], row["engine"], row["precision"]): row["rate"] for row in timed}

    def ratio(kind: str, one: tuple[str, str], other: tuple[str, str]) -> str:
        return f"{rate[kind, *one] / rate[kind, *other]:.2f}"

    ours, constant, channels_last = ((name, "bfloat16") for name in TRAININGS)
    torch = ("PyTorch", "bfloat16")
    openvino = ("OpenVINO throughput", "bfloat16")
    plain, whole_borders, naive = ((name, "") for name in PIPELINES)
    overhead = rate["training", *constant] / rate["training", *ours] - 1
    return [
        f"network_vs_openvino: {ratio('network', ours, openvino)}",
        f"network_vs_pytorch: {ratio('network', ours, channels_last)}",
        f"network_vs_pytorch_as_it_comes: {ratio('network', ours, torch)}",
        f"pipeline_vs_naive_keras: {ratio('pipeline', plain, naive)}",
        f"pipeline_of_whole_borders_vs_naive_keras: {ratio('pipeline', whole_borders, naive)}",
        f"training_vs_pytorch: {ratio('training', ours, channels_last)}",
        f"pipeline_overhead_of_augmentation: {overhead:.1%}",
        f"first_mask_vs_import_tensorflow: {mask / start:.2f} (+ {mask - start:.1f} s)",
    ]


if __name__ == "__main__":
    sys.exit(main())
