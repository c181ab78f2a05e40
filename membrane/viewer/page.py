"""The page that shows a prediction: index.html beside the masks, and its pictures."""

import base64
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.measure import label as connected_components

from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write
from membrane.runs import METADATA_DIR
from membrane.viewer.plots import MISSED, THUMBNAIL
from membrane.viewer.template import load_template

VIEW = 2048  # px; a slice with twice this side or more is shown thinned, corrected in windows
THUMB = 96  # px, of the slices in the strip
LOSSLESS = 2**20  # px; larger slices are saved for training as JPEG shows them
JPEG_QUALITY = 92
SIDES = {"before": -1, "after": 1}
SLICE, MASK, MAP = "slice.jpg", "mask.png", "probability.jpg"  # ends of the names of pictures
LABELS = "labels.png"
EDIT, NUMBERS = "edit.js", "objects.js"  # and of what its corrections and its cells' numbers need
COLOURS = [0, 0, 0, *np.random.default_rng(0).integers(60, 256, 3 * 255).tolist()]  # of labels


def make_views(image: np.ndarray, mask: np.ndarray, probability=None) -> dict:
    """Makes the pictures of a slice that the page shows.

    Args:
        image: float (height, width), about [0, 1], of any size.
        mask: uint8 (height, width), 255 = interior.
        probability: P(interior) as uint8 (height, width), or None.

    Returns:
        The content of each file, by the end of its name.
    """
    seen = to_bytes(np.clip(thin(image, VIEW), 0, 1))
    pictures = {SLICE: Image.fromarray(seen), "thumb.jpg": Image.fromarray(thin(seen, THUMB))}
    if probability is not None:
        pictures[MAP] = Image.fromarray(thin(probability, VIEW))
    membrane = Image.fromarray((thin(mask, VIEW) == 0).astype(np.uint8))
    membrane.putpalette([0, 0, 0, *MISSED])
    pictures[MASK] = membrane
    return {name: _encode(name, picture) for name, picture in pictures.items()}


def is_editable(shape: tuple[int, int]) -> bool:
    """Tells whether slices of this shape are corrected as a whole."""
    return max(shape) < 2 * VIEW


def make_edit(
    file: str,
    mask: np.ndarray,
    image: np.ndarray,
    probability: np.ndarray,
    decisions: Sequence[dict],
    operations: Sequence[dict],
) -> dict[str, bytes]:
    """Makes the script that gives the page what it corrects a slice with.

    A page that is opened as a file may read the pixels of a script's pictures, not of a file's.

    Args:
        file: the start of the slice's pictures' names.
        mask: bool (height, width), True = interior, before any correction.
        image: float (height, width), about [0, 1].
        probability: P(interior), uint8 (height, width).
        decisions: on borders, of `Decision.to_json`, in the order to ask.
        operations: corrections that are made already, of `Corrections`.

    Returns:
        The content of the file, by the end of its name.
    """
    height, width = mask.shape
    seen = Image.fromarray(to_bytes(np.clip(image, 0, 1)))
    kind, options = "JPEG", {"quality": JPEG_QUALITY}
    if seen.width * seen.height <= LOSSLESS:
        # neither compressed nor, with a palette, filtered: noise loses a sixth by both
        seen, kind, options = seen.convert("P"), "PNG", {"compress_level": 0}
    content = {
        "shape": [height, width],
        "mask": _data_url(Image.fromarray(mask), "PNG"),
        "image": _data_url(seen, kind, **options),
        "cells": _list_cells(mask, probability),
        "decisions": decisions,
        "operations": operations,
    }
    return {EDIT: _call("loadSlice", file, content)}


def read_edit(path: Path) -> dict:
    """Returns the content of a script of `make_edit`."""
    return json.loads(path.read_text("utf-8").partition(", ")[2][:-2])


def list_numbers(file: str, labels: np.ndarray, mask: np.ndarray) -> bytes:
    """Returns the content of a slice's `NUMBERS`: the innermost pixel of each cell, and its number.

    Args:
        file: the start of the slice's pictures' names.
        labels: integers (height, width), 0 = on no cell.
        mask: uint8 likewise, 255 = interior.
    """
    inside = (labels > 0) & (mask > 0)
    depth, numbers = ndimage.distance_transform_cdt(inside), np.unique(labels[inside])
    places = ndimage.maximum_position(depth, labels, numbers) if numbers.size else []
    pairs = zip(numbers.tolist(), places, strict=True)
    return _call("loadObjects", file, [[int(x), int(y), number] for number, (y, x) in pairs])


