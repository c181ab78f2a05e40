"""The page on which a prediction is looked at: index.html beside the masks, and its pictures."""

import io
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write
from membrane.viewer.plots import MISSED, THUMBNAIL

VIEW = 2048  # px, the side from whose double on the page shows a slice thinned
COLOURS = [0, 0, 0, *np.random.default_rng(0).integers(60, 256, 3 * 255).tolist()]  # of labels


def make_views(image: np.ndarray, mask: np.ndarray, probability=None, labels=None) -> dict:
    """Makes the pictures of a slice that the page shows.

    Args:
        image: about [0, 1], float (height, width), of any size.
        mask: uint8 (height, width), 255 = interior.
        probability: uint8 (height, width), or None.
        labels: integers (height, width), or None.

    Returns:
        The content of each file, by the end of its name.
    """
    pictures = {"slice.jpg": Image.fromarray(to_bytes(np.clip(thin(image, VIEW), 0, 1)))}
    if probability is not None:
        pictures["probability.jpg"] = Image.fromarray(thin(probability, VIEW))
    membrane = Image.fromarray((thin(mask, VIEW) == 0).astype(np.uint8))
    membrane.putpalette([0, 0, 0, *MISSED])
    pictures["mask.png"] = membrane
    if labels is not None:
        shown = thin(labels, VIEW)
        colours = Image.fromarray(np.where(shown, shown % 255 + 1, 0).astype(np.uint8))
        colours.putpalette(COLOURS)
        pictures["labels.png"] = colours
    views = {}
    for name, picture in pictures.items():
        clear = {"transparency": 0, "compress_type": zlib.Z_RLE} if name.endswith("png") else {}
        with io.BytesIO() as file:
            picture.save(file, "PNG" if clear else "JPEG", **clear)
            views[name] = file.getvalue()
    return views


def write_page(path: Path, slices: Sequence[dict], about: str, command: str) -> None:
    """Writes the page on which a prediction is looked at, of page.html.

    Args:
        path: of the page; the pictures lie in about/page beside it.
        slices: of each its name, membrane fraction, the start of its pictures' names (file), and
            the ends of these names (kinds).
        about: a line on what was done.
        command: that did it.
    """
    data = {"slices": slices, "about": about, "command": command}
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    with atomic_write(path) as part:
        text = template.replace("const DATA = {};", f"const DATA = {_script(data)};", 1)
        part.write_text(text, encoding="utf-8")


def add_scores(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """Writes scores into a page of `write_page`, by the slices' names."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(
        "const SCORES = .*;", lambda _: f"const SCORES = {_script(scores)};", text, count=1
    )
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def thin(image: np.ndarray, side: int = 2 * THUMBNAIL) -> np.ndarray:
    """Returns a slice with rows and columns left out if it is more than twice as large as asked."""
    step = max(1, max(image.shape) // side)
    return np.ascontiguousarray(image[::step, ::step])


def _script(value) -> str:
    """Returns JSON in which no name can end the page's script."""
    return json.dumps(value).replace("<", "\\u003c")
