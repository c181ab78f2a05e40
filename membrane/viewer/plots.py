"""Pictures to look at: training curves, the validation sheet, the contact sheet."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from membrane.io.normalization import to_bytes
from membrane.io.writers import atomic_write
from membrane.metrics import find_errors

MISSED = (213, 94, 0)  # vermilion and blue: told apart by colour-blind eyes too (Okabe and Ito)
INVENTED = (0, 114, 178)
PANEL = 512  # px, the largest side of a slice in the validation sheet
VALIDATION_ROWS = 10
THUMBNAIL = 256  # px, in the contact sheet
CAPTION = 26  # px
NUMBERED = 5  # merged and split parts of cells in the validation sheet


def draw_curves(path: Path, history: Sequence[dict]) -> None:
    """Draws loss, membrane IoU, the challenge's scores and the learning rate over epochs.

    Args:
        path: the PNG to write.
        history: a row per epoch, as in history.csv; None where a value was not measured.
    """
    figure = Figure(figsize=(16, 4), layout="constrained")
    panels = (
        ("loss", "val_loss"),
        ("membrane_iou", "val_membrane_iou"),
        ("val_v_rand", "val_v_info"),
        ("learning_rate",),
    )
    scores = "V_rand and V_info, oracle threshold"
    titles = ("loss", "membrane IoU at 0.5", scores, "learning rate")
    for axes, columns, title in zip(figure.subplots(1, 4), panels, titles, strict=True):
        for column in columns:
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


def draw_validation_sheet(
    path: Path,
    names: Sequence[str],
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    scores: Sequence[dict[str, float]],
) -> None:
    """Draws slice, label, P(interior), mask, and where they differ, of the ten worst slices.

    Args:
        path: the PNG to write.
        names: of the slices.
        images: (height, width), about [0, 1].
        labels: bool (height, width), True = interior.
        probabilities: P(interior) in [0, 1], (height, width).
        masks: bool (height, width), True = interior.
        scores: of each mask, with v_rand and v_info.
    """
    order = sorted(range(len(names)), key=lambda i: np.nan_to_num(scores[i]["v_rand"], nan=2.0))
    rows = []
    for i in order[:VALIDATION_ROWS]:
        grey = to_bytes(np.clip(images[i], 0, 1))
        errors = np.stack([grey] * 3, axis=-1)
        errors[~labels[i] & masks[i]] = MISSED
        errors[labels[i] & ~masks[i]] = INVENTED
        cells = _draw_cell_errors(grey, *find_errors(labels[i], masks[i]))
        scored = f"V_rand {scores[i]['v_rand']:.4f}   V_info {scores[i]['v_info']:.4f}"
        rows.append(
            [
                (f"{names[i]}   {scored}", grey),
                ("label", labels[i] * np.uint8(255)),
                ("P(interior)", to_bytes(probabilities[i])),
                ("mask", masks[i] * np.uint8(255)),
                ("membrane missed (vermilion), invented (blue)", errors),
                ("cells merged (vermilion), split (blue), largest first", cells),
            ]
        )
    _write_sheet(path, rows, PANEL)


def _draw_cell_errors(grey: np.ndarray, merged: np.ndarray, split: np.ndarray) -> np.ndarray:
    """Returns a slice with the parts of `metrics.find_errors` in colour, the largest numbered."""
    picture = np.stack([grey] * 3, axis=-1)
    for parts, colour in ((merged, MISSED), (split, INVENTED)):
        inside = parts > 0
        picture[inside] = picture[inside] // 2 + np.array(colour, np.uint8) // 2
    drawing = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(drawing), ImageFont.load_default(20)
    for parts in (merged, split):
        for number in range(1, min(NUMBERED, parts.max()) + 1):
            rows, cols = np.nonzero(parts == number)
            place = float(np.median(cols)), float(np.median(rows))
            outline = {"anchor": "mm", "font": font, "stroke_width": 2, "stroke_fill": "black"}
            pen.text(place, str(number), fill="white", **outline)
    return np.asarray(drawing)


def draw_contact_sheet(
    path: Path, captions: Sequence[str], images: Sequence[np.ndarray], masks: Sequence[np.ndarray]
) -> None:
    """Draws each slice beside its mask, three pairs to a row.

    Args:
        path: the PNG to write.
        captions: one line per slice.
        images: thumbnails, uint8 (height, width).
        masks: thumbnails, uint8 (height, width), 255 = interior.
    """
    panels = []
    for caption, image, mask in zip(captions, images, masks, strict=True):
        panels += [(caption, image), ("mask", mask)]
    _write_sheet(path, [panels[start : start + 6] for start in range(0, len(panels), 6)], THUMBNAIL)


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 or about [0, 1], as uint8 no larger than a thumbnail."""
    grey = image if image.dtype == np.uint8 else to_bytes(np.clip(image, 0, 1))
    small = Image.fromarray(np.ascontiguousarray(grey))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def _write_sheet(path: Path, rows: list[list[tuple[str, np.ndarray]]], panel: int) -> None:
    """Writes rows of captioned panels on a white page."""
    font = ImageFont.load_default(max(11, panel // 28))
    pictures = []
    for row in rows:
        pictures.append([])
        for caption, array in row:
            caption = " ".join(caption.split())  # a file's name may have lines
            picture = Image.fromarray(np.ascontiguousarray(array))
            picture.thumbnail((panel, panel), Image.Resampling.BOX)
            pictures[-1].append((caption, picture))
    gap = 8
    heights = [max(p.height for _, p in row) + CAPTION + gap for row in pictures]
    width = max(len(row) for row in pictures) * (panel + gap) + gap
    page = Image.new("RGB", (width, sum(heights) + gap), "white")
    pen = ImageDraw.Draw(page)
    top = gap
    for row, height in zip(pictures, heights, strict=True):
        for column, (caption, picture) in enumerate(row):
            left = gap + column * (panel + gap)
            while pen.textlength(caption, font) > panel and len(caption) > 1:
                caption = caption[:-2] + "…"
            pen.text((left, top + 2), caption, "black", font)
            page.paste(picture, (left, top + CAPTION))
        top += height
    with atomic_write(path) as part:
        page.save(part, format="PNG")
