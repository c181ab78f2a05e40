"""Turns EM slices into binary masks: 0 = membrane, 255 = cell interior.

python predict.py FOLDER             every slice in a folder
python predict.py STACK.tif          every page of a stack; one image works too
python predict.py                    the test slices of the data set the model was trained on

The model is the newest finished run in outputs/ that was trained on real slices; without one, that
which ships with the repository, outputs/pretrained. --model large is its larger sister.
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import doors

ABOUT = "about"  # subfolder of the predictions: record and contact sheet
SHEET_SLICES = 30  # at most, evenly chosen
PLAUSIBLE_MEMBRANE = (0.05, 0.6)  # of a mask's pixels; beyond it the slice is probably unlike
SAME_SIZE = 0.02  # pixel sizes that differ by less are one
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
    pixel_help = (
        "of the slices; they are brought to the model's pixel size and the masks back; default: "
        "what a TIFF says, else as they are"
    )
    add("--pixel-size", type=doors.positive(float), metavar="NM", help=pixel_help)
    add("--invert", action="store_true", help="for slices with bright membranes on dark cells")
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
    import runs
    import slices
    import unet
    from figures import draw_contact_sheet
    from inference import Predictor, load_network

    path = runs.find_run(args.model)
    record = runs.read_run(path) if path.is_dir() else {}
    model_path = path / "model.keras" if path.is_dir() else path
    network = load_network(model_path)
    tta = record.get("tta", True) if args.tta is None else args.tta
    threshold = args.threshold or record.get("threshold" if tta else "threshold_without_tta")
    if threshold is None:
        raise slices.UserError(f"{path}: has no calibrated threshold; give --threshold T")
    if args.pixel_size and not record.get("pixel_size"):
        raise slices.UserError(
            f"{path}: does not know the pixel size it was trained at; leave out --pixel-size, or "
            "train with train.py --pixel-size"
        )
    averaged = ", averaging 8 flips and rotations" if tta else ""
    ships = " (ships with this repository)" if path == runs.OUTPUTS / runs.PRETRAINED else ""
    print(f"Model: {runs.shown(path)}{ships}, threshold {threshold:g}{averaged}")
    if record.get("synthetic"):
        print("Note: trained on synthetic slices, to try this program; it knows nothing of tissue")

    source = Path(args.input).expanduser() if args.input else _test_slices(record)
    files, failed = _find_files(source)
    about = {
        "finished": False,
        "input": str(source),
        "input_state": _fingerprint([file for file, _, _ in files]),
        "model": runs.shown(path),
        "model_sha256": hashlib.sha256(model_path.read_bytes()).hexdigest(),
        "model_is_synthetic": record.get("synthetic", False),
        "threshold": threshold,
        "tta": tta,
        "pixel_size": args.pixel_size,
        "invert": args.invert,
        "probability": args.probability,
    }
    folder = _claim_output(args.output, source, about)
    dtype, device = unet.choose_dtype()
    print(f"Device: {device}\nMasks: {runs.shown(folder)}", flush=True)

    began = time.monotonic()
    predictor = Predictor(unet.with_dtype(network, dtype), tta)
    membrane, sheet = _predict_files(files, folder, predictor, about, record, failed)
    seconds = time.monotonic() - began
    if sheet:
        draw_contact_sheet(folder / ABOUT / "contact_sheet.png", *zip(*sheet, strict=True))
    about |= {"finished": True, "device": device, "membrane": membrane, "failed": failed}
    slices.write_json(folder / ABOUT / "prediction.json", about)
    return _report(folder, membrane, failed, seconds)


def _predict_files(
    files: list, folder: Path, predictor, about: dict, record: dict, failed: list[str]
) -> tuple[dict[str, float], list]:
    """Writes the masks; returns each one's membrane fraction and the contact sheet's thumbnails."""
    import numpy as np
    from tqdm import tqdm

    import grey
    import slices
    from figures import make_thumbnail
    from inference import to_mask

    total = sum(pages for _, _, pages in files)
    on_sheet = {round(i * (total - 1) / (SHEET_SLICES - 1)) for i in range(SHEET_SLICES)}
    membrane, inverted, sheet, first, notes = {}, [], [], 0, set()
    live = sys.stdout.isatty()

    def note(kind: str, text: str) -> None:
        if kind not in notes:
            notes.add(kind)
            (progress.write if live else print)(f"Note: {text}")

    state = "{n_fmt} of {total_fmt} slices, {rate_noinv_fmt}, {remaining} left"
    with tqdm(
        total=total,
        unit=" slices",
        file=sys.stdout,
        mininterval=0.1 if live else LINE_SECONDS,
        bar_format="{percentage:3.0f}% {bar} " + state if live else state + "\n",
    ) as progress:
        for file, target, pages in files:
            names = [file.name] if pages == 1 else [f"{file.name}[{p + 1}]" for p in range(pages)]
            masks, probabilities, thumbnails = [], [], []
            known = (folder / target).exists()  # by the interrupted command that this continues
            try:
                if known:
                    masks = list(slices.read_pages(folder / target))
                size = about["pixel_size"] or slices.read_pixel_size(file)
                own = record.get("pixel_size")
                scale = size / own if size and own else 1.0
                if abs(scale - 1) <= SAME_SIZE:
                    scale = 1.0
                else:
                    note(
                        "scale",
                        f"{file.name} has pixels of {size:g} nm, the model knows {own:g} nm: it "
                        "sees it resampled, the mask has the slice's own size",
                    )
                for page, image in enumerate(slices.read_pages(file)):
                    if image.size * scale**2 > slices.MAX_PIXELS:
                        raise slices.UnreadableError(
                            f"{file}: too large at the model's pixel size; cut it into smaller ones"
                        )
                    if image.ndim == 3:
                        note("colour", f"{names[page]} is in colour; its luminance is used")
                    normal = grey.normalise(image, **record.get("scaling", {}))
                    if about["invert"]:
                        normal = 2 * record.get("scaling", {}).get("mean", grey.MEAN) - normal
                    if grey.looks_inverted(normal):
                        inverted.append(names[page])
                    if not known:
                        probability = predictor(normal, scale)
                        mask = to_mask(probability, about["threshold"])
                        masks.append(mask * np.uint8(slices.INTERIOR))
                        if about["probability"]:
                            probabilities.append(grey.to_bytes(probability))
                    if first + page in on_sheet:
                        thumbnails.append(
                            [names[page], *map(make_thumbnail, (normal, masks[page]))]
                        )
                    progress.update()
            except slices.UnreadableError as error:
                failed.append(str(error))
                progress.update(first + pages - progress.n)
            else:
                if probabilities:
                    slices.write_pages(folder / "probability" / target, probabilities)
                if not known:
                    slices.write_pages(folder / target, masks)
                sheet += thumbnails
                for name, mask in zip(names, masks, strict=True):
                    membrane[name] = float((mask != slices.INTERIOR).mean())
            first += pages
    if len(inverted) > total / 2:
        others = f" and {len(inverted) - 1} more" if len(inverted) > 1 else ""
        advice = "after --invert: try without" if about["invert"] else "if so, add --invert"
        print(f"Note: {inverted[0]}{others} look like bright membranes on dark cells; {advice}")
    return membrane, sheet


def _fingerprint(files: list[Path]) -> str:
    """Returns what changes when one of the files does."""
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()


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

    if wanted is not None:
        path = Path(wanted).expanduser()
        if source.is_dir() and path.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{path}: lies in the input folder; name another --output")
        try:
            if json.loads((path / ABOUT / "prediction.json").read_text("utf-8")) == about:
                print(f"Going on with the unfinished masks in {path}")
                return path
        except (OSError, ValueError):
            pass
    name = source.resolve().name if source.is_dir() else source.stem
    folder = runs.make_folder(wanted, runs.OUTPUTS / "masks" / name)
    write_json(folder / ABOUT / "prediction.json", about)
    return folder


def _report(folder: Path, membrane: dict[str, float], failed: list[str], seconds: float) -> int:
    """Says what was done and what was not; returns the exit status."""
    import runs

    if membrane:
        low, high = min(membrane.values()), max(membrane.values())
        print(
            f"{len(membrane)} masks in {runs.shown(folder)}, {len(membrane) / seconds:.1f} "
            f"slices/s, membrane {low:.0%} to {high:.0%} (0 = membrane, 255 = cell interior)"
        )
        print(f"Look at: {runs.shown(folder / ABOUT / 'contact_sheet.png')}")
    odd = [name for name, part in membrane.items() if not _plausible(part)]
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
    return 1 if membrane else 2


def _plausible(fraction: float) -> bool:
    return PLAUSIBLE_MEMBRANE[0] <= fraction <= PLAUSIBLE_MEMBRANE[1]


if __name__ == "__main__":
    sys.exit(main())
