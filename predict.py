"""Turns EM slices into binary masks: 0 = membrane, 255 = cell interior.

python predict.py FOLDER             every slice in a folder
python predict.py STACK.tif          every page of a stack; some files, such as a/*.png, work too
python predict.py VOLUME.zarr        an OME-Zarr or Zarr of any size, block by block
python predict.py                    the test slices of the data set the model was trained on

The model is the newest finished run in outputs/ that was trained on real slices; without one, that
which ships with the repository, outputs/pretrained. --model large is its larger sister.
"""

import argparse
import hashlib
import sys
import time
from functools import partial
from pathlib import Path

from membrane import cli

RECORDED = (  # flags that masks depend on, or what is written beside them
    *("threshold", "plain", "neighbours", "tta", "pixel_size", "channel", "invert"),
    *("probability", "labels"),
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = cli.Parser(prog="predict.py", description=__doc__)
    add = parser.add_argument
    input_help = (
        "of slices: PNG, TIFF, JPEG, BMP, MRC, DM3, DM4, NPY, HDF5 (FILE.h5:/array); or such "
        "files, or a Zarr"
    )
    add("input", nargs="*", type=cli.path, metavar="FOLDER", help=input_help)
    model_help = "a run's folder or name in outputs/, or a .keras file"
    add("--model", type=cli.text, metavar="RUN", help=model_help)
    add("--output", type=cli.text, metavar="DIR", help="default: a new folder in outputs/masks/")
    threshold_help = (
        "on P(interior), between 0 and 1, of the whole border between two cells: above it they are "
        "one; default: the run's own"
    )
    add("--threshold", type=cli.fraction, metavar="T", help=threshold_help)
    plain_help = (
        "a mask is P > T pixel by pixel, as most programs have it: quicker, but one missing pixel "
        "of membrane joins two cells; needs --threshold, best 0.8 to 0.95"
    )
    add("--plain", action="store_true", help=plain_help)
    pixel_help = (
        "of the slices; they are resampled to the model's pixel size and the masks back; default: "
        "what the files say, else as they are"
    )
    add("--pixel-size", type=cli.positive(float), metavar="NM", help=pixel_help)
    channel_help = "the micrograph, where a file has several channels; all: they are slices"
    add("--channel", type=cli.channel, metavar="N", help=channel_help)
    add("--invert", action="store_true", help="for slices with bright membranes on dark cells")
    pixels_help = "refuse slices of more than this many pixels; default: 2**30"
    add("--max-pixels", type=cli.positive(int), default=2**30, metavar="N", help=pixels_help)
    add("--probability", action="store_true", help="also write P(interior) as 8-bit images")
    labels_help = (
        "also number the cells, one number through all slices: TIFF labels for Fiji and napari, "
        "CSV tables of cells and objects"
    )
    add("--labels", action="store_true", help=labels_help)
    thickness_help = "of a slice, for the volumes of --labels in cubic micrometres"
    add("--slice-thickness", type=cli.positive(float), metavar="NM", help=thickness_help)
    submission_help = "also write P(interior) as 32-bit pages of one TIFF, as the challenge asked"
    add("--submission", type=cli.path, metavar="FILE.tif", help=submission_help)
    corrections_help = "apply what was corrected on the page of a prediction of the same slices"
    add("--corrections", type=cli.path, metavar="FILE.json", help=corrections_help)
    tta_help = "average 8 flips and rotations: better masks, 8 times the work; default: the run's"
    add("--tta", action=argparse.BooleanOptionalAction, help=tta_help)
    neighbours_help = (
        "decide each slice by itself; else the cells of the slices before and after it, where they "
        "agree with it, have a say in which cells touch"
    )
    add("--no-neighbours", dest="neighbours", action="store_false", help=neighbours_help)
    zarr_help = "write one OME-Zarr instead of images; always so where the input is a Zarr"
    add("--zarr", action="store_true", help=zarr_help)
    scheduler_help = "of a running Dask cluster, such as tcp://host:8786; implies --zarr"
    add("--scheduler", type=cli.text, metavar="ADDRESS", help=scheduler_help)
    dry_help = "only report how a volume would be predicted: blocks, bytes, time; implies --zarr"
    add("--dry-run", action="store_true", help=dry_help)
    args = parser.parse_args(argv)
    args.zarr |= bool(args.scheduler) or args.dry_run
    args.neighbours &= not args.plain
    if args.slice_thickness and not args.labels:
        parser.error("--slice-thickness: is for the volumes of --labels")
    if args.plain and not args.threshold:
        parser.error("--plain: a run's own threshold is not meant for it; add --threshold, say 0.9")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(predict, parse_args(argv), "predict.py")


def predict(args: argparse.Namespace) -> int:
    """Loads the run, settles the flags that it has defaults for, then predicts slices or a volume.

    Returns:
        The exit status.
    """
    cli.start_tensorflow()
    workers = cli.share_cores()
    from membrane import runs
    from membrane.errors import UserError
    from membrane.inference.corrections import checksum
    from membrane.inference.loading import load_network
    from membrane.inference.precision import choose_precision, with_dtype
    from membrane.inference.predictor import Predictor
    from membrane.io.readers import is_zarr

    path, record, model_path = runs.open_run(args.model)
    network = load_network(model_path)
    runs.settle_flags(args, path, record)
    averaged = ", averaging 8 flips and rotations" if args.tta else ""
    ships = " (ships with this repository)" if path == runs.OUTPUTS / runs.PRETRAINED else ""
    print(f"Model: {runs.display_path(path)}{ships}, threshold {args.threshold:g}{averaged}")
    if record.get("synthetic"):
        print(f"Note: {runs.SYNTHETIC_NOTE}")
    precision, device = choose_precision()
    try:
        predictor = Predictor(with_dtype(network, precision), args.tta, workers=workers)
    except UserError as error:
        raise UserError(f"{model_path}: {error}") from None
    if predictor.sees_whole_slices:
        print("Note: a pixel of its output depends on the whole slice, so slices are not tiled")
    args.input = args.input or [find_test_slices(record)]
    metadata = {
        "finished": False,
        "input": [str(path.resolve()) for path in args.input],
        "model": runs.display_path(path),
        "model_sha256": hashlib.sha256(model_path.read_bytes()).hexdigest(),
        "model_is_synthetic": record.get("synthetic", False),
        "corrections": args.corrections and checksum(args.corrections),
        **{name: getattr(args, name) for name in RECORDED},
    }
    if not (args.zarr or any(map(is_zarr, args.input))):
        return predict_slices(args, predictor, workers, record, metadata, device)
    if args.submission:
        raise UserError("--submission: of slices and stacks, not of a Zarr")
    if len(args.input) > 1:
        raise UserError("a volume is one folder, file or Zarr; name one")
    needed = ("zarr", "ome_zarr", "distributed") if args.scheduler else ("zarr", "ome_zarr")
    cli.check_installed(needed, "requirements/cluster.txt")
    from membrane.volumes.prediction import predict_volume

    about = record, metadata, device
    return predict_volume(args, predictor, workers, model_path, *about, threshold_map)


def predict_slices(args, predictor, workers: int, record: dict, metadata: dict, device: str) -> int:
    """Reads, predicts and saves every slice of a folder or stack; returns the exit status."""
    from membrane import folders, runs
    from membrane.errors import UserError
    from membrane.inference import batch, outputs, sources
    from membrane.inference.corrections import read_corrections
    from membrane.inference.neighbours import REACH
    from membrane.inference.objects import number_objects
    from membrane.io.normalization import make_normalizer, sample_pixels, to_grey
    from membrane.io.tissue import fill_blank, find_blank
    from membrane.io.writers import open_maps

    if args.submission and args.submission.exists():
        raise UserError(f"{args.submission}: exists, and nothing is overwritten")
    if args.submission:
        folders.check_not_in(args.submission, args.input, "--submission")
    files = sources.list_files(args.input)
    usable, failed = sources.find_sources(files, args.max_pixels, args.channel)
    corrected = read_corrections(args.corrections, sources.list_keys(usable))
    folder = folders.claim_output(args.output, args.input, metadata, files)
    print(f"Device: {device}\nMasks: {runs.display_path(folder)}", flush=True)
    outputs.note_skipped(args.input)
    total, began = sum(source.pages for source in usable), time.monotonic()
    pixels = sources.count_pixels(usable, args.max_pixels, args.channel)
    config = batch.PredictionConfig(
        pixel_size=record.get("pixel_size"),
        override_pixel_size=args.pixel_size and (args.pixel_size, args.pixel_size),
        max_pixels=args.max_pixels,
        channel=args.channel,
        invert=args.invert,
        probability=args.probability,
        submission=bool(args.submission),
        labels=args.labels,
        together=args.neighbours,
        thumbnail_pages=frozenset(outputs.choose_evenly(total, outputs.SHEET_SLICES)),
        viewer_pages=frozenset(outputs.choose_listed(total, pixels)),
        corrections=corrected,
        polarity_sample=frozenset(outputs.choose_evenly(total, outputs.POLARITY_SAMPLE)),
    )

    def predict_slice(page: batch.Page) -> batch.Page:
        image, scaling = to_grey(page.image), record.get("scaling", {})
        sample, page.blank = sample_pixels(image), find_blank(image)
        page.image = image = fill_blank(image, page.blank, sample)
        page.normalize = make_normalizer(sample, **scaling, invert=args.invert)
        if page.index in needed or args.submission:  # else an interrupted command has left it
            page.probability = predictor(image, page.scale, page.normalize)
            if page.blank is not None:
                page.probability[page.blank] = 0.0
        if page.index in needed:
            page.segments = threshold_map(page.probability, args.threshold, args.plain)
        return page

    needed = sources.find_needed(usable, folder, REACH if args.neighbours else 0)
    with (
        folders.removed_if_nothing_is_done(folder),
        open_maps(args.submission, total) as submit,
        batch.open_threads(workers, predictor) as pool,
    ):
        pages = batch.read_slices(usable, folder, config)
        pages = batch.in_flight(predict_slice, pages, pool, workers)
        pages = batch.close_gaps(pages, args.threshold, config)
        pages = batch.in_flight(partial(batch.finish_page, config=config), pages, pool, workers)
        membrane, sheet, shown = outputs.write_masks(pages, total, folder, config, failed, submit)
        if args.submission and failed:
            fault = next(iter(failed.values()))
            raise UserError(f"{args.submission}: not written, pages would lack; {fault}")
    if args.labels and membrane:
        size, thickness = config.override_pixel_size, args.slice_thickness
        outputs.note_objects(number_objects(folder, usable, size, thickness))
    seconds = time.monotonic() - began
    if sheet:
        outputs.show(folder, sheet, shown, len(membrane), metadata)
    if membrane:
        # what failed may be mended: the same command then goes on
        done = [file for file in files if file.name not in failed]
        metadata["input_state"] = folders.fingerprint(done)
        outputs.finish_metadata(folder, metadata, device, membrane, failed)
    return outputs.report(folder, membrane, failed, seconds)


def threshold_map(probability, threshold: float, plain: bool = False, region=None):
    """Turns P(interior) into a mask, whose gaps are closed when the neighbouring slices are there.

    The thresholds of runs are calibrated for it as it stands.

    Args:
        probability: float32 (height, width) in [0, 1].
        threshold: on P(interior), in (0, 1): of each pixel if `plain`, else of whole borders.
        plain: whether single pixels decide, and no gap is closed.
        region: rows and columns of the map that a mask is wanted of, as `segment` takes them.

    Returns:
        `Segments` of the region: the mask, and the borders where membrane may be missing.
    """
    from membrane.inference.masks import FOREGROUND_THRESHOLD, segment, unsegmented

    mask = probability > (threshold if plain else FOREGROUND_THRESHOLD)
    return unsegmented(mask, region) if plain else segment(mask, probability, region)


def find_test_slices(record: dict) -> Path:
    """Returns the test slices of the data set that a run was trained on."""
    import data
    from membrane import runs
    from membrane.errors import UserError

    source = record.get("flags", {}).get("data")
    drawn = Path(record.get("data_root", runs.OUTPUTS / runs.SYNTHETIC_SLICES))
    try:
        data_set = data.find_data_set(source, drawn)
    except UserError as error:
        why = str(error).partition(";")[0]
        raise UserError(f"name a folder of slices: python predict.py FOLDER ({why})") from None
    if data_set.test is None:
        raise UserError(f"{data_set.root}: has no test slices; name a folder of slices to predict")
    return data_set.test


if __name__ == "__main__":
    sys.exit(main())
