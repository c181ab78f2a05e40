"""The page that shows a prediction: index.html beside the masks, and its pictures."""

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write
from membrane.runs import METADATA_DIR
from membrane.viewer.plots import MISSED, THUMBNAIL

VIEW = 2048  # px; a slice with twice this side or more is shown thinned
MASK, LABELS = "mask.png", "labels.png"  # the ends of the names of two of a slice's pictures
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
    pictures = {"slice.jpg": Image.fromarray(to_bytes(np.clip(thin(image, VIEW), 0, 1)))}
    if probability is not None:
        pictures["probability.jpg"] = Image.fromarray(thin(probability, VIEW))
    membrane = Image.fromarray((thin(mask, VIEW) == 0).astype(np.uint8))
    membrane.putpalette([0, 0, 0, *MISSED])
    pictures[MASK] = membrane
    return {name: _encode(name, picture) for name, picture in pictures.items()}


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
    clear = {"transparency": 0, "compress_type": zlib.Z_RLE} if name.endswith("png") else {}
    with io.BytesIO() as file:
        picture.save(file, "PNG" if clear else "JPEG", **clear)
        return file.getvalue()


def picture_path(folder: Path, number: int, end: str) -> Path:
    """Returns the file of a picture of a slice, by the slice's number and the end of its name."""
    return folder / METADATA_DIR / "page" / f"{number:05d}-{end}"


def write_page(path: Path, slices: Sequence[dict], about: str, command: str) -> None:
    """Writes the page that shows a prediction, from the template page.html.

    The pictures lie in about/page beside it. A slice is given by its name, its membrane fraction
    (membrane), the start of its pictures' names (file), and the ends of these names (kinds).
    """
    data = {"slices": slices, "about": about, "command": command}
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    _write(path, _fill(template, "data", data))


def add_scores(path: Path, scores: dict[str, dict[str, float]]) -> None:
    """Writes scores into a page of `write_page`, by the slices' names."""
    _write(path, _fill(path.read_text(encoding="utf-8"), "scores", scores))


def thin(image: np.ndarray, side: int = 2 * THUMBNAIL) -> np.ndarray:
    """Returns a slice, with rows and columns left out if a side is twice as long as asked."""
    step = max(1, max(image.shape) // side)
    return np.ascontiguousarray(image[::step, ::step])


def _fill(page: str, element: str, value) -> str:
    """Returns a page with a value in one of its JSON elements, which no name can end."""
    before, begin, rest = page.partition(f'<script type="application/json" id="{element}">')
    _, end, after = rest.partition("</script>")
    return before + begin + json.dumps(value).replace("<", "\\u003c") + end + after


def _write(path: Path, page: str) -> None:
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")