def _list_cells(mask: np.ndarray, probability: np.ndarray) -> list[list]:
    """Returns [x, y, px, mean P(interior)] of each connected cell of a mask."""
    cells = connected_components(mask, connectivity=1).ravel()
    area = np.bincount(cells)
    mean = np.bincount(cells, probability.ravel()) / np.maximum(area, 1) / 255
    inside = np.zeros_like(area)
    inside[cells] = np.arange(cells.size)
    rows = zip(*np.divmod(inside, mask.shape[1])[::-1], area, mean.round(3), strict=True)
    return [[int(x), int(y), int(px), float(p)] for x, y, px, p in list(rows)[1:]]


def _data_url(picture: Image.Image, kind: str, **options) -> str:
    content = base64.b64encode(_save(picture, kind, **options)).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def _call(function: str, file: str, content) -> bytes:
    """Returns a script that calls a function of the page with what is known of a slice."""
    text = json.dumps(content, separators=(",", ":"))
    return f'{function}("{file}", {text});'.encode()


def draw_labels(labels: np.ndarray) -> bytes:
    """Returns the content of a slice's `LABELS`: each number in a colour, as far as there are.

    Labels are integers (height, width), 0 = on no cell.
    """
    shown = thin(labels, VIEW)
    colours = Image.fromarray(np.where(shown, shown % 255 + 1, 0).astype(np.uint8))
    colours.putpalette(COLOURS)
    return _encode(LABELS, colours)


def _encode(name: str, picture: Image.Image) -> bytes:
    """Returns a picture as a file of this name has it; 0 is clear in a PNG."""
    clear = {"transparency": 0} if name.endswith("png") else {}
    return _save(picture, "PNG" if clear else "JPEG", **clear)


def _save(picture: Image.Image, kind: str, **options) -> bytes:
    if kind == "PNG":  # as small as by zlib's default, in half the time
        options = {"compress_type": zlib.Z_RLE} | options
    with io.BytesIO() as file:
        picture.save(file, kind, **options)
        return file.getvalue()


def picture_path(folder: Path, file: str, end: str) -> Path:
    """Returns the file of a picture of a slice, by the start and the end of its name."""
    return folder / METADATA_DIR / "page" / f"{file}-{end}"


def write_page(
    path: Path,
    slices: Sequence[dict],
    about: str,
    command: str,
    key: str = "",
    model: str = "pretrained",
) -> None:
    """Writes the page that shows a prediction and corrects it.

    Args:
        path: of the page; the pictures lie in about/page beside it.
        slices: each by its name, its membrane fraction (membrane), the start of its pictures' names
            (file), and the ends of these names (kinds). Where its neighbours are shown with it,
            also by its number (slice), its (size), and, of a window, its (place). Where it can be
            corrected (editable), also by what tells it from others of this name (key), what each
            decision on it is worth (gains), how many corrections it has (corrected), the name of
            its mask (save_as), and (pixel_size) in nm, None where that is not known.
        about: a line on the prediction.
        command: that made it.
        key: of the prediction, by which a browser knows what it has stored.
        model: that made it, from which a training may start.
    """
    numbers = {_where(one, 0): number for number, one in enumerate(slices) if "slice" in one}
    slices = [
        one | {word: numbers.get(_where(one, side)) for word, side in SIDES.items()}
        if "slice" in one
        else one
        for one in slices
    ]
    data = {"slices": slices, "about": about, "command": command, "key": key, "model": model}
    _write(path, _fill(load_template(), "data", data))


def _where(one: dict, side: int) -> tuple:
    """Returns where a slice of the page is, or the same place in the one before or after it."""
    return one["slice"] + side, one.get("place"), *one.get("size", ())


def add_scores(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """Writes scores into a page of `write_page`, by the slices' names."""
    _write(path, _fill(path.read_text(encoding="utf-8"), "scores", scores))


def thin(image: np.ndarray, side: int = 2 * THUMBNAIL) -> np.ndarray:
    """Returns a slice, with rows and columns left out if a side is twice as long as asked."""
    step = thin_step(image.shape, side)
    return np.ascontiguousarray(image[::step, ::step])


def thin_step(shape: tuple[int, int], side: int) -> int:
    """Returns of how many rows, and columns, `thin` keeps one."""
    return max(1, max(shape) // side)


def _fill(page: str, element: str, value) -> str:
    """Returns a page with a value in one of its JSON elements, which no name can end."""
    before, begin, rest = page.partition(f'<script type="application/json" id="{element}">')
    _, end, after = rest.partition("</script>")
    return before + begin + json.dumps(value, allow_nan=False).replace("<", "\\u003c") + end + after


def _write(path: Path, page: str) -> None:
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
