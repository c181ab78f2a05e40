"""Turns EM slices into binary masks: 0 = membrane, 255 = cell interior.

python predict.py FOLDER             every slice in a folder
python predict.py STACK.tif          every page of a stack; one image works too
python predict.py VOLUME.zarr        an OME-Zarr or Zarr of any size, block by block
python predict.py                    the test slices of the data set the model was trained on

The model is the newest finished run in outputs/ that was trained on real slices; without one, that
which ships with the repository, outputs/pretrained. --model large is its larger sister.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import shutil
import sys
import time
from pathlib import Path

import doors

SHEET_SLICES, PAGE_SLICES = 30, 1000  # at most, evenly chosen: on the contact sheet, on the page
LOOKED_AT = 5  # slices that are tested for bright membranes


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="predict.py", description=__doc__)
    add = parser.add_argument
    input_help = "of PNG, TIFF, JPEG or BMP slices, one such file, or a Zarr"
    add("input", nargs="?", type=doors.path, metavar="FOLDER", help=input_help)
    model_help = "a run's folder or name in outputs/, or a .keras file"
    add("--model", type=doors.text, metavar="RUN", help=model_help)
    add("--output", type=doors.text, metavar="DIR", help="default: a new folder in outputs/masks/")
    threshold_help = "on P(interior), between 0 and 1; default: the run's own"
    add("--threshold", type=doors.fraction, metavar="T", help=threshold_help)
    plain_help = (
        "a mask is P > T pixel by pixel, as most programs have it: quicker, but one missing pixel "
        "of membrane joins two cells; needs --threshold, best 0.8 to 0.95"
    )
    add("--plain", action="store_true", help=plain_help)
    pixel_help = (
        "of the slices; they are brought to the model's pixel size and the masks back; default: "
        "what a TIFF says, else as they are"
    )
    add("--pixel-size", type=doors.positive(float), metavar="NM", help=pixel_help)
    add("--invert", action="store_true", help="for slices with bright membranes on dark cells")
    pixels_help = "refuse slices of more than this many pixels; default: 2**30"
    add("--max-pixels", type=doors.positive(int), default=2**30, metavar="N", help=pixels_help)
    add("--probability", action="store_true", help="also write P(interior) as 8-bit images")
    labels_help = "also number the cells: TIFF labels for Fiji and napari, and a CSV of the cells"
    add("--labels", action="store_true", help=labels_help)
    submission_help = "also write P(interior) as 32-bit pages of one TIFF, as the challenge asked"
    add("--submission", type=doors.path, metavar="FILE.tif", help=submission_help)
    tta_help = "average 8 flips and rotations: better masks, 8 times the work; default: the run's"
    add("--tta", action=argparse.BooleanOptionalAction, help=tta_help)
    zarr_help = "write one OME-Zarr instead of images; always so where the input is a Zarr"
    add("--zarr", action="store_true", help=zarr_help)
    scheduler_help = "of a running Dask cluster, such as tcp://host:8786; implies --zarr"
    add("--scheduler", type=doors.text, metavar="ADDRESS", help=scheduler_help)
    dry_help = (
        "only say how a volume would be predicted: blocks, bytes, and how long; implies --zarr"
    )
    add("--dry-run", action="store_true", help=dry_help)
    args = parser.parse_args(argv)
    args.zarr |= bool(args.scheduler) or args.dry_run
    if args.plain and not args.threshold:
        parser.error("--plain: a run's own threshold is not meant for it; add --threshold, say 0.9")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(predict, parse_args(argv), "predict.py")


def predict(args: argparse.Namespace) -> int:
    """Chooses model and settings, then predicts files or a volume."""
    doors.import_tensorflow_quietly()
    workers = doors.share_cores()
    import runs
    import slices
    import unet
    from inference import Predictor, load_network

    path, record, model_path = runs.open_run(args.model)
    network = load_network(model_path)
    args.tta = record.get("tta", True) if args.tta is None else args.tta
    args.threshold = args.threshold or record.get(
        "threshold" if args.tta else "threshold_without_tta"
    )
    if args.threshold is None:
        raise slices.UserError(f"{path}: has no calibrated threshold; give --threshold T")
    slices.check_pixel_size(args.pixel_size)
    if args.pixel_size and not record.get("pixel_size"):
        raise slices.UserError(
            f"{path}: does not know the pixel size it was trained at; leave out --pixel-size, or "
            "train with train.py --pixel-size"
        )
    averaged = ", averaging 8 flips and rotations" if args.tta else ""
    ships = " (ships with this repository)" if path == runs.OUTPUTS / runs.PRETRAINED else ""
    print(f"Model: {runs.shown(path)}{ships}, threshold {args.threshold:g}{averaged}")
    if record.get("synthetic"):
        print(f"Note: {runs.SYNTHETIC}")
    dtype, device = unet.choose_dtype()
    predictor = Predictor(unet.with_dtype(network, dtype), args.tta, workers=workers)
    args.input = args.input or _test_slices(record)
    about = {
        "finished": False,
        "input": str(args.input.resolve()),
        "model": runs.shown(path),
        "model_sha256": hashlib.sha256(model_path.read_bytes()).hexdigest(),
        "model_is_synthetic": record.get("synthetic", False),
        "threshold": args.threshold,
        "plain": args.plain,
        "tta": args.tta,
        "pixel_size": args.pixel_size,
        "invert": args.invert,
        "probability": args.probability,
        "labels": args.labels,
    }
    if args.zarr or slices.is_zarr(args.input):
        if args.labels or args.submission:
            raise slices.UserError("--labels, --submission: of slices and stacks, not of a Zarr")
        return _predict_volume(args, predictor, workers, model_path, record, about, device)
    return _predict_files(args, predictor, workers, record, about, device)


def _predict_files(args, predictor, workers: int, record: dict, about: dict, device: str) -> int:
    """Predicts every file, writes masks, record and contact sheet."""
    import files
    import runs
    import slices
    from figures import draw_contact_sheet
    from pipeline import Recipe, find_files, predict_pages
    from results import note_left_out, report, show_page, write_masks

    if args.submission and args.submission.exists():
        raise slices.UserError(f"{args.submission}: exists, and nothing is overwritten")
    sources, failed = find_files(args.input, args.max_pixels)
    about["input_state"] = runs.fingerprint([one.file for one in sources])
    folder = runs.claim_output(args.output, args.input, about)
    print(f"Device: {device}\nMasks: {runs.shown(folder)}", flush=True)
    note_left_out(args.input)
    began = time.monotonic()
    total = sum(one.pages for one in sources)
    recipe = Recipe(
        predictor=predictor,
        threshold=args.threshold,
        plain=args.plain,
        scaling=record.get("scaling", {}),
        pixel_size=record.get("pixel_size"),
        given_size=args.pixel_size,
        invert=args.invert,
        probability=args.probability,
        submission=bool(args.submission),
        labels=args.labels,
        max_pixels=args.max_pixels,
        on_sheet=frozenset(_choose(total, SHEET_SLICES)),
        on_page=frozenset(_choose(total, PAGE_SLICES)),
        looked_at=frozenset(_choose(total, LOOKED_AT)),
    )
    pages = predict_pages(sources, folder, recipe, workers)
    with files.writing_maps(args.submission, total) as submit:
        membrane, sheet, shown = write_masks(pages, total, folder, recipe, failed, submit)
        if args.submission and failed:
            raise slices.UserError(f"{args.submission}: not written, pages would lack; {failed[0]}")
    seconds = time.monotonic() - began
    if sheet:
        draw_contact_sheet(folder / runs.ABOUT / "contact_sheet.png", *zip(*sheet, strict=True))
        show_page(folder, shown, len(membrane), about)
    about |= {"finished": True, "device": device, "membrane": membrane, "failed": failed}
    files.write_json(folder / runs.ABOUT / "prediction.json", about)
    return report(folder, membrane, failed, seconds)


def _predict_volume(
    args, predictor, workers: int, model: Path, record: dict, about: dict, device: str
) -> int:
    """Predicts a volume block by block, writes OME-Zarr, record and contact sheet."""
    import files
    import slices

    try:
        import blocks
        import cluster
        import jobs
        import volume
    except ModuleNotFoundError as error:
        raise slices.UserError(
            f"{args.input}: volumes need {error.name}, too; pip install -r requirements/cluster.txt"
        ) from None
    import runs
    from figures import draw_contact_sheet, make_thumbnail, make_views
    from pipeline import find_scale
    from results import (
        describe_scale,
        note_inverted,
        report,
        show_page,
        show_progress,
        write_views,
    )

    source = volume.open_volume(args.input, args.max_pixels)
    scale, size = find_scale(args.pixel_size or source.voxel[2], record.get("pixel_size"))
    source = dataclasses.replace(source, voxel=(source.voxel[0], size, size))
    block = jobs.choose_block(source.shape, scale, source.chunk_depth)
    about |= {"input_state": runs.fingerprint(source.files), "shape": source.shape, "block": block}
    about = json.loads(json.dumps(about))  # as it will be read again: lists for tuples
    job = jobs.Job(
        source=args.input.resolve(),
        state=about["input_state"],
        model=model.resolve(),
        folder=Path(),
        name=runs.name_of(args.input),
        max_pixels=args.max_pixels,
        threshold=args.threshold,
        plain=args.plain,
        tta=args.tta,
        scaling=tuple(record.get("scaling", {}).items()),
        scale=scale,
        invert=args.invert,
        probability=args.probability,
        block=block,
        levels=volume.plan_levels(source.shape, source.voxel),
    )
    if args.dry_run:
        print("\n".join(blocks.describe(job, source, predictor, workers)))
        return 0
    folder = runs.claim_output(args.output, args.input, about)
    print(f"Device: {args.scheduler or device}\nMasks: {runs.shown(folder)}", flush=True)
    if scale != 1.0:
        print(f"Note: {describe_scale(args.input.name, size, record['pixel_size'])}")
    job = dataclasses.replace(job, folder=folder.resolve())
    looked_at = _choose(source.shape[0], LOOKED_AT)
    inverted = [f"z {z}" for z in looked_at if blocks.looks_inverted(job, source, z)]
    note_inverted(inverted, looked_at, args.invert)
    began = time.monotonic()
    with show_progress(math.prod(source.shape) / 1e6, " Mpixel") as progress:
        membrane, failed, formats = cluster.predict_volume(
            job, source, predictor, workers, args.scheduler, progress.update
        )
    seconds = time.monotonic() - began
    if len(formats) > 1:
        both = " and ".join(sorted(formats))
        print(
            f"Note: parts were computed in {both}, by workers of different kinds: masks differ in "
            "about one pixel of a thousand from those of one kind alone"
        )
    if not failed:
        chosen = _choose(source.shape[0], SHEET_SLICES)
        images, masks = zip(*(blocks.show(job, source, z) for z in chosen), strict=True)
        small = [[make_thumbnail(one) for one in parts] for parts in (images, masks)]
        captions = [f"z {z}" for z in chosen]
        draw_contact_sheet(folder / runs.ABOUT / "contact_sheet.png", captions, *small)
        shown = [
            write_views(folder, make_views(image, mask), z, f"z {z}", membrane[f"z {z}"])
            for z, image, mask in zip(chosen, images, masks, strict=True)
        ]
        show_page(folder, shown, len(membrane), about)
        about |= {"finished": True, "device": device, "membrane": membrane, "failed": failed}
        files.write_json(folder / runs.ABOUT / "prediction.json", about)
        shutil.rmtree(job.markers, ignore_errors=True)
    else:
        print("Note: once that is mended, the same command does the rest")
    return report(folder, membrane, failed, seconds)


def _choose(total: int, count: int) -> list[int]:
    """Returns the numbers of so many slices, or of all, evenly chosen."""
    count = min(count, total)
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def _test_slices(record: dict) -> Path:
    """Returns the test slices of the data set that a run was trained on."""
    import data
    import runs
    from slices import UserError

    source = record.get("flags", {}).get("data")
    data_set = data.find_data_set(source, runs.OUTPUTS / runs.DRAWN)
    if data_set.test is None:
        raise UserError(f"{data_set.root}: has no test slices; name a folder of slices to predict")
    return data_set.test


if __name__ == "__main__":
    sys.exit(main())
