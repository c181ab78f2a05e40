"""Measures the recipe on slices unlike those it was trained on, and writes the tables.

python benchmarks/transfer.py shifts    held-out slices altered: exposure, blur, noise, pixel size
python benchmarks/transfer.py own-data  a few slices of another kind, with --init and without
python benchmarks/transfer.py corrected the same, their labels being masks with some decisions

The last two go on where they were interrupted; `shifts` uses the networks of quality.py.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import quality
from proofreading import COUNTS, proofread
from quality import DEFAULT, SCORE_NAMES, SCORES
from result_tables import HERE, append_row, draw_table, read_rows, write_tables
from scipy import ndimage
from skimage.measure import label as connected_components

import train
from membrane import cli, metrics
from membrane.errors import UserError
from membrane.inference.masks import segment
from membrane.io.labels import to_interior
from membrane.io.normalization import normalize, resize
from membrane.io.writers import write_json

SHIFTS, OWN = HERE / "shifts.json", HERE / "own_data.jsonl"
CORRECTED = HERE / "corrected.jsonl"
CORRECTED_JOBS = [*((count, False) for count in COUNTS), (max(COUNTS), True)]
NEAR, UNKNOWN = 48, 128  # px around corrections, and the label elsewhere, as the page saves them
OWN_SCRATCH = quality.SCRATCH / "own"
INIT, NOTHING = "--init", "from nothing"
OWN_JOBS = [(0, INIT), *((count, start) for count in (1, 2, 5) for start in (INIT, NOTHING))]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="transfer.py", description=__doc__)
    parser.add_argument("what", choices=("shifts", "own-data", "corrected"))
    parser.add_argument("--data", default="kaggle", help="as for train.py; default: %(default)s")
    return cli.run(measure, parser.parse_args(argv), "transfer.py")


def measure(args: argparse.Namespace) -> int:
    """Measures what the flags say and writes its table; returns the exit status."""
    slices = quality.load_slices(args.data, quality.SLICES)
    if args.what == "shifts":
        write_json(SHIFTS, score_shifts(slices, read_rows(quality.ROWS)))
    elif args.what == "corrected":
        done = [(row["decisions"], row["near"]) for row in read_rows(CORRECTED)]
        for job in CORRECTED_JOBS:
            if job not in done:
                append_row(CORRECTED, score_corrected(slices, *job))
    else:
        done = [(row["slices"], row["start"]) for row in read_rows(OWN)]
        for job in OWN_JOBS:
            if job not in done:
                append_row(OWN, score_own(slices, *job))
    write_tables(draw_tables())
    return 0


def to_grey_values(image: np.ndarray) -> np.ndarray:
    """Returns grey values as files store them, uint8."""
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """Returns a slice of another pixel size, float32."""
    return resize(image, tuple(round(side * factor) for side in image.shape))


def list_alterations() -> dict[str, tuple]:
    """Returns alterations of slices, uint8 (height, width), and the scale to predict each at."""
    random = np.random.default_rng(0)
    return {
        "none": (lambda x: x, 1),
        "brightness - 20 %": (lambda x: x - 51.0, 1),
        "brightness + 20 %": (lambda x: x + 51.0, 1),
        "contrast - 20 %": (lambda x: (x - x.mean()) * 0.8 + x.mean(), 1),
        "contrast + 20 %": (lambda x: (x - x.mean()) * 1.2 + x.mean(), 1),
        "gamma 0.7": (lambda x: 255 * (x / 255) ** 0.7, 1),
        "gamma 1.4": (lambda x: 255 * (x / 255) ** 1.4, 1),
        "blur, σ 1 px": (lambda x: ndimage.gaussian_filter(x.astype(float), 1), 1),
        "noise, σ 10 %": (lambda x: x + random.normal(0, 25.5, x.shape), 1),
        "5 nm pixels": (lambda x: zoom(x, 0.8), 1),
        "5 nm pixels, --pixel-size 5": (lambda x: zoom(x, 0.8), 1.25),
        "3.2 nm pixels": (lambda x: zoom(x, 1.25), 1),
        "3.2 nm pixels, --pixel-size 3.2": (lambda x: zoom(x, 1.25), 0.8),
    }


def score_masks(predict: Callable, slices: list, threshold: float, scale: float = 1) -> list[dict]:
    """Returns the scores of each slice, predicted at a scale; labels are resized if need be."""
    scores = []
    for name, image, label in slices:
        probability = predict(normalize(image), (scale, scale))
        mask = segment(probability > 0.5, probability).close_gaps(threshold).mask()
        truth = resize_label(to_interior(label, name), mask.shape)
        scores.append(metrics.score_slice(truth, mask))
    return scores


def score_shifts(slices: list, rows: list[dict]) -> dict[str, list[float]]:
    """Returns the mean V_rand and V_info of each alteration over all blocks.

    Each block is predicted by the small recipe's network of seed 0 that has not seen it, at its
    leave-one-out threshold.
    """
    own = [row for row in rows if row["recipe"] == "small" and row["seed"] == 0]
    if len(own) < quality.BLOCKS:
        raise UserError(f"{quality.ROWS}: run python benchmarks/quality.py --only small first")
    blocks = quality.summarise(own, DEFAULT)["blocks"]
    alterations = list_alterations()
    scores = {what: [] for what in alterations}
    for block in range(quality.BLOCKS):
        held_out, run, _ = quality.train_without_block(slices, quality.SCRATCH, "small", block, 0)
        predict, threshold = quality.make_predictor(run, tta=True), blocks[0, block][0]
        for what, (alter, scale) in alterations.items():
            altered = [(name, to_grey_values(alter(x)), label) for name, x, label in held_out]
            scores[what] += score_masks(predict, altered, threshold, scale)
    means = {what: metrics.mean_scores(some) for what, some in scores.items()}
    return {what: [round(mean[key], 4) for key in SCORES[:2]] for what, mean in means.items()}


def score_own(slices: list, count: int, start: str) -> dict:
    """Trains on slices that stand for another microscope's; returns the row of the scores.

    Args:
        slices: all of them; a first run is trained on 1 to 12, as they are.
        count: how many of 14 to 18 to train on, darkened; 0 for the first run itself. It is scored
            on 20 to 25, darkened, at the threshold 0.5.
        start: `INIT`, from the first run, or `NOTHING`, for as long.
    """
    minutes, run = 0.0, train_first(slices)
    if count:
        flags = ["--epochs", str(train.EPOCHS_INIT)]
        flags += ["--init", str(run)] if start == INIT else []
        own = [darken(*one) for one in slices[13 : 13 + count]]
        folder = OWN_SCRATCH / f"{count}-{start}".replace(" ", "-")
        run, record = quality.train_run(own, flags, folder)
        minutes = record["minutes"]
    row = {"slices": count, "start": start, "minutes": minutes}
    return row | score_others(slices, run)


def score_corrected(slices: list, count: int, near: bool) -> dict:
    """Trains on masks of slices of another kind, after so many decisions on each; returns a row.

    The first run predicts 14 to 18, darkened, as predict.py does; the labels decide what the page
    asks; the masks with these corrections, or only what is `near` them, are what `train.py --init`
    goes on with.
    """
    own = [darken(*one) for one in slices[13:18]]
    first = train_first(slices)
    flags = ["--model", str(first), "--threshold", "0.5"]
    with tempfile.TemporaryDirectory() as scratch:
        masks, changed = proofread(Path(scratch), own, flags, count)
        made = json.loads(Path(scratch, f"worth-{count}.json").read_text("utf-8"))["slices"]
    labels = [to_interior(label, name) for name, _, label in own]
    pairs = zip(labels, masks, strict=True)
    mean = metrics.mean_scores([metrics.score_slice(*pair) for pair in pairs])
    taught = [
        (name, image, make_label(mask, made[name] if near else None))
        for (name, image, _), mask in zip(own, masks, strict=True)
    ]
    flags = ["--epochs", str(train.EPOCHS_INIT), "--init", str(first)]
    flags += ["--ignore", str(UNKNOWN)] if near else []
    folder = OWN_SCRATCH / f"corrected-{count}{'-near' * near}"
    run, record = quality.train_run(taught, flags, folder)
    row = {"decisions": count, "near": near, "changed": round(np.mean(changed), 3)}
    row |= {"minutes": record["minutes"]}
    row |= {f"corrected_{key}": round(mean[key], 4) for key in SCORES}
    return row | score_others(slices, run)


def make_label(mask: np.ndarray, operations: list[dict] | None) -> np.ndarray:
    """Returns a label, uint8, of a mask, bool: all of it, or what is near some operations."""
    label = mask * np.uint8(255)
    if operations is not None:
        far = np.ones(mask.shape, bool)
        for one in operations:
            far.ravel()[one["pixels"]] = False
        label[ndimage.distance_transform_edt(far) > NEAR] = UNKNOWN
    return label


def train_first(slices: list):
    """Returns the run of slices 1 to 12 as they are."""
    run, _ = quality.train_run(slices[:12], ["--epochs", "60"], OWN_SCRATCH / "first")
    return run


def score_others(slices: list, run) -> dict[str, float]:
    """Returns the scores of a run on slices 20 to 25, darkened, at the threshold 0.5."""
    predict = quality.make_predictor(run, tta=True)
    mean = metrics.mean_scores(score_masks(predict, [darken(*one) for one in slices[19:25]], 0.5))
    return {key: round(mean[key], 4) for key in SCORES}


def darken(name: str, image: np.ndarray, label: np.ndarray) -> tuple:
    """Returns a slice, as `quality.load_slices` gives it, at 5 nm per pixel, darker and flatter."""
    darker = to_grey_values(255 * (0.7 * np.clip(zoom(normalize(image), 0.8), 0, 1) ** 1.4))
    interior = resize_label(to_interior(label, name), darker.shape)
    return name, darker, interior * np.uint8(255)


def resize_label(label: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a label, bool (height, width), at another size; its cells stay apart."""
    if label.shape == shape:
        return label
    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(shape, label.shape, strict=True)
    )
    cells = connected_components(label, connectivity=1)[np.ix_(rows, cols)]
    resized = cells > 0
    resized[1:] &= (cells[1:] == cells[:-1]) | (cells[:-1] == 0)
    resized[:, 1:] &= (cells[:, 1:] == cells[:, :-1]) | (cells[:, :-1] == 0)
    return resized


