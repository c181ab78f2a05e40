"""Many slices through one network: read ahead, several in flight, handed on in order."""

import contextlib
import math
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

import grey
import slices
from figures import make_thumbnail, thin
from inference import Area, Predictor, to_mask, whole
from slices import UnreadableError

SAME_SIZE = 0.02  # pixel sizes that differ by less are one
LINE_SECONDS = 15  # between lines of progress where there is no terminal
PIXELS_IN_FLIGHT = 2**26  # beyond these, one slice at a time


@dataclass(frozen=True)
class Source:
    """A file of slices."""

    file: Path
    target: str  # the name of its masks' file
    pages: int
    first: int  # the number of its first page among all files' pages


@dataclass
class Page:
    """One slice on its way; what is not known yet, or not wanted, is None."""

    source: Source
    number: int  # in its file, from 0
    image: np.ndarray | None = None  # (height, width[, 3]), as the file has it
    mask: np.ndarray | None = None  # uint8 (height, width), 255 = interior
    probability: np.ndarray | None = None  # uint8 (height, width)
    scale: float = 1.0  # from the file's pixels to those that the network knows
    pixel_size: float | None = None  # nm
    error: str | None = None  # why the file cannot be read on
    in_colour: bool = False
    looks_inverted: bool = False
    thumbnails: tuple = ()  # of image and mask

    @property
    def name(self) -> str:
        """What to call it."""
        file = self.source.file.name
        return file if self.source.pages == 1 else f"{file}[{self.number + 1}]"


@dataclass(frozen=True)
class Recipe:
    """How slices are predicted.

    Args:
        predictor: the network.
        threshold: on P(interior).
        plain: whether it is put to single pixels, not to whole borders.
        scaling: `grey.normaliser`'s mean and deviation.
        pixel_size: nm, that the network knows; None if it knows none.
        given_size: nm, of all the slices; None for what their files say.
        invert: whether membranes are bright.
        probability: whether P(interior) is wanted, too.
        max_pixels: of a slice, and of what the network sees of it.
        on_sheet: the numbers of the pages, among all, that a thumbnail is wanted of.
        looked_at: the numbers of those that tell whether membranes are bright.
    """

    predictor: Predictor
    threshold: float
    plain: bool
    scaling: dict[str, float]
    pixel_size: float | None
    given_size: float | None
    invert: bool
    probability: bool
    max_pixels: int
    on_sheet: frozenset[int]
    looked_at: frozenset[int]

    def find_scale(self, file: Path) -> tuple[float, float | None]:
        """Returns what a file's sides are multiplied by for the network, and its pixel size."""
        return find_scale(self.given_size or slices.read_pixel_size(file), self.pixel_size)

    def finish(self, page: Page) -> Page:
        """Predicts a page; of one whose mask is there already, only what is said about it."""
        if page.error:
            return page
        page.in_colour = page.image.ndim == 3
        image = grey.to_grey(page.image)
        normalise = grey.normaliser(grey.sample(image), **self.scaling, invert=self.invert)
        if page.mask is None:
            probability = self.predictor(image, page.scale, normalise)
            page.mask = draw_mask(probability, self.threshold, self.plain)
            if self.probability:
                page.probability = grey.to_bytes(probability)
        number = page.source.first + page.number
        if number in self.looked_at:
            page.looks_inverted = grey.looks_inverted(normalise(grey.middle(image)), page.scale)
        if number in self.on_sheet:
            thumbnails = make_thumbnail(normalise(thin(image))), make_thumbnail(thin(page.mask))
            page.thumbnails = thumbnails
        page.image = None
        return page


def find_scale(size: float | None, known: float | None) -> tuple[float, float | None]:
    """Returns what sides are multiplied by for the network, and the pixel size, in nm if known."""
    scale = size / known if size and known else 1.0
    return (1.0 if abs(scale - 1) <= SAME_SIZE else scale), size


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


def draw_mask(
    probability: np.ndarray, threshold: float, plain: bool, wanted: Area | None = None
) -> np.ndarray:
    """Returns the mask of a map, or of a wanted area in it, as it is written: uint8, 0 and 255."""
    wanted = wanted or whole(probability.shape)
    if plain:
        interior = probability[wanted] > threshold
    else:
        interior = to_mask(probability, threshold, wanted)
    mask = interior.view(np.uint8)
    mask *= np.uint8(slices.INTERIOR)
    return mask


