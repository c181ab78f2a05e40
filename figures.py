"""Pictures to look at: training curves, the validation sheet, the contact sheet of a prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from grey import to_bytes
from slices import whole_file

MISSED = (213, 94, 0)  # vermilion and blue: told apart by colour-blind eyes too (Okabe and Ito)
INVENTED = (0, 114, 178)
PANEL = 512  # px, the largest side of a slice in the validation sheet
VALIDATION_ROWS = 10
THUMBNAIL = 256  # px, in the contact sheet
CAPTION = 26  # px


def draw_curves(path: Path, history: Sequence[dict]) -> None:
    """Draws loss, membrane IoU and the challenge's scores over epochs.

    Args:
        path: the PNG to write.
        history: a row per epoch, as in history.csv; None where a value was not measured.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = (
        ("loss", "val_loss"),
        ("membrane_iou", "val_membrane_iou"),
        ("val_v_rand", "val_v_info"),
    )
    titles = ("binary cross-entropy", "membrane IoU at 0.5", "V_rand and V_info, best threshold")
    for axes, columns, title in zip(figure.subplots(1, 3), panels, titles, strict=True):
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
    with whole_file(path) as part:
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
    """Draws slice | label | P(interior) | mask | errors of the ten worst slices, worst first.

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
        grey = _grey(images[i])
        errors = np.stack([grey] * 3, axis=-1)
        errors[~labels[i] & masks[i]] = MISSED
        errors[labels[i] & ~masks[i]] = INVENTED
        scored = f"V_rand {scores[i]['v_rand']:.4f}   V_info {scores[i]['v_info']:.4f}"
        rows.append(
            [
                (f"{names[i]}   {scored}", grey),
                ("label", labels[i] * np.uint8(255)),
                ("P(interior)", to_bytes(probabilities[i])),
                ("mask", masks[i] * np.uint8(255)),
                ("membrane missed (vermilion), invented (blue)", errors),
            ]
        )
    _write_sheet(path, rows, PANEL)


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


def thin(image: np.ndarray) -> np.ndarray:
    """Returns a huge slice with rows and columns left out, enough of them for a thumbnail."""
    step = max(1, max(image.shape) // (2 * THUMBNAIL))
    return image[::step, ::step]


def make_thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns an image, uint8 or about [0, 1], as uint8 no larger than a thumbnail."""
    grey = image if image.dtype == np.uint8 else _grey(image)
    small = Image.fromarray(np.ascontiguousarray(grey))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return np.asarray(small)


def _grey(image: np.ndarray) -> np.ndarray:
    return to_bytes(np.clip(image, 0, 1))


def _write_sheet(path: Path, rows: list[list[tuple[str, np.ndarray]]], panel: int) -> None:
    """Writes rows of captioned panels on a white page."""
    font = ImageFont.load_default(max(11, panel // 28))
    pictures = []
    for row in rows:
        pictures.append([])
        for caption, array in row:
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
    with whole_file(path) as part:
        page.save(part, format="PNG")
