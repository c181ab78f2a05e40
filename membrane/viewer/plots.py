"""Pictures to look at: training curves, the validation sheet, the contact sheet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write
from membrane.metrics import find_errors

MISSED, INVENTED = (213, 94, 0), (0, 114, 178)  # vermilion, blue: safe for colour-blind eyes
THUMBNAIL = 256  # px, in the contact sheet
CAPTION = 26  # px, its height
CURVES = {  # columns of history.csv, by the title of their panel
    "loss": ("loss", "val_loss"),
    "membrane IoU at 0.5": ("membrane_iou", "val_membrane_iou"),
    "V_rand and V_info, oracle threshold": ("val_v_rand", "val_v_info"),
    "learning rate": ("learning_rate",),
}


def draw_curves(path: Path, history: Sequence[dict]) -> None:
    """Draws loss, membrane IoU, the challenge's scores and the learning rate into a PNG.

    The history has a row per epoch, as history.csv; None where a value was not measured.
    """
    figure = Figure(figsize=(16, 4), layout="constrained")
    for axes, title in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for column in CURVES[title]:
            points = [(row["epoch"], row[column]) for row in history if row[column] is not None]
            if points:
                marker = "o" if column.startswith("val_") else None
                label = column.replace("val_", "validation ")
                axes.plot(*zip(*points, strict=True), marker=marker, markersize=3, label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with atomic_write(path) as part:
        figure.savefig(part, dpi=110, format="png")


def draw_validation_sheet(path: Path, names, images, labels, probabilities, masks, scores) -> None:
    """Draws slice, label, P(interior), mask, and where they differ, of the ten worst slices.

    All are (height, width) each: images about [0, 1], probabilities in [0, 1], labels and masks
    bool, True = interior. The scores are a dictionary, with v_rand and v_info, for each mask.
    """
    order = sorted(range(len(names)), key=lambda i: np.nan_to_num(scores[i]["v_rand"], nan=2.0))
    rows = []
    for i in order[:10]:
        grey = to_bytes(np.clip(images[i], 0, 1))
        errors = np.stack([grey] * 3, axis=-1)
        errors[~labels[i] & masks[i]] = MISSED
        errors[labels[i] & ~masks[i]] = INVENTED
        cells = _draw_cell_errors(grey, *find_errors(labels[i], masks[i]))
        scored = f"V_rand {scores[i]['v_rand']:.4f}   V_info {scores[i]['v_info']:.4f}"
        panels = {
            f"{names[i]}   {scored}": grey,
            "label": labels[i] * np.uint8(255),
            "P(interior)": to_bytes(probabilities[i]),
            "mask": masks[i] * np.uint8(255),
            "membrane missed (vermilion), invented (blue)": errors,
            "cells merged (vermilion), split (blue), largest first": cells,
        }
        rows.append(list(panels.items()))
    _write_sheet(path, rows, 512)


def _draw_cell_errors(grey: np.ndarray, merged: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Returns a slice with the parts of `metrics.find_errors` in colour, the largest numbered."""
    picture = np.stack([grey] * 3, axis=-1)
    for parts, colour in ((merged, MISSED), (split, INVENTED)):
        picture[parts > 0] = picture[parts > 0] // 2 + np.array(colour, np.uint8) // 2
    drawing = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawing)
    style = {"font": ImageFont.load_default(20), "anchor": "mm", "fill": "white"}
    for parts in (merged, split):
        for number in range(1, min(5, parts.max()) + 1):
            row, col = (float(np.median(places)) for places in np.nonzero(parts == number))
            pen.text((col, row), str(number), stroke_width=2, stroke_fill="black", **style)
    return np.asarray(drawing)


def draw_contact_sheet(
    path: Path, captions: Sequence[str], images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> None:
    """Draws each slice beside its mask, three pairs to a row, into a PNG.

    Images and masks are thumbnails, uint8 (height, width) each, masks with 255 = interior.
    """
    panels = []
    for caption, image, mask in zip(captions, images, masks, strict=True):
        panels += [(caption, image), ("mask", mask)]
    _write_sheet(path, [panels[first : first + 6] for first in range(0, len(panels), 6)], THUMBNAIL)


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 or about [0, 1], as uint8 no larger than a thumbnail."""
    grey = image if image.dtype == np.uint8 else to_bytes(np.clip(image, 0, 1))
    return np.asarray(_shrink(grey, THUMBNAIL))


def _shrink(image: np.ndarray, side: int) -> Image.Image:
    """Returns an image, uint8, as a picture with no side longer than `side`."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return picture


def _write_sheet(path: Path, rows: list[list[tuple[str, np.ndarray]]], panel: int) -> None:
    """Writes rows of captioned panels, `panel` px wide and high at most, on a white page."""
    font, gap = ImageFont.load_default(max(11, panel // 28)), 8
    rows = [[(caption, _shrink(image, panel)) for caption, image in row] for row in rows]
    heights = [max(picture.height for _, picture in row) + CAPTION + gap for row in rows]
    width = max(map(len, rows)) * (panel + gap) + gap
    page = Image.new("RGB", (width, sum(heights) + gap), "white")
    pen = ImageDraw.Draw(page)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = gap + column * (panel + gap)
            caption = " ".join(caption.split())  # a file's name may have lines
            while pen.textlength(caption, font) > panel and len(caption) > 1:
                caption = caption[:-2] + "…"
            pen.text((left, top + 2), caption, "black", font)
            page.paste(picture, (left, top + CAPTION))
        top += height
    with atomic_write(path) as part:
        page.save(part, format="PNG")
