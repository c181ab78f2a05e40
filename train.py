"""Trains the U-Net on labelled EM slices and leaves a run in outputs/.

python train.py                      ISBI-2012 from Kaggle
python train.py --data MY_FOLDER     a copy of it, or your own labelled slices
python train.py --data synthetic     drawn slices, to try everything without Kaggle
python train.py --data MINE --init pretrained   a few labelled slices: from that run's weights
python train.py --resume RUN         goes on with an interrupted training
"""

import argparse
import shlex
import sys
from datetime import datetime

import doors

EPOCHS, EPOCHS_SYNTHETIC, EPOCHS_INIT = 240, 30, 30
LEARNING_RATE, LEARNING_RATE_LOW = 1e-2, 3e-3  # low: with --init, and for deep networks
DILATION, DILATION_DEEP = 2, 1  # a deep network sees far enough without
DEEP = 4  # stages, the bridge counted
TILES_PER_EPOCH, BATCH_SIZE = 96, 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags; tunables have their defaults here and nowhere else."""
    parser = doors.Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add(
        "--data",
        type=doors.text,
        default="kaggle",
        help="kaggle, synthetic, or a folder; default: %(default)s",
    )
    init_help = "start from this run's weights, filters and dilation; a name in outputs/ or a path"
    add("--init", type=doors.text, metavar="RUN", help=init_help)
    epochs_help = (
        f"of {TILES_PER_EPOCH} tiles; default: {EPOCHS} ({EPOCHS_SYNTHETIC} on synthetic, "
        f"{EPOCHS_INIT} with --init)"
    )
    add("--epochs", type=doors.positive(int), metavar="N", help=epochs_help)
    add(
        "--batch-size",
        type=doors.positive(int),
        metavar="N",
        help=f"tiles; default: {BATCH_SIZE}",
    )
    rate_help = (
        f"the highest of the schedule; default: {LEARNING_RATE} ({LEARNING_RATE_LOW} with --init, "
        f"or with {DEEP} --filters or more)"
    )
    add("--learning-rate", type=doors.positive(float), metavar="RATE", help=rate_help)
    filters_help = "of each encoder stage and of the bridge; default: 16 32 64"
    add("--filters", type=doors.positive(int), nargs="+", metavar="N", help=filters_help)
    dilation_help = (
        f"of the bridge: N, then N squared; 1 sees less far; default: {DILATION} ({DILATION_DEEP} "
        f"with {DEEP} --filters or more)"
    )
    add("--dilation", type=doors.positive(int), metavar="N", help=dilation_help)
    val_help = (
        "slices to hold out, counted from 1 in sorted order, or none; default: the last fifth"
    )
    add("--val-slices", metavar="A-B", help=val_help)
    threshold_help = "do not choose the threshold on the held-out slices, take this one"
    add("--threshold", type=doors.fraction, metavar="T", help=threshold_help)
    pixel_help = "of the slices, for predict.py to match others to; default: what their files say"
    add("--pixel-size", type=doors.positive(float), metavar="NM", help=pixel_help)
    add(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of all random choices; default: %(default)s",
    )
    add(
        "--output",
        type=doors.text,
        metavar="DIR",
        help="the run's folder; default: a new one in outputs/",
    )
    add("--resume", type=doors.text, metavar="RUN", help="go on with this run, with its own flags")
    args = parser.parse_args(argv)
    if args.filters and len(args.filters) < 2:
        parser.error("--filters: expected two numbers or more, the last one for the bridge")
    if args.batch_size and TILES_PER_EPOCH % args.batch_size:
        parser.error(f"--batch-size {args.batch_size}: expected a divisor of {TILES_PER_EPOCH}")
    if args.resume:
        given = [key for key in vars(args) if getattr(args, key) != parser.get_default(key)]
        others = ", ".join(f"--{key.replace('_', '-')}" for key in given if key != "resume")
        if others:
            parser.error(f"--resume goes on with the run's own flags; leave out {others}")
    elif args.init:
        for key in ("filters", "dilation"):
            if getattr(args, key):
                parser.error(f"--init takes filters and dilation from its run; leave out --{key}")
    elif args.val_slices == "none" and not args.threshold:
        parser.error("--val-slices none leaves nothing to choose the threshold on; add --threshold")
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
    import tiles
    import unet
    from files import write_json
    from finish import finish
    from slices import UserError, check_pixel_size

    record = None
    check_pixel_size(args.pixel_size)
    if args.resume:
        folder = runs.find_run(args.resume)
        record = runs.read_run(folder)
        if record["finished"]:
            raise UserError(
                f"{folder}: this training is finished; leave out --resume for a new one"
            )
        args = argparse.Namespace(**{**vars(parse_args([])), **record["flags"]})

    dtype, device = unet.choose_dtype()
    print(f"Device: {device}")
    if not tf.config.list_physical_devices("GPU"):
        print("No GPU is visible; with an NVIDIA one: pip install -r requirements/gpu.txt")
        tf.config.experimental.enable_op_determinism()  # on a GPU it would cost speed
    keras.utils.set_random_seed(args.seed)

    initial = None
    if args.init and (record is None or not (folder / fit.CHECKPOINT).exists()):
        initial, initial_record = _load_initial(args)
    data_set = data.find_data_set(args.data, runs.OUTPUTS / runs.DRAWN)
    pairs = data.load_pairs(data_set)
    training, held_out = data.split(pairs, args.val_slices)
    held = "none held out"
    if held_out.names:
        held = f"{len(held_out.names)} held out ({held_out.names[0]} to {held_out.names[-1]})"
    print(f"Data: {data_set.root}, {len(training.names)} slices to train on, {held}")
    if record is None:
        settle_schedule(args, initial is not None, data_set.is_synthetic)
    if tiles.TILE % 2 ** (len(args.filters) - 1):
        raise UserError(
            f"--filters: {len(args.filters)} stages do not fit a tile of {tiles.TILE} px"
        )
    network = unet.with_dtype(initial or unet.build_unet(args.filters, args.dilation), dtype)
    begun = f", starting from {args.init}" if args.init else ""
    print(
        f"Network: {'-'.join(map(str, args.filters))}, {network.count_params():,} parameters{begun}"
    )

    if record is None:
        if initial and not (held_out.names or args.threshold):
            args.threshold = initial_record["threshold"]
        args.pixel_size = args.pixel_size or data_set.pixel_size()
        folder = runs.make_folder(args.output, runs.OUTPUTS / f"{datetime.now():%Y%m%d-%H%M%S}")
        record = {
            "format": runs.FORMAT,
            "finished": False,
            "started": runs.now(),
            "synthetic": data_set.is_synthetic,
            "flags": {**vars(args), "data": data_set.source, "resume": None},
            "parameters": network.count_params(),
            "pixel_size": args.pixel_size,
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
        tiles.TileSampler(training.images, training.labels, args.seed),
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
        **runs.describe_versions(),
    }
    finish(folder, record, network, held_out, history)
    if not record["finished"]:
        print(f"Interrupted after epoch {len(history)} of {args.epochs}. Go on with: {resume}")
        return 130
    (folder / fit.CHECKPOINT).unlink(missing_ok=True)
    return 0


def settle_schedule(args: argparse.Namespace, starts_from_run: bool, synthetic: bool) -> None:
    """Fills in the flags whose defaults depend on the data, the network and where it starts."""
    import unet

    epochs = EPOCHS_INIT if starts_from_run else EPOCHS_SYNTHETIC if synthetic else EPOCHS
    args.epochs = args.epochs or epochs
    args.batch_size = args.batch_size or BATCH_SIZE
    args.filters = args.filters or list(unet.FILTERS)
    deep = len(args.filters) >= DEEP
    rate = LEARNING_RATE_LOW if starts_from_run or deep else LEARNING_RATE
    args.learning_rate = args.learning_rate or rate
    args.dilation = args.dilation or (DILATION_DEEP if deep else DILATION)


def _load_initial(args: argparse.Namespace) -> tuple:
    """Returns the network and record of --init, whose filters and dilation become the flags."""
    import runs
    from inference import load_network
    from slices import UserError

    folder = runs.find_run(args.init)
    if not folder.is_dir():
        raise UserError(f"{folder}: a bare model; --init needs the folder of a finished run")
    record = runs.read_run(folder)
    args.filters, args.dilation = record["flags"]["filters"], record["flags"]["dilation"]
    return load_network(folder / "model.keras"), record


def _seed(text: str) -> int:
    """Returns a whole number that every random generator takes."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**32, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
