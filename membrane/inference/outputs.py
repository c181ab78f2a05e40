"""What a prediction writes and prints: masks and what comes with them, page, notes, report."""

import contextlib
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from membrane import runs
from membrane.errors import UnreadableError
from membrane.inference.batch import MAX_TOGETHER, Page, PredictionConfig
from membrane.inference.masks import MIN_CELL_AREA
from membrane.inference.sources import FOLDERS
from membrane.io.pixel_size import Size
from membrane.io.readers import is_image
from membrane.io.writers import open_labels, open_pages, open_table, write_json
from membrane.viewer.page import write_page
from membrane.viewer.plots import draw_contact_sheet

PAGE = "index.html"  # to look at them
SHEET_SLICES, PAGE_SLICES = 30, 1000  # at most, evenly chosen: on the contact sheet, on the page
PAGE_PIXELS = 2**31  # likewise of all slices on the page, which takes 1 to 2 bytes of disk for each
POLARITY_SAMPLE = 5  # slices, at most, evenly chosen, that are looked at for bright membranes
PLAUSIBLE_MEMBRANE = (0.05, 0.6)  # of the tissue; beyond it the slice is probably unlike
LINE_SECONDS = 15  # between lines of progress where there is no terminal


def write_masks(
    pages: Iterator[Page],
    total: int,
    folder: Path,
    config: PredictionConfig,
    failed: dict[str, str],
    submit: Callable[[np.ndarray], object],
) -> tuple[dict[str, float], list, list]:
    """Writes the masks of predicted pages, `total` in all, and what comes with them.

    `failed` gets a line about each file that could not be used, by its name; `submit` is given
    P(interior), float32 (height, width), of each page, if the config wants it.

    Returns:
        Each page's membrane fraction, the contact sheet's thumbnails, and what the page shows.
    """
    membrane, inverted, agreed, sheet, shown, noted = {}, [], [], [], [], set()
    live = sys.stdout.isatty()
    with show_progress(total, " slices") as progress, contextlib.closing(pages):
        for source, parts in groupby(pages, key=lambda page: page.source):
            found, thumbnails, seen = {}, [], []
            try:
                with contextlib.ExitStack() as opened:
                    for page in parts:
                        if page.error:
                            raise UnreadableError(page.error)
                        if not found:
                            outputs = _open_outputs(opened, folder, page)
                        for name, write in outputs:
                            write(getattr(page, name))
                        if page.probability is not None:
                            submit(page.probability)
                        found[page.name] = page.membrane
                        if page.thumbnails:
                            thumbnails.append((page.name, *page.thumbnails))
                        seen += [entry.write(folder) for entry in page.entries]
                        inverted += [page.name] if page.looks_inverted else []
                        agreed += [] if page.agrees is None else [page.agrees]
                        for kind, text in _notes(page, config).items():
                            if kind not in noted:
                                noted.add(kind)
                                (progress.write if live else print)(f"Note: {text}")
                        progress.update()
            except UnreadableError as error:
                failed[source.file.name] = str(error)
                progress.update(source.pages - len(found))
            else:
                membrane |= found
                sheet += thumbnails
                shown += seen
    note_inverted(inverted, config.polarity_sample, config.invert)
    note_neighbours(agreed)
    return membrane, sheet, shown


def _open_outputs(opened: contextlib.ExitStack, folder: Path, page: Page) -> list[tuple]:
    """Opens the files for a source's pages; returns what of a page is written, and by what.

    The masks come last to their place: where they are, all is.
    """
    paths = {kind: page.source.output(folder, kind) for kind in FOLDERS}
    shape = (page.source.pages, *page.mask.shape)
    if paths["mask"].exists():  # by the interrupted command that this continues
        return []
    managers = {"mask": open_pages(paths["mask"], math.prod(shape), page.pixel_size)}
    if page.map is not None:
        managers["map"] = open_pages(paths["map"], math.prod(shape), page.pixel_size)
    if page.labels is not None:
        # of the pages to come it is only known that no cell is smaller than a speck
        most = page.labels.max() if shape[0] == 1 else math.prod(shape[1:]) // MIN_CELL_AREA
        managers["labels"] = open_labels(paths["labels"], shape, int(most), page.pixel_size)
        managers["cells"] = open_table(paths["labels"].with_suffix(".csv"))
    return [(name, opened.enter_context(manager)) for name, manager in managers.items()]


def _notes(page: Page, config: PredictionConfig) -> dict[str, str]:
    """Returns what is worth a note about how a page was treated, by kind."""
    notes = {}
    if page.in_colour:
        notes["colour"] = f"{page.name} is in colour; its luminance is used"
    if page.blank_fraction:
        notes["blank"] = (
            f"{page.blank_fraction:.0%} of {page.name} is no tissue (squares of one grey value, or "
            "pixels without one): left out, no cell there"
        )
    if config.together and page.mask.size > MAX_TOGETHER:
        notes["large"] = (
            f"{page.name} has over {MAX_TOGETHER:,} px and is decided by itself; with --zarr its "
            "neighbours have a say"
        )
    name = page.source.file.name
    if note := describe_scale(name, page.pixel_size, config.pixel_size, page.scale):
        notes["scale"] = note
    return notes


def describe_scale(name: str, size: Size | None, known: float | None, scale: Size) -> str | None:
    """Returns a note on slices that are resampled, or would be if the model's size were known."""
    if not size or (known and scale == (1.0, 1.0)):
        return None
    sides = f"{size[0]:g}" if size[0] == size[1] else f"{size[0]:g}x{size[1]:g} (y, x)"
    if not known:
        return f"{name} has pixels of {sides} nm, the model does not know its own: not resampled"
    return (
        f"{name} has pixels of {sides} nm, the model knows {known:g} nm: it sees it resampled, "
        "the mask has the slice's own size"
    )