def draw_tables() -> dict[str, str]:
    """Returns the tables of what has been measured, by their names."""
    own = []
    for row in read_rows(OWN):
        training = f"{row['start']}, {row['minutes']:g} min"
        training = training if row["slices"] else "the first run as it is"
        own.append((row["slices"], training, *(f"{row[key]:.4f}" for key in SCORES)))
    shifts = json.loads(SHIFTS.read_text(encoding="utf-8"))
    lines = [(name, *(f"{score:.4f}" for score in scores)) for name, scores in shifts.items()]
    corrected = [
        (
            f"{row['decisions']}, only near them" if row["near"] else row["decisions"],
            "{corrected_v_rand:.4f} / {corrected_v_info:.4f}".format(**row),
            f"{row['minutes']:g} min",
            *(f"{row[key]:.4f}" for key in SCORES),
        )
        for row in read_rows(CORRECTED)
    ]
    what = "decisions on each of 5 slices", "their masks", "--init"
    tables = {"corrected": draw_table((*what, *SCORE_NAMES), corrected)} if corrected else {}
    return tables | {
        "own data": draw_table(("labelled slices", "training", *SCORE_NAMES), own),
        "shifts": draw_table(("slices altered by", *SCORE_NAMES[:2]), lines),
    }


if __name__ == "__main__":
    sys.exit(main())
