"""Trains the U-Net on labelled EM slices and leaves a run in outputs/.

python train.py                      ISBI-2012 from Kaggle
python train.py --data MY_FOLDER     a copy of it, or your own labelled slices
python train.py --data synthetic     drawn slices, to try everything without Kaggle
python train.py --resume RUN         goes on with an interrupted training
"""

import argparse
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import doors

EPOCHS, EPOCHS_SYNTHETIC = 120, 30
TILES_PER_EPOCH = 96


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags; tunables have their defaults here and nowhere else."""
    parser = doors.Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--data", default="kaggle", help="kaggle, synthetic, or a folder; default: %(default)s")
    epochs_help = f"of {TILES_PER_EPOCH} tiles; default: {EPOCHS} ({EPOCHS_SYNTHETIC} on synthetic)"
    add("--epochs", type=_positive(int), metavar="N", help=epochs_help)
    add(
        "--batch-size",
        type=_positive(int),
        default=8,
        metavar="N",
        help="tiles; default: %(default)s",
    )
    rate_help = "the highest of the schedule; default: %(default)s"
    add("--learning-rate", type=_positive(float), default=3e-3, metavar="RATE", help=rate_help)
    filters_help = "of each encoder stage and of the bridge; default: %(default)s"
    filters = {"type": _positive(int), "nargs": "+", "default": [16, 32, 64], "metavar": "N"}
    add("--filters", **filters, help=filters_help)
    dilation_help = "of the bridge: N, then N squared; 1 sees less far; default: %(default)s"
    add("--dilation", type=_positive(int), default=2, metavar="N", help=dilation_help)
    val_help = "slices to hold out, counted from 1 in sorted order; default: the last fifth"
    add("--val-slices", metavar="A-B", help=val_help)
    add(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of all random choices; default: %(default)s",
    )
    add("--output", metavar="DIR", help="the run's folder; default: a new one in outputs/")
    add("--resume", metavar="RUN", help="go on with this run, with its own flags")
    args = parser.parse_args(argv)
    if len(args.filters) < 2:
        parser.error("--filters: expected two numbers or more, the last one for the bridge")
    if TILES_PER_EPOCH % args.batch_size:
        parser.error(f"--batch-size {args.batch_size}: expected a divisor of {TILES_PER_EPOCH}")
    if args.resume:
        given = [key for key in vars(args) if getattr(args, key) != parser.get_default(key)]
        others = ", ".join(f"--{key.replace('_', '-')}" for key in given if key != "resume")
        if others:
            parser.error(f"--resume goes on with the run's own flags; leave out {others}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(train, parse_args(argv), "train.py")


def train(args: argparse.Namespace) -> int:
    """Finds the data, fits, calibrates and writes the run."""
    doors.import_tensorflow_quietly()
    import keras
    import tensorflow as tf

    import data
    import fit
    import runs
    import unet
    from slices import UserError, write_json

    record = None
    if args.resume:
        folder = runs.find_run(args.resume)
        record = runs.read_run(folder)
        if record["finished"]:
            raise UserError(
                f"{folder}: this training is finished; leave out --resume for a new one"
            )
        args = argparse.Namespace(**record["flags"])

    dtype, device = unet.choose_dtype()
    print(f"Device: {device}")
    if not tf.config.list_physical_devices("GPU"):
        print("No GPU is visible; with an NVIDIA one: pip install -r requirements/gpu.txt")
        tf.config.experimental.enable_op_determinism()  # on a GPU it would cost speed
    keras.utils.set_random_seed(args.seed)

    data_set = data.find_data_set(args.data, runs.OUTPUTS / runs.DRAWN)
    pairs = data.load_pairs(data_set)
    training, held_out = data.split(pairs, args.val_slices)
    print(
        f"Data: {data_set.root}, {len(training.names)} slices to train on, "
        f"{len(held_out.names)} held out ({held_out.names[0]} to {held_out.names[-1]})"
    )
    if data.TILE % 2 ** (len(args.filters) - 1):
        raise UserError(
            f"--filters: {len(args.filters)} stages do not fit a tile of {data.TILE} px"
        )
    network = unet.with_dtype(unet.build_unet(args.filters, args.dilation), dtype)
    print(f"Network: {'-'.join(map(str, args.filters))}, {network.count_params():,} parameters")

    if record is None:
        args.epochs = args.epochs or (EPOCHS_SYNTHETIC if data_set.is_synthetic else EPOCHS)
        folder = runs.make_folder(args.output, runs.OUTPUTS / f"{datetime.now():%Y%m%d-%H%M%S}")
        record = {
            "format": runs.FORMAT,
            "finished": False,
            "started": runs.now(),
            "synthetic": data_set.is_synthetic,
            "flags": {**vars(args), "data": data_set.source, "resume": None},
            "parameters": network.count_params(),
            "train_slices": training.names,
            "val_slices": held_out.names,
            "data_checksum": pairs.checksum(),
        }
        write_json(folder / "run.json", record)
    elif record["data_checksum"] != pairs.checksum():
        raise UserError(f"{data_set.root}: not the slices that {folder} has been trained on")
    print(f"Run: {runs.shown(folder)}", flush=True)

    history = fit.fit(
        network,
        data.TileSampler(training.images, training.labels, args.seed),
        held_out,
        folder,
        epochs=args.epochs,
        tiles_per_epoch=TILES_PER_EPOCH,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    resume = f"python train.py --resume {shlex.quote(runs.shown(folder))}"
    if not history:
        print(f"Interrupted before the first epoch ended. Start it again: {resume}")
        return 130
    record |= {
        "finished": len(history) == args.epochs,
        "ended": runs.now(),
        "epochs": len(history),
        "device": device,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "commit": _git_commit(),
    }
    _finish(folder, record, network, held_out, history)
    if not record["finished"]:
        print(f"Interrupted after epoch {len(history)} of {args.epochs}. Go on with: {resume}")
        return 130
    (folder / fit.CHECKPOINT).unlink(missing_ok=True)
    return 0


def _finish(folder: Path, record: dict, network, held_out, history: list[dict]) -> None:
    """Calibrates on the held-out slices, writes model, pictures and run.json, prints the scores."""
    import figures
    import metrics
    import runs
    import unet
    from inference import Predictor, to_mask
    from slices import DEVIATION, MEAN, whole_file, write_json

    calibration = {}
    for tta in (False, True):
        predict = Predictor(network, tta=tta)
        probabilities = [predict(image) for image in held_out.images]
        calibration[tta] = metrics.calibrate(held_out.labels, probabilities, to_mask=to_mask)
    chosen = calibration[True]
    masks = [to_mask(probability, chosen["threshold"]) for probability in probabilities]
    with whole_file(folder / "model.keras") as part:
        unet.with_dtype(network, "float32").save(part)
    figures.draw_curves(folder / "curves.png", history)
    figures.draw_validation_sheet(
        folder / "validation.png",
        held_out.names,
        held_out.images,
        held_out.labels,
        probabilities,
        masks,
        chosen["slices"],
    )
    record |= {
        "tta": True,
        "threshold": chosen["threshold"],
        "threshold_without_tta": calibration[False]["threshold"],
        "scaling": {"mean": MEAN, "deviation": DEVIATION},
        "validation": chosen,
        "validation_without_tta": calibration[False],
    }
    write_json(folder / "run.json", record)

    print(
        f"\nValidation scores on the {len(held_out.names)} held-out slices "
        "(fixed: each slice's threshold chosen on the others)"
    )
    for title, scores in (("", calibration[False]), (", 8 flips averaged", chosen)):
        fixed, best = scores["fixed"], scores["best"]
        quoted = f"{fixed['v_rand']:.4f} / {fixed['v_info']:.4f}" if fixed else "needs two slices"
        best = f"{best['v_rand']:.4f} / {best['v_info']:.4f}"
        print(f"  V_rand / V_info{title}: fixed {quoted}, best {best}")
    print(f"Threshold on P(interior): {record['threshold']:g}")
    print(f"Pictures to look at: {runs.shown(folder / 'validation.png')}, curves.png")
    print(f"Next: python predict.py --model {shlex.quote(runs.shown(folder))}")


def _positive(kind: type) -> Callable[[str], int | float]:
    """Returns a parser of finite numbers above zero."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
        return value

    return parse


def _seed(text: str) -> int:
    """Returns a whole number that every random generator takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**32, got {text!r}")
    return int(text)


def _git_commit() -> str | None:
    """Returns the commit of this checkout, or None without git or outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