def note_inverted(names: list[str], polarity_sample: Collection, invert: bool) -> None:
    """Notes that slices look inverted if most of those looked at do."""
    if len(names) > len(polarity_sample) / 2:
        others = f" and {len(names) - 1} more look" if len(names) > 1 else " looks"
        advice = "after --invert: try without" if invert else "if so, add --invert"
        print(f"Note: {names[0]}{others} like bright membranes on dark cells; {advice}")


def note_neighbours(agreed: list[bool]) -> None:
    """Says how many slices were taken for neighbours of the one before."""
    if agreed:
        many = f"{sum(agreed)} of {len(agreed)} slices agree with the one before them"
        what = "they have a say in its mask" if any(agreed) else "each was decided by itself"
        print(f"Neighbours: {many}; {what}")


def note_skipped(paths: Sequence[Path]) -> None:
    """Notes what is in folders and is not taken for slices."""
    others = [path for folder in paths if folder.is_dir() for path in folder.iterdir()]
    others = sorted(path for path in others if path.name[0] != ".")
    folders = [path.name for path in others if path.is_dir()]
    files = [one.name for one in others if not (one.is_dir() or is_image(one.name))]
    for why, names in (("no slices by their names", files), ("folders in a folder", folders)):
        if names:
            print(f"Note: skipped, {why}: {summarise(names)}")


def show_progress(total: float, unit: str) -> tqdm:
    """Returns a progress bar for a terminal, or lines now and then for a log."""
    live = sys.stdout.isatty()
    state = f"{{n:.0f}} of {{total:.0f}}{unit}, {{rate_noinv_fmt}}, {{remaining}} left"
    return tqdm(
        total=total,
        unit=unit,
        file=sys.stdout,
        mininterval=0.1 if live else LINE_SECONDS,
        bar_format="{percentage:3.0f}% {bar} " + state if live else state + "\n",
    )


def choose_evenly(total: int, count: int) -> list[int]:
    """Returns the numbers of so many slices, or of all, evenly chosen."""
    count = min(count, total)
    return [round(i * (total - 1) / max(1, count - 1)) for i in range(count)]


def choose_listed(total: int, pixels: int) -> list[int]:
    """Returns the numbers of the slices, of so many pixels each, that the page lists."""
    return choose_evenly(total, min(PAGE_SLICES, max(1, PAGE_PIXELS // pixels)))


def note_objects(slices: np.ndarray) -> None:
    """Says how many objects the cells of a series make up, given how many slices each lies in."""
    alone = int((slices == 1).sum())
    print(f"Cells: {len(slices):,} objects, {alone:,} of them in one slice only")


def finish_metadata(
    folder: Path, metadata: dict, device: str, membrane: dict[str, float], failed: dict[str, str]
) -> None:
    """Writes the record of a prediction, finished if nothing failed."""
    metadata |= {"finished": not failed, "device": device, "membrane": membrane, "failed": failed}
    write_json(folder / runs.METADATA_DIR / "prediction.json", metadata)
    if not failed:
        shutil.rmtree(folder / FOLDERS["labels"], ignore_errors=True)


def show(folder: Path, sheet: list[tuple], shown: list[dict], total: int, metadata: dict) -> None:
    """Writes contact sheet and page, on which the masks are looked at.

    The sheet has a caption and two thumbnails each, the page what `Entry.write` returns.
    """
    contact_sheet = folder / runs.METADATA_DIR / "contact_sheet.png"
    draw_contact_sheet(contact_sheet, *zip(*sheet, strict=True))
    count = len({one["slice"] for one in shown})
    part = f"an even sample of {count} of {total} slices · " * (count < total)
    averaged = "8 flips averaged" if metadata["tta"] else "one pass"
    model = f"model {metadata['model']}, threshold {metadata['threshold']:g}"
    text = f"{part}{model}, {averaged} · made by"
    command = shlex.join(["python", *sys.argv])
    write_page(folder / PAGE, shown, text, command, metadata["id"], metadata["model"])


def report(folder: Path, membrane: dict[str, float], failed: dict[str, str], seconds: float) -> int:
    """Reports what was done and what was not; returns the exit status."""
    if membrane:
        parts = (f"{part:.0%}" for part in (min(membrane.values()), max(membrane.values())))
        print(
            f"{len(membrane)} masks in {runs.display_path(folder)}, {len(membrane) / seconds:.1f} "
            f"slices/s, membrane {' to '.join(dict.fromkeys(parts))} (0 = membrane, 255 = cell "
            "interior)"
        )
        if (folder / PAGE).exists():
            print(f"Look at: {runs.display_path(folder / PAGE)}")
    least, most = PLAUSIBLE_MEMBRANE
    implausible = [name for name, part in membrane.items() if not least <= part <= most]
    if implausible:
        print(
            f"Note: hardly any or very much membrane in {summarise(implausible)}: is it EM with "
            "dark membranes on bright cells, near 4 nm per pixel?"
        )
    for line in dict.fromkeys(failed.values()):
        print(f"predict.py: error: {' '.join(line.split())}", file=sys.stderr)
    if not failed:
        return 0
    if membrane:
        print("Note: once that is mended, the same command does the rest")
    return 1 if membrane else 2


def summarise(names: list[str]) -> str:
    """Returns three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
