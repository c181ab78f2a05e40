"""Turns EM slices into binary masks: 0 = membrane, 255 = cell interior.

python predict.py FOLDER             every slice in a folder
python predict.py STACK.tif          every page of a stack; one image works too
python predict.py                    the test slices of the data set the model was trained on

The model is the newest finished run in outputs/ that was trained on real slices, or --model.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import doors

ABOUT = "about"  # subfolder of the predictions: record and contact sheet
SHEET_SLICES = 30  # at most, evenly chosen
PLAUSIBLE_MEMBRANE = (0.05, 0.6)  # of a mask's pixels; beyond it the slice is probably unlike
LINE_SECONDS = 15  # between lines of progress where there is no terminal


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="predict.py", description=__doc__)
    add = parser.add_argument
    add("input", nargs="?", metavar="FOLDER", help="of PNG, TIFF, JPEG or BMP slices, or one file")
    add("--model", metavar="RUN", help="a run's folder or name in outputs/, or a .keras file")
    add("--output", metavar="DIR", help="default: a new folder in outputs/masks/")
    threshold_help = "on P(interior), between 0 and 1; default: the run's own"
    add("--threshold", type=doors.fraction, metavar="T", help=threshold_help)
    add("--probability", action="store_true", help="also write P(interior) as 8-bit images")
    tta_help = "average 8 flips and rotations: better masks, 8 times the work; default: the run's"
    add("--tta", action=argparse.BooleanOptionalAction, help=tta_help)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(predict, parse_args(argv), "predict.py")


def predict(args: argparse.Namespace) -> int:
    """Chooses the model, predicts every file, writes masks, record and contact sheet."""
    doors.import_tensorflow_quietly()
    import numpy as np
    from tqdm import tqdm

    import runs
    import slices
    import unet
    from figures import draw_contact_sheet, make_thumbnail
    from inference import Predictor, load_network

    path = runs.find_run(args.model)
    record = runs.read_run(path) if path.is_dir() else {}
    model_path = path / "model.keras" if path.is_dir() else path
    network = load_network(model_path)
    tta = record.get("tta", True) if args.tta is None else args.tta
    threshold = args.threshold or record.get("threshold" if tta else "threshold_without_tta")
    if threshold is None:
        raise slices.UserError(f"{path}: has no calibrated threshold; give --threshold T")
    averaged = ", averaging 8 flips and rotations" if tta else ""
    print(f"Model: {runs.shown(path)}, threshold {threshold:g}{averaged}")
    if record.get("synthetic"):
        print(
            "Note: trained on synthetic slices, to try the program; it knows nothing about tissue"
        )

    source = Path(args.input).expanduser() if args.input else _test_slices(record)
    files, failed = _find_files(source)
    about = {
        "input": str(source),
        "files": len(files),
        "model": runs.shown(path),
        "model_sha256": hashlib.sha256(model_path.read_bytes()).hexdigest(),
        "model_is_synthetic": record.get("synthetic", False),
        "threshold": threshold,
        "tta": tta,
        "probability": args.probability,
    }
    folder = _claim_output(args.output, source, about)
    dtype, device = unet.prepare_device()
    print(f"Device: {device}\nMasks: {runs.shown(folder)}", flush=True)

    predictor = Predictor(unet.with_dtype(network, dtype), tta)
    total = sum(pages for _, _, pages in files)
    on_sheet = set(np.linspace(0, total - 1, min(total, SHEET_SLICES)).astype(int).tolist())
    sheet, fractions, colour = [], {}, False
    live = sys.stdout.isatty()
    with tqdm(
        total=total,
        unit=" slices",
        file=sys.stdout,
        mininterval=0.1 if live else LINE_SECONDS,
        bar_format=None
        if live
        else "{n_fmt} of {total_fmt} slices, {rate_fmt}, {remaining} left\n",
    ) as progress:
        for file, target, pages in files:
            if (folder / target).exists():  # of the interrupted command that this one goes on with
                progress.update(pages)
                continue
            masks, probabilities = [], []
            try:
                for page, image in enumerate(slices.read_pages(file), start=1):
                    name = file.name if pages == 1 else f"{file.name}[{page}]"
                    if image.ndim == 3 and not colour:
                        say = progress.write if live else print
                        say(f"Note: {name} is in colour; its luminance is used")
                        colour = True
                    grey = slices.normalise(image, **record.get("scaling", {}))
                    probability = predictor(grey)
                    mask = (probability > threshold) * np.uint8(slices.INTERIOR)
                    masks.append(mask)
                    if args.probability:
                        probabilities.append(slices.to_bytes(probability))
                    fractions[name] = float((mask == 0).mean())
                    if progress.n in on_sheet:
                        sheet.append((name, make_thumbnail(grey), make_thumbnail(mask)))
                    progress.update()
            except slices.UnreadableError as error:
                failed.append(str(error))
                continue
            if probabilities:
                slices.write_pages(folder / "probability" / target, iter(probabilities))
            slices.write_pages(folder / target, iter(masks))

    if sheet:
        draw_contact_sheet(folder / ABOUT / "contact_sheet.png", *zip(*sheet, strict=True))
    about |= {"finished": True, "device": device, "membrane": fractions, "failed": failed}
    slices.write_json(folder / ABOUT / "prediction.json", about)
    return _report(folder, fractions, failed, progress.format_dict["elapsed"])


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


def _find_files(source: Path) -> tuple[list[tuple[Path, str, int]], list[str]]:
    """Returns (file, name of its mask, number of slices) for each input, and unusable files."""
    from slices import UnreadableError, UserError, count_pages, list_images

    if not source.exists():
        raise UserError(f"{source}: no such file or folder; name the slices to predict")
    files, failed, taken = [], [], {}
    for file in list_images(source) if source.is_dir() else [source]:
        try:
            pages = count_pages(file)
        except UnreadableError as error:
            failed.append(str(error))
            continue
        target = f"{file.stem}.png" if pages == 1 else f"{file.stem}.tif"
        other = taken.setdefault(target.casefold(), file)
        if other != file:
            raise UserError(
                f"{other} and {file.name} would both be written to {target}; rename one of them"
            )
        files.append((file, target, pages))
    return files, failed


def _claim_output(wanted: str | None, source: Path, about: dict) -> Path:
    """Returns the folder for the masks: new, empty, or this command's own unfinished one."""
    import runs
    from slices import UserError, write_json

    start = {"finished": False, **about}
    if wanted is not None:
        path = Path(wanted).expanduser()
        inside = source if source.is_dir() else source.parent
        if path.resolve().is_relative_to(inside.resolve()):
            raise UserError(f"{path}: lies in the input folder; name another --output")
        try:
            if json.loads((path / ABOUT / "prediction.json").read_text("utf-8")) == start:
                print(f"Going on with the unfinished masks in {path}")
                return path
        except (OSError, ValueError):
            pass
    folder = runs.make_folder(wanted, runs.OUTPUTS / "masks" / source.resolve().stem)
    write_json(folder / ABOUT / "prediction.json", start)
    return folder


def _report(folder: Path, fractions: dict[str, float], failed: list[str], seconds: float) -> int:
    """Says what was done and what was not; returns the exit status."""
    import runs

    if fractions:
        low, high = min(fractions.values()), max(fractions.values())
        print(
            f"{len(fractions)} masks in {runs.shown(folder)}, {len(fractions) / seconds:.1f} "
            f"slices/s, membrane {low:.0%} to {high:.0%} (0 = membrane, 255 = cell interior)"
        )
        print(f"Look at: {runs.shown(folder / ABOUT / 'contact_sheet.png')}")
    odd = [name for name, part in fractions.items() if not _plausible(part)]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        print(
            f"Note: hardly any or very much membrane in {', '.join(odd[:3])}{more}: is it EM with "
            "dark membranes on bright cells, near 4 nm per pixel?"
        )
    for line in failed:
        print(f"predict.py: error: {line}", file=sys.stderr)
    if not failed:
        return 0
    return 1 if fractions else 2


def _plausible(fraction: float) -> bool:
    return PLAUSIBLE_MEMBRANE[0] <= fraction <= PLAUSIBLE_MEMBRANE[1]


if __name__ == "__main__":
    sys.exit(main())
