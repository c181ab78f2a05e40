"""Trains the U-Net on labelled EM slices and leaves a run in outputs/.

python train.py                      ISBI-2012 from Kaggle
python train.py --data MY_FOLDER     a copy of it, or your own labelled slices
python train.py --data synthetic     synthetic slices, to try everything without Kaggle
python train.py --data MINE --init pretrained   a few labelled slices: from that run's weights
python train.py --resume RUN         goes on with an interrupted training
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from membrane import cli

EPOCHS, EPOCHS_SYNTHETIC, EPOCHS_INIT = 240, 30, 30
LEARNING_RATE, LEARNING_RATE_LOW = 1e-2, 3e-3  # low: with --init, and for deep networks
DILATION, DILATION_DEEP = 2, 1  # a deep network sees far enough without
DEEP = 4  # stages, the bottleneck counted
TILES_PER_EPOCH, BATCH_SIZE = 96, 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags; tunables have their defaults here and nowhere else."""
    parser = cli.Parser(prog="train.py", description=__doc__)
    add, positive = parser.add_argument, cli.positive
    data_help = "kaggle, synthetic, or a folder; default: %(default)s"
    add("--data", type=cli.text, default="kaggle", help=data_help)
    init_help = "start from this run's weights, filters and dilation; a name in outputs/ or a path"
    add("--init", type=cli.text, metavar="RUN", help=init_help)
    epochs_help = (
        f"of {TILES_PER_EPOCH} tiles; default: {EPOCHS} ({EPOCHS_SYNTHETIC} on synthetic, "
        f"{EPOCHS_INIT} with --init)"
    )
    add("--epochs", type=positive(int), metavar="N", help=epochs_help)
    add("--batch-size", type=positive(int), metavar="N", help=f"tiles; default: {BATCH_SIZE}")
    rate_help = (
        f"peak learning rate; default: {LEARNING_RATE} ({LEARNING_RATE_LOW} with --init, or with "
        f"{DEEP} --filters or more)"
    )
    add("--learning-rate", type=positive(float), metavar="RATE", help=rate_help)
    filters_help = "of each encoder stage and of the bottleneck; default: 16 32 64"
    add("--filters", type=positive(int), nargs="+", metavar="N", help=filters_help)
    dilation_help = (
        f"of the bottleneck: N, then N squared; 1 sees less far; default: {DILATION} "
        f"({DILATION_DEEP} with {DEEP} --filters or more)"
    )
    add("--dilation", type=positive(int), metavar="N", help=dilation_help)
    ignore_help = "value in labels of pixels without one; default: -1, NaN, and 255 beside 0 and 1"
    add("--ignore", type=int, metavar="N", help=ignore_help)
    val_help = "slices to hold out, counted from 1 in natural order, or none; default: a fifth"
    add("--val-slices", metavar="A-B", help=val_help)
    threshold_help = "do not choose the threshold on the held-out slices, take this one"
    add("--threshold", type=cli.fraction, metavar="T", help=threshold_help)
    pixel_help = "of the slices, for predict.py to match others to; default: what their files say"
    add("--pixel-size", type=positive(float), metavar="NM", help=pixel_help)
    add("--seed", type=cli.seed, default=0, metavar="N", help="random seed; default: %(default)s")
    add("--output", type=cli.text, metavar="DIR", help="default: a new folder in outputs/")
    add("--resume", type=cli.text, metavar="RUN", help="go on with this run, with its own flags")
    args = parser.parse_args(argv)
    if args.filters and len(args.filters) < 2:
        parser.error("--filters: expected two numbers or more, the last one for the bottleneck")
    if args.batch_size and TILES_PER_EPOCH % args.batch_size:
        parser.error(f"--batch-size {args.batch_size}: expected a divisor of {TILES_PER_EPOCH}")
    if args.resume:
        given = [key for key in vars(args) if getattr(args, key) != parser.get_default(key)]
        others = ", ".join(f"--{key.replace('_', '-')}" for key in given if key != "resume")
        if others:
            parser.error(f"--resume goes on with the run's own flags; leave out {others}")
    elif args.init and (args.filters or args.dilation):
        parser.error("--init takes --filters and --dilation from its run; leave them out")
    elif args.val_slices == "none" and not (args.threshold or args.init):
        parser.error("--val-slices none leaves nothing to choose the threshold on; add --threshold")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(train, parse_args(argv), "train.py")


