"""Measures the recipe on slices unlike those it was trained on, and writes the tables.

python benchmarks/transfer.py shifts    held-out slices altered: exposure, blur, noise, pixel size
python benchmarks/transfer.py own-data  a few slices of another kind, with --init and without

`shifts` uses the networks that quality.py left in outputs/quality. `own-data` goes on where it was
interrupted.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import doors
import quality
from quality import DEFAULT, HERE, ROWS, SCORES, SLICES, fit_network, load_slices, read_rows

import train

SHIFTS, OWN = HERE / "shifts.json", HERE / "own_data.jsonl"
STARTS = "--init", "from nothing"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="transfer.py", description=__doc__)
    parser.add_argument("what", choices=("shifts", "own-data"))
    parser.add_argument("--data", default="kaggle", help="as for train.py; default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(measure, parse_args(argv), "transfer.py")


def measure(args: argparse.Namespace) -> int:
    """Does what the flags say."""
    doors.import_tensorflow_quietly()
    import runs
    import tensorflow as tf
    from files import write_json

    tf.config.experimental.enable_op_determinism()
    pairs = load_slices(args.data, SLICES)
    if args.what == "shifts":
        write_json(
            SHIFTS, score_shifts(args.data, pairs, read_rows(ROWS), runs.OUTPUTS / "quality")
        )
    else:
        score_own_data(pairs, runs.OUTPUTS / "quality")
    quality.write_tables(draw_tables())
    return 0


def score_shifts(source: str, pairs, rows: list[dict], scratch: Path) -> dict:
    """Scores every block of the small recipe, seed 0, at its fixed threshold, on altered slices.

    Returns:
        Of each alteration, the mean V_rand and V_info over all slices.
    """
    import grey
    import metrics
    import numpy as np
    import runs
    import slices
    from inference import Predictor, load_network
    from masks import to_mask
    from scipy import ndimage

    import data
    import unet

    def clip(image):
        return np.clip(np.round(image), 0, 255).astype(np.uint8)

    def zoom(factor):
        return lambda x: clip(grey.resize(x, tuple(round(side * factor) for side in x.shape)))

    random = np.random.default_rng(0)
    alterations = {  # of 8-bit slices; and the scale to predict at
        "none": (lambda x: x, 1),
        "brightness - 20 %": (lambda x: clip(x - 51.0), 1),
        "brightness + 20 %": (lambda x: clip(x + 51.0), 1),
        "contrast - 20 %": (lambda x: clip((x - x.mean()) * 0.8 + x.mean()), 1),
        "contrast + 20 %": (lambda x: clip((x - x.mean()) * 1.2 + x.mean()), 1),
        "gamma 0.7": (lambda x: clip(255 * (x / 255) ** 0.7), 1),
        "gamma 1.4": (lambda x: clip(255 * (x / 255) ** 1.4), 1),
        "blur, σ 1 px": (lambda x: clip(ndimage.gaussian_filter(x.astype(float), 1)), 1),
        "noise, σ 10 %": (lambda x: clip(x + random.normal(0, 25.5, x.shape)), 1),
        "5 nm pixels": (zoom(0.8), 1),
        "5 nm pixels, --pixel-size 5": (zoom(0.8), 1.25),
        "3.2 nm pixels": (zoom(1.25), 1),
        "3.2 nm pixels, --pixel-size 3.2": (zoom(1.25), 0.8),
    }
    images = dict(slices.read_named(data.find_data_set(source, runs.OUTPUTS / runs.DRAWN).images))
    own = [row for row in rows if row["recipe"] == "small" and row["seed"] == 0]
    if len(own) < quality.BLOCKS:
        raise slices.UserError(
            f"{ROWS}: {len(own)} rows of small; run quality.py --only small first"
        )
    thresholds = quality.summarise(own, DEFAULT)["blocks"]
    scores = {name: [] for name in alterations}
    for row in own:
        folder = scratch / f"small-{row['block']}-0"
        network = load_network(folder / "model.keras")
        predict = Predictor(unet.with_dtype(network, unet.choose_dtype()[0]), tta=True)
        for slice_name in row["slices"]:
            label = pairs.labels[pairs.names.index(slice_name)]
            for name, (alter, scale) in alterations.items():
                image = grey.normalise(alter(images[slice_name]))
                mask = to_mask(predict(image, scale), thresholds[0, row["block"]][0])
                truth = label if mask.shape == label.shape else resize_label(label, mask.shape)
                scores[name].append(metrics.score_segmentation(truth, mask))
    means = {name: metrics.mean_scores(one) for name, one in scores.items()}
    return {name: [round(one[key], 4) for key in SCORES[:2]] for name, one in means.items()}


def score_own_data(pairs, scratch: Path) -> None:
    """Trains on slices 1 to 12, then on one, two and five of 14 to 18 made another kind of slice.

    Appends a row per training that has none yet to own_data.jsonl.
    """
    fit_network(pairs.take(range(12)), ["--epochs", "60"], 0, scratch / "own")
    done = {(row["slices"], row["start"]) for row in read_rows(OWN)}
    jobs = [(0, STARTS[0]), *((count, start) for count in (1, 2, 5) for start in STARTS)]
    jobs = [job for job in jobs if job not in done]
    with quality.several_at_once() as each:
        for row in each(partial(score_own, darken(pairs), scratch / "own"), jobs):
            with OWN.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def score_own(pairs, folder: Path, job: tuple[int, str]) -> dict:
    """Trains on some slices; returns the scores on slices 20 to 25 at the threshold 0.5.

    Args:
        pairs: all slices, of the new kind.
        folder: of the first run; gets those of the new ones.
        job: how many slices to train on, 0 for the first run as it is, and one of `STARTS`.
    """
    import metrics
    from inference import Predictor, load_network
    from masks import make_masker

    count, start = job
    network = load_network(folder / "model.keras") if start == STARTS[0] else None
    minutes = 0.0
    if count:
        flags = ["--epochs", str(train.EPOCHS_INIT)]
        place = folder / f"{count}-{start}".replace(" ", "-")
        network, _, about = fit_network(pairs.take(range(13, 13 + count)), flags, 0, place, network)
        minutes = about["minutes"]
    held_out = pairs.take(range(19, 25))
    predict = Predictor(network, tta=True)
    maskers = [make_masker(predict(image)) for image in held_out.images]
    mean = metrics.mean_scores(
        [row[0] for row in metrics.score_thresholds(held_out.labels, maskers, (0.5,))]
    )
    row = {"slices": count, "start": start, "minutes": minutes}
    return row | {key: round(mean[key], 4) for key in SCORES}


def darken(pairs):
    """Returns the slices at 5 nm per pixel, darker and flatter."""
    import numpy as np
    from grey import normalise, resize

    from data import Pairs

    images, labels = [], []
    for image, label in zip(pairs.images, pairs.labels, strict=True):
        shape = tuple(round(0.8 * side) for side in image.shape)
        darker = 0.7 * np.clip(resize(image, shape), 0, 1) ** 1.4
        images.append(normalise(np.round(255 * darker).astype(np.uint8)))
        labels.append(resize_label(label, shape))
    return Pairs(pairs.names, images, labels)


def resize_label(label, shape: tuple[int, int]):
    """Returns a label at another size whose cells stay apart."""
    import numpy as np
    from skimage.measure import label as connected_components

    rows, cols = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for new, old in zip(shape, label.shape, strict=True)
    )
    cells = connected_components(label, connectivity=1)[np.ix_(rows, cols)]
    resized = cells > 0
    resized[1:] &= (cells[1:] == cells[:-1]) | (cells[:-1] == 0)
    resized[:, 1:] &= (cells[:, 1:] == cells[:, :-1]) | (cells[:, :-1] == 0)
    return resized


def draw_shifts(scores: dict[str, list[float]]) -> str:
    """Returns the table of altered slices in Markdown."""
    lines = ["| slices altered by | V_rand | V_info |", "|---|---|---|"]
    lines += [
        f"| {name} | {v_rand:.4f} | {v_info:.4f} |" for name, (v_rand, v_info) in scores.items()
    ]
    return "\n".join(lines)


def draw_own_data(rows: list[dict]) -> str:
    """Returns the table of trainings on few slices in Markdown."""
    lines = [
        "| labelled slices | training | V_rand | V_info | membrane F1 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[key]:.4f}" for key in SCORES)
        how = (
            f"{row['start']}, {row['minutes']:g} min" if row["slices"] else "the first run as it is"
        )
        lines.append(f"| {row['slices']} | {how} | {cells} |")
    return "\n".join(lines)


def draw_tables() -> dict[str, str]:
    """Returns the tables by their names."""
    tables = {}
    if OWN.exists():
        tables["own data"] = draw_own_data(read_rows(OWN))
    if SHIFTS.exists():
        tables["shifts"] = draw_shifts(json.loads(SHIFTS.read_text(encoding="utf-8")))
    return tables


if __name__ == "__main__":
    sys.exit(main())