def predict_pages(
    sources: Iterable[Source], folder: Path, recipe: Recipe, workers: int
) -> Iterator[Page]:
    """Yields the pages of all files in order, while later ones are computed.

    Args:
        sources: the files.
        folder: of the masks; those that an interrupted command left there are taken as they are.
        recipe: how to predict.
        workers: how many slices are computed at once, while they are small.

    Yields:
        Pages with their masks. Of a file that cannot be read on, the last one has an `error`.
    """
    waiting, pixels = deque(), 0
    pool = ThreadPoolExecutor(workers)
    try:
        for page in _read_pages(sources, folder, recipe):
            size = 0 if page.image is None else page.image.size * max(1.0, page.scale**2)
            waiting.append((pool.submit(recipe.finish, page), size))
            pixels += size
            while len(waiting) > 2 * workers or pixels > PIXELS_IN_FLIGHT:
                future, size = waiting.popleft()
                pixels -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    except BaseException:
        recipe.predictor.stop()  # else the slices in flight would be finished first
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _read_pages(sources: Iterable[Source], folder: Path, recipe: Recipe) -> Iterator[Page]:
    """Yields the pages of all files as they are read."""
    for source in sources:
        number = 0
        try:
            scale, size = recipe.find_scale(source.file)
            known = folder / source.target
            left = known.exists()  # by the interrupted command that this continues
            masks = slices.read_pages(known, recipe.max_pixels) if left else repeat(None)
            images = slices.read_pages(source.file, recipe.max_pixels)
            for number, (image, mask) in enumerate(zip(images, masks, strict=False)):
                if math.prod(image.shape[:2]) * scale**2 > recipe.max_pixels:
                    raise UnreadableError(
                        f"{source.file}: over {recipe.max_pixels:,} px at the model's pixel size; "
                        "cut it into smaller ones, or raise --max-pixels"
                    )
                yield Page(source, number, image, mask, scale=scale, pixel_size=size)
        except UnreadableError as error:
            yield Page(source, number, error=str(error))


def find_files(source: Path, max_pixels: int) -> tuple[list[Source], list[str]]:
    """Returns the `Source` of each usable file, and why the others are not."""
    if not source.exists():
        raise slices.UserError(f"{source}: no such file or folder; name the slices to predict")
    sources, failed, taken, first = [], [], {}, 0
    for file in slices.list_images(source) if source.is_dir() else [source]:
        try:
            pages = slices.count_pages(file, max_pixels)
        except UnreadableError as error:
            failed.append(str(error))
            continue
        target = f"{file.stem}.png" if pages == 1 else f"{file.stem}.tif"
        other = taken.setdefault(target.casefold(), file)
        if other != file:
            raise slices.UserError(
                f"{other} and {file.name} would both be written to {target}; rename one of them"
            )
        sources.append(Source(file, target, pages, first))
        first += pages
    return sources, failed


def write_masks(
    pages: Iterator[Page], total: int, folder: Path, recipe: Recipe, failed: list[str]
) -> tuple[dict[str, float], list]:
    """Writes the masks; returns each one's membrane fraction and the contact sheet's thumbnails."""
    membrane, inverted, sheet, noted = {}, [], [], set()
    live = sys.stdout.isatty()

    def open_file(path: Path, page):
        if path.exists():  # by the interrupted command that this continues
            return contextlib.nullcontext(lambda array: None)
        return slices.writing(path, page.mask.nbytes * page.source.pages)

    with show_progress(total, " slices") as progress, contextlib.closing(pages):
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
    note_inverted(inverted, recipe.looked_at, recipe.invert)
    return membrane, sheet


def _remarks(page: Page, recipe: Recipe) -> dict[str, str]:
    """Returns what is worth a remark about how a page was treated, by kind."""
    remarks = {}
    if page.in_colour:
        remarks["colour"] = f"{page.name} is in colour; its luminance is used"
    if page.scale != 1.0:
        name = page.source.file.name
        remarks["scale"] = describe_scale(name, page.pixel_size, recipe.pixel_size)
    return remarks