def train(args: argparse.Namespace) -> int:
    """Loads data, builds, fits and calibrates a network, saves the run; returns the exit status."""
    cli.start_tensorflow(training=True)
    import keras
    import tensorflow as tf

    import data
    from membrane import folders, runs
    from membrane.errors import UserError
    from membrane.inference.fused_unet import fused_unet, has_dilated_gradient, is_dilated
    from membrane.inference.loading import check_untrained, load_network
    from membrane.inference.precision import choose_precision, with_dtype
    from membrane.inference.receptive_field import stride_and_radius
    from membrane.io.pixel_size import check_pixel_size
    from membrane.io.writers import write_json
    from membrane.training import augmentation, calibration, callbacks, muon
    from unet import build_unet

    check_pixel_size(args.pixel_size)
    folder, record = runs.open_unfinished(args.resume) if args.resume else (None, None)
    if record:
        vars(args).update(record["flags"])
    precision, device = choose_precision()
    print(f"Device: {device}")
    if not tf.config.list_physical_devices("GPU"):
        print("No GPU is visible; with an NVIDIA one: pip install -r requirements/gpu.txt")
        tf.config.experimental.enable_op_determinism()  # on a GPU it would cost speed
    keras.utils.set_random_seed(args.seed)

    drawn = (Path(args.output).parent if args.output else runs.OUTPUTS) / runs.SYNTHETIC_SLICES
    data_set = data.find_data_set(args.data, Path((record or {}).get("data_root", drawn)))
    pairs = data.load_pairs(data_set, args.ignore)
    training, held_out = data.hold_out(pairs, args.val_slices)
    initial, origin = None, {}
    if args.init:
        path, origin, model_path = runs.open_run(args.init)
        if not origin:
            raise UserError(f"{path}: a bare model; --init needs the folder of a finished run")
        initial = load_network(model_path)
        args.filters, args.dilation = origin["flags"]["filters"], origin["flags"]["dilation"]
        args.init = str(path.resolve())  # for --resume, from wherever
    resolve_defaults(args, data_set.is_synthetic)
    held = " to ".join(dict.fromkeys([*held_out.names[:1], *held_out.names[-1:]])) or "none"
    print(f"Data: {data_set.root}, {len(training.names)} slices to train on, held out: {held}")

    network = initial or check_untrained(build_unet(args.filters, args.dilation), "unet.py")
    network = with_dtype(network, precision)
    begun = f", starting from {runs.display_path(path)}" if args.init else ""
    filters = "-".join(map(str, args.filters))
    print(f"Network: {filters}, {network.count_params():,} parameters{begun}")
    tile = augmentation.TILE
    if tile % stride_and_radius(network)[0]:
        raise UserError(f"--filters: {len(args.filters)} stages do not fit a tile of {tile} px")
    steps = TILES_PER_EPOCH // args.batch_size
    falling = max(1, (args.epochs - 1) * steps)  # after an epoch of warm-up
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, falling, alpha=0.01, warmup_target=args.learning_rate, warmup_steps=steps
    )
    model = fused_unet(network)  # the same function of the same weights, evaluated faster
    if model is network and is_dilated(network) and not has_dilated_gradient():
        why = "TensorFlow cannot train this network's dilated convolutions on this CPU"
        raise UserError(f"{why}; train it without: --dilation 1")
    # a metric that has its variables already: else TensorFlow would trace the step twice
    iou = keras.metrics.MeanMetricWrapper(callbacks.membrane_iou, name="membrane_iou")
    model.compile(optimizer=muon.Muon(schedule), loss="binary_crossentropy", metrics=[iou])

    if record is None:
        if not held_out.names:
            args.threshold = args.threshold or origin.get("threshold")
        args.pixel_size = args.pixel_size or data_set.pixel_size
        if not (args.pixel_size or data_set.is_synthetic):
            unknown = "the slices' pixel size is not known, so predict.py will resample none"
            print(f"Note: {unknown}; --pixel-size NM says it (of ISBI-2012: {data.PIXEL_SIZE:g})")
        new = runs.OUTPUTS / f"{datetime.now():%Y%m%d-%H%M%S}"
        folder = folders.make_folder(args.output, new)
        record = {
            "format": runs.FORMAT,
            "finished": False,
            "started": runs.now(),
            "synthetic": data_set.is_synthetic,
            "flags": {**vars(args), "data": data_set.source, "resume": None},
            "pixel_size": args.pixel_size,
            "data_root": str(data_set.root.resolve()),
            "train_slices": training.names,
            "val_slices": held_out.names,
            "parameters": network.count_params(),
            "data_checksum": pairs.checksum(),
        }
        write_json(folder / "run.json", record)
    elif record["data_checksum"] != pairs.checksum():
        raise UserError(f"{data_set.root}: not the slices that {folder} has been trained on")
    history = callbacks.restore_checkpoint(folder, model)
    print(f"Run: {runs.display_path(folder)}", flush=True)

    numbers = range(len(history) * TILES_PER_EPOCH, args.epochs * TILES_PER_EPOCH)
    try:
        if numbers:
            model.fit(
                data.tiles(training, numbers, args.batch_size, args.seed),
                initial_epoch=len(history),
                epochs=args.epochs,
                steps_per_epoch=steps,
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[
                    callbacks.Validation(network, held_out),
                    callbacks.Checkpoint(folder, history),
                ],
            )
    except KeyboardInterrupt:
        history = callbacks.restore_checkpoint(folder, model)
    resume = runs.command("train.py", "--resume", runs.display_path(folder))
    if not history:
        print(f"Interrupted before the first epoch ended. Start it again: {resume}")
        return 130
    finished = len(history) == args.epochs
    record |= {"finished": finished, "ended": runs.now(), "epochs": len(history)}
    record |= {"device": device, **runs.describe_versions()}
    prior = origin.get("threshold", 0.5)
    calibration.calibrate_and_save(folder, record, network, held_out, history, prior)
    if not finished:
        print(f"Interrupted after epoch {len(history)} of {args.epochs}. Go on with: {resume}")
        return 130
    (folder / callbacks.CHECKPOINT).unlink(missing_ok=True)
    slices = [] if data_set.test else ["FOLDER"]
    print("Next:", runs.command("predict.py", "--model", runs.display_path(folder), *slices))
    return 0


def resolve_defaults(args: argparse.Namespace, synthetic: bool) -> None:
    """Fills in the flags whose defaults depend on the data, the network and where it starts."""
    from unet import FILTERS

    epochs = EPOCHS_INIT if args.init else EPOCHS_SYNTHETIC if synthetic else EPOCHS
    args.epochs = args.epochs or epochs
    args.batch_size = args.batch_size or BATCH_SIZE
    args.filters = args.filters or list(FILTERS)
    deep = len(args.filters) >= DEEP
    rate = LEARNING_RATE_LOW if args.init or deep else LEARNING_RATE
    args.learning_rate = args.learning_rate or rate
    args.dilation = args.dilation or (DILATION_DEEP if deep else DILATION)


if __name__ == "__main__":
    sys.exit(main())
