"""What a prediction leaves and says: masks and what comes with them, page, remarks, report."""

import contextlib
import math
import shlex
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

import files
import runs
import slices
from figures import write_page
from masks import SPECK
from pipeline import Page, Recipe

PAGE = "index.html"  # to look at them
PLAUSIBLE_MEMBRANE = (0.05, 0.6)  # of a mask's pixels; beyond it the slice is probably unlike
LINE_SECONDS = 15  # between lines of progress where there is no terminal


def write_masks(
    pages: Iterator[Page],
    total: int,
    folder: Path,
    recipe: Recipe,
    failed: list[str],
    submit: Callable[[np.ndarray], object] = lambda exact: None,
) -> tuple[dict[str, float], list, list]:
    """Writes the masks and what comes with them.

    Args:
        pages: of `predict_pages`.
        total: how many pages there are.
        folder: of the masks.
        recipe: by which they were predicted.
        failed: gets a line about each file that could not be used.
        submit: is given the exact P(interior) of each page, if the recipe wants it.

    Returns:
        Each page's membrane fraction, the contact sheet's thumbnails, and what the page shows.
    """
    membrane, inverted, sheet, shown, noted = {}, [], [], [], set()
    live = sys.stdout.isatty()
    with show_progress(total, " slices") as progress, contextlib.closing(pages):
        for source, parts in groupby(pages, key=lambda page: page.source):
            found, thumbnails, seen = {}, [], []
            try:
                with contextlib.ExitStack() as opened:
                    for page in parts:
                        if page.error:
                            raise slices.UnreadableError(page.error)
                        if not found:
                            outputs = _open_outputs(opened, folder, page)
                        for name, write in outputs:
                            write(getattr(page, name))
                        if page.exact is not None:
                            submit(page.exact)
                        found[page.name] = float((page.mask != slices.INTERIOR).mean())
                        if page.thumbnails:
                            thumbnails.append((page.name, *page.thumbnails))
                        if page.views:
                            number, part = source.first + page.number, found[page.name]
                            name = page.name.replace(source.file.name, source.file.stem)
                            seen.append(write_views(folder, page.views, number, name, part))
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
                shown += seen
    note_inverted(inverted, recipe.looked_at, recipe.invert)
    return membrane, sheet, shown


def _open_outputs(opened: contextlib.ExitStack, folder: Path, page: Page) -> list[tuple]:
    """Opens the files for a source's pages; returns what of a page is written, and by what.

    The masks come last to their place: where they are, all is.
    """
    source, shape = page.source, (page.source.pages, *page.mask.shape)
    mask = source.place(folder, "mask")
    if mask.exists():  # by the interrupted command that this continues
        return []
    managers = {"mask": files.writing(mask, math.prod(shape))}
    if page.probability is not None:
        target = source.place(folder, "probability")
        managers["probability"] = files.writing(target, math.prod(shape))
    if page.labels is not None:
        target = source.place(folder, "labels")
        # of the pages to come it is only known that no cell is smaller than a speck
        most = page.labels.max() if shape[0] == 1 else math.prod(shape[1:]) // SPECK
        managers["labels"] = files.writing_labels(target, shape, int(most), page.pixel_size)
        managers["cells"] = files.writing_table(target.with_suffix(".csv"))
    return [(name, opened.enter_context(manager)) for name, manager in managers.items()]


def write_views(
    folder: Path, views: dict[str, bytes], number: int, name: str, membrane: float
) -> dict:
    """Writes the pictures that the page shows of a slice; returns what it says of it."""
    for end, content in views.items():
        with files.whole_file(folder / runs.ABOUT / "page" / f"{number:05d}-{end}") as part:
            part.write_bytes(content)
    return {"name": name, "membrane": membrane, "file": f"{number:05d}", "kinds": list(views)}


def _remarks(page: Page, recipe: Recipe) -> dict[str, str]:
    """Returns what is worth a remark about how a page was treated, by kind."""
    remarks = {}
    if page.in_colour:
        remarks["colour"] = f"{page.name} is in colour; its luminance is used"
    if page.scale != 1.0:
        name = page.source.file.name
        remarks["scale"] = describe_scale(name, page.pixel_size, recipe.pixel_size)
    return remarks


def describe_scale(name: str, size: float, known: float) -> str:
    """Returns a remark on slices that are resampled."""
    return (
        f"{name} has pixels of {size:g} nm, the model knows {known:g} nm: it sees it resampled, "
        "the mask has the slice's own size"
    )


def note_inverted(names: list[str], looked_at: Collection, invert: bool) -> None:
    """Says that slices look inverted if most of those looked at do."""
    if len(names) > len(looked_at) / 2:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        advice = "after --invert: try without" if invert else "if so, add --invert"
        print(f"Note: {names[0]}{others} look like bright membranes on dark cells; {advice}")


def note_left_out(folder: Path) -> None:
    """Says which files of a folder are not taken for slices."""
    if not folder.is_dir():
        return
    others = (path for path in folder.iterdir() if not slices.is_image(path.name))
    names = sorted(path.name for path in others if path.name[0] != "." and not path.is_dir())
    if names:
        print(f"Note: left out, no slices by their names: {_some(names)}")


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


def show_page(folder: Path, shown: list[dict], total: int, about: dict) -> None:
    """Writes the page on which the masks are looked at."""
    part = f"an even sample of {len(shown)} of {total} slices · " * (len(shown) < total)
    averaged = "8 flips averaged" if about["tta"] else "one pass"
    text = f"{part}model {about['model']}, threshold {about['threshold']:g}, {averaged} · made by"
    write_page(folder / PAGE, shown, text, shlex.join(["python", *sys.argv]))


def report(folder: Path, membrane: dict[str, float], failed: list[str], seconds: float) -> int:
    """Says what was done and what was not; returns the exit status."""
    if membrane:
        low, high = min(membrane.values()), max(membrane.values())
        print(
            f"{len(membrane)} masks in {runs.shown(folder)}, {len(membrane) / seconds:.1f} "
            f"slices/s, membrane {low:.0%} to {high:.0%} (0 = membrane, 255 = cell interior)"
        )
        if (folder / PAGE).exists():
            print(f"Look at: {runs.shown(folder / PAGE)}")
    odd = [name for name, part in membrane.items() if not _plausible(part)]
    if odd:
        print(
            f"Note: hardly any or very much membrane in {_some(odd)}: is it EM with dark membranes "
            "on bright cells, near 4 nm per pixel?"
        )
    for line in failed:
        print(f"predict.py: error: {' '.join(line.split())}", file=sys.stderr)
    if not failed:
        return 0
    return 1 if membrane else 2


def _plausible(fraction: float) -> bool:
    return PLAUSIBLE_MEMBRANE[0] <= fraction <= PLAUSIBLE_MEMBRANE[1]


def _some(names: list[str]) -> str:
    """Returns three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
