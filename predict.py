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
    tta_help = "average 8 flips and rotations: better masks, 8 times the work; default: the run's"
    add("--tta", action=argparse.BooleanOptionalAction, help=tta_help)
    args = parser.parse_args(argv)
    if args.plain and not args.threshold:
        parser.error("--plain: a run's own threshold is not meant for it; add --threshold, say 0.9")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(predict, parse_args(argv), "predict.py")


def predict(args: argparse.Namespace) -> int:
    """Chooses the model, predicts every file, writes masks, record and contact sheet."""
    doors.import_tensorflow_quietly()
    workers = doors.share_cores()
    import runs
    import slices
    import unet
    from figures import draw_contact_sheet
    from inference import Predictor, load_network
    from pipeline import Recipe, predict_pages

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
    sources, failed = find_files(source, args.max_pixels)
    about = {
        "finished": False,
        "input": str(source),
        "input_state": _fingerprint([one.file for one in sources]),
        "model": runs.shown(path),
        "model_sha256": hashlib.sha256(model_path.read_bytes()).hexdigest(),
        "model_is_synthetic": record.get("synthetic", False),
        "threshold": threshold,
        "plain": args.plain,
        "tta": tta,
        "pixel_size": args.pixel_size,
        "invert": args.invert,
        "probability": args.probability,
    }
    dtype, device = unet.choose_dtype()
    predictor = Predictor(unet.with_dtype(network, dtype), tta, workers=workers)
    folder = _claim_output(args.output, source, about)
    print(f"Device: {device}\nMasks: {runs.shown(folder)}", flush=True)

    began = time.monotonic()
    total = sum(one.pages for one in sources)
    recipe = Recipe(
        predictor=predictor,
        threshold=threshold,
        plain=args.plain,
        scaling=record.get("scaling", {}),
        pixel_size=record.get("pixel_size"),
        given_size=args.pixel_size,
        invert=args.invert,
        probability=args.probability,
        max_pixels=args.max_pixels,
        on_sheet=frozenset(
            round(i * (total - 1) / (SHEET_SLICES - 1)) for i in range(SHEET_SLICES)
        ),
    )
    pages = predict_pages(sources, folder, recipe, workers)
    membrane, sheet = write_masks(pages, total, folder, recipe, failed)
    seconds = time.monotonic() - began
    if sheet:
        draw_contact_sheet(folder / ABOUT / "contact_sheet.png", *zip(*sheet, strict=True))
    about |= {"finished": True, "device": device, "membrane": membrane, "failed": failed}
    slices.write_json(folder / ABOUT / "prediction.json", about)
    return _report(folder, membrane, failed, seconds)


def write_masks(
    pages, total: int, folder: Path, recipe, failed: list[str]
) -> tuple[dict[str, float], list]:
    """Writes the masks; returns each one's membrane fraction and the contact sheet's thumbnails."""
    import contextlib
    from itertools import groupby

    from tqdm import tqdm

    import slices

    membrane, inverted, sheet, noted = {}, [], [], set()
    live = sys.stdout.isatty()
    state = "{n_fmt} of {total_fmt} slices, {rate_noinv_fmt}, {remaining} left"
    progress = tqdm(
        total=total,
        unit=" slices",
        file=sys.stdout,
        mininterval=0.1 if live else LINE_SECONDS,
        bar_format="{percentage:3.0f}% {bar} " + state if live else state + "\n",
    )

    def open_file(path: Path, page):
        if path.exists():  # by the interrupted command that this continues
            return contextlib.nullcontext(lambda array: None)
        return slices.writing(path, page.mask.nbytes * page.source.pages)

    with progress, contextlib.closing(pages):
        for source, parts in groupby(pages, key=lambda page: page.source):
            found, thumbnails = {}, []
            try:
                with contextlib.ExitStack() as files:
                    for page in parts:
                        if page.error:
                            raise slices.UnreadableError(page.error)
                        if not found:
                            write = files.enter_context(open_file(folder / source.target, page))
                        if page.probability is not None and not found:
                            target = folder / "probability" / source.target
                            write_map = files.enter_context(open_file(target, page))
                        write(page.mask)
                        if page.probability is not None:
                            write_map(page.probability)
                        found[page.name] = float((page.mask != slices.INTERIOR).mean())
                        if page.thumbnails:
                            thumbnails.append((page.name, *page.thumbnails))
                        inverted += [page.name] if page.looks_inverted else []
                        for kind, text in _remarks(page, recipe).items():
                            if kind not in noted:
                                noted.add(kind)
                                (progress.write if live else print)(f"Note: {text}")
                        progress.update()
            except slices.UnreadableError as error:
                failed.append(str(error))
                progress.update(source.pages - len(found))
            else:
                membrane |= found
                sheet += thumbnails
    if len(inverted) > len(recipe.on_sheet) / 2:
        others = f" and {len(inverted) - 1} more" if len(inverted) > 1 else ""
        advice = "after --invert: try without" if recipe.invert else "if so, add --invert"
        print(f"Note: {inverted[0]}{others} look like bright membranes on dark cells; {advice}")
    return membrane, sheet


def _remarks(page, recipe) -> dict[str, str]:
    """Returns what is worth a remark about how a page was treated, by kind."""
    remarks = {}
    if page.in_colour:
        remarks["colour"] = f"{page.name} is in colour; its luminance is used"
    if page.scale != 1.0:
        remarks["scale"] = (
            f"{page.source.file.name} has pixels of {page.pixel_size:g} nm, the model knows "
            f"{recipe.pixel_size:g} nm: it sees it resampled, the mask has the slice's own size"
        )
    return remarks


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


def find_files(source: Path, max_pixels: int) -> tuple[list, list[str]]:
    """Returns the `pipeline.Source` of each usable file, and why the others are not."""
    from pipeline import Source
    from slices import UnreadableError, UserError, count_pages, list_images

    if not source.exists():
        raise UserError(f"{source}: no such file or folder; name the slices to predict")
    sources, failed, taken, first = [], [], {}, 0
    for file in list_images(source) if source.is_dir() else [source]:
        try:
            pages = count_pages(file, max_pixels)
        except UnreadableError as error:
            failed.append(str(error))
            continue
        target = f"{file.stem}.png" if pages == 1 else f"{file.stem}.tif"
        other = taken.setdefault(target.casefold(), file)
        if other != file:
            raise UserError(
                f"{other} and {file.name} would both be written to {target}; rename one of them"
            )
        sources.append(Source(file, target, pages, first))
        first += pages
    return sources, failed


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
