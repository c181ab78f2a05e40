"""Cross-validates the recipes on ISBI-2012, writes the tables, trains the models that ship.

python benchmarks/quality.py               every training that has no row yet, then the tables
python benchmarks/quality.py --only small  the trainings of one recipe only
python benchmarks/quality.py --tables      the tables only
python benchmarks/quality.py --ship small  trains on all 25 slices, into outputs/pretrained
python benchmarks/quality.py --smoke       all of it in a minute on synthetic slices; keeps nothing

Five contiguous blocks of slices are held out in turn; the slice on either side of a block is not
used. Each training is one of train.py without validation, so its last epoch counts. The scores of
every held-out slice at every threshold are one row of quality.jsonl. A block is quoted at the
threshold chosen on the other blocks (leave-one-out). An interrupted command goes on where it
stopped.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import zlib
from itertools import islice, product
from pathlib import Path

import numpy as np
from engines import load_keras
from result_tables import HERE, append_row, draw_table, read_rows, write_tables

import train
from membrane import cli, metrics, runs
from membrane.errors import UserError
from membrane.inference.neighbours import precompute_segmentations
from membrane.io.labels import to_interior
from membrane.io.normalization import normalize
from membrane.io.readers import read_named
from membrane.io.writers import atomic_write, write_json, write_pages

ROWS, SCRATCH = HERE / "quality.jsonl", runs.OUTPUTS / "quality"
SLICES, BLOCKS = 25, 5
RECIPES = {  # flags of train.py
    "small": [],
    "large": ["--filters", "16", "32", "64", "128", "256", "--epochs", "120"],
    "smoke": ["--filters", "4", "8", "--epochs", "1"],
}
PLAN = [*(("small", seed) for seed in range(5)), *(("large", seed) for seed in range(4))]
SHIPPED = {"small": "pretrained", "large": "large"}  # recipe: folder in outputs/
ALONE, TOGETHER = (lambda maps, way=way: precompute_segmentations(maps, way) for way in (0, 1))
METHODS = {  # of turning the network's output into masks: flips averaged? what joins its cells?
    "flips averaged, neighbours": (True, TOGETHER),
    "one pass, neighbours": (False, TOGETHER),
    "flips averaged": (True, ALONE),
    "one pass": (False, ALONE),
    "flips averaged, plain threshold": (True, lambda maps: [one.__gt__ for one in maps]),
    "one pass, plain threshold": (False, lambda maps: [one.__gt__ for one in maps]),
}
DEFAULT, QUICK = "flips averaged, neighbours", "one pass, neighbours"
SINGLE = ("flips averaged", "one pass")  # the same, each slice by itself
SCORES = ("v_rand", "v_info", "membrane_f1")
SCORE_NAMES = ("V_rand", "V_info", "membrane F1")  # the same in a table


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = cli.Parser(prog="quality.py", description=__doc__)
    add = parser.add_argument
    add("--data", default="kaggle", help="as for train.py; default: %(default)s")
    add("--only", choices=SHIPPED, help="the trainings of this recipe only")
    add("--tables", action="store_true", help="measure nothing, write the tables")
    add("--ship", choices=SHIPPED, help="train this recipe on all slices, write the shipped run")
    add("--smoke", action="store_true", help="a minute on synthetic slices; keeps nothing")
    return cli.run(measure, parser.parse_args(argv), "quality.py")


def measure(args: argparse.Namespace) -> int:
    """Does what the flags ask for; returns the exit status."""
    if args.smoke:
        smoke()
        return 0
    if args.ship:
        slices, target = load_slices(args.data, SLICES), runs.OUTPUTS / SHIPPED[args.ship]
        ship(args.ship, slices, read_rows(ROWS), SCRATCH, target)
    elif not args.tables:
        plan = [part for part in PLAN if args.only in (None, part[0])]
        cross_validate(load_slices(args.data, SLICES), plan, ROWS, SCRATCH)
    write_tables(draw_tables(read_rows(ROWS)))
    return 0


def smoke() -> None:
    """Runs everything on synthetic slices with trainings of one epoch."""
    slices = load_slices("synthetic", 15)
    with tempfile.TemporaryDirectory() as folder:
        rows, scratch = Path(folder, "rows.jsonl"), Path(folder, "scratch")
        cross_validate(slices, [("smoke", 0)], rows, scratch)
        ship("smoke", slices, read_rows(rows), scratch, Path(folder, "shipped"))
        print(draw_recipes(read_rows(rows)), draw_blocks(read_rows(rows), "smoke"), sep="\n\n")


def load_slices(source: str, count: int) -> list[tuple]:
    """Returns the first labelled slices of a data set; a later one is never used.

    Each is a name, an image and a label, uint8 (height, width), 0 = membrane, 255 = interior.
    """
    cli.start_tensorflow(training=True)
    import data

    data_set = data.find_data_set(source, runs.OUTPUTS / runs.SYNTHETIC_SLICES)
    pairs = zip(read_named(data_set.images), read_named(data_set.labels), strict=True)
    slices = [(name, image, label) for (name, image), (_, label) in islice(pairs, count)]
    if len(slices) < count:
        raise UserError(f"{source}: {len(slices)} labelled slices; expected {count} or more")
    return slices


def cross_validate(slices: list, plan: list, rows: Path, scratch: Path) -> None:
    """Trains and scores every block of every (recipe, seed) that has no row yet; appends it."""
    known = {(row["recipe"], row["seed"], row["block"]): row["epochs"] for row in read_rows(rows)}
    for (recipe, _, _), epochs in known.items():
        wanted = resolve_flags(RECIPES[recipe]).epochs
        if epochs != wanted:
            trained = f"{recipe} was trained for {epochs} epochs, now it would be {wanted}"
            raise UserError(f"{rows}: {trained}; remove its rows")
    jobs = [(recipe, block, seed) for recipe, seed in plan for block in range(BLOCKS)]
    for recipe, block, seed in jobs:
        if (recipe, seed, block) not in known:
            append_row(rows, score_block(slices, scratch, recipe, block, seed))


def split_block(count: int, block: int) -> tuple[list[int], list[int]]:
    """Returns the indices of the slices to train on, and of the block that is held out."""
    size = count // BLOCKS
    held_out = range(block * size, (block + 1) * size)
    near = range(held_out.start - 1, held_out.stop + 1)
    return [i for i in range(count) if i not in near], list(held_out)


def resolve_flags(flags: list[str]) -> argparse.Namespace:
    """Returns train.py's flags with every default filled in."""
    args = train.parse_args(flags)
    train.resolve_defaults(args, synthetic=False)
    return args


def train_run(slices: list, flags: list[str], folder: Path) -> tuple[Path, dict]:
    """Trains by train.py on all slices given, or goes on where an interrupted training stopped.

    A checksum of flags and slices is appended to the folder's name, so that no training goes on
    with others. Returns the folder of the finished run, and its record with its minutes.
    """
    settings = resolve_flags(flags)
    checksum = zlib.crc32(repr(settings).encode())
    for _, *pixels in slices:
        checksum = zlib.crc32(np.stack(pixels), checksum)
    folder = folder.with_name(f"{folder.name}-{checksum:08x}")
    source, run = folder / "slices", folder / "run"
    known = (run / "run.json").exists()
    if not (known and runs.read_run(run)["finished"]):
        for name, image, label in slices:
            write_pages(source / "image" / f"{name}.png", [image])
            write_pages(source / "label" / f"{name}.png", [label])
        print(f"{folder.name}: {len(slices)} slices, {settings.epochs} epochs", flush=True)
        begin = ["--data", str(source), "--val-slices", "none", "--threshold", "0.5", *flags]
        command = ["--resume", str(run)] if known else [*begin, "--output", str(run)]
        log = open(folder / "log.txt", "a", encoding="utf-8")
        with log, contextlib.redirect_stdout(log):
            if train.train(train.parse_args(command)):
                raise KeyboardInterrupt
    history = np.genfromtxt(run / "history.csv", delimiter=",", names=True)
    return run, runs.read_run(run) | {"minutes": round(float(history["seconds"].sum()) / 60, 1)}


def train_without_block(
    slices: list, scratch: Path, recipe: str, block: int, seed: int
) -> tuple[list, Path, dict]:
    """Returns the slices of the block, and run and record of a training on the others."""
    training, held_out = ([slices[i] for i in part] for part in split_block(len(slices), block))
    flags = [*RECIPES[recipe], "--seed", str(seed)]
    return held_out, *train_run(training, flags, scratch / f"{recipe}-{block}-{seed}")


def make_predictor(run: Path, tta: bool):
    """Returns the `Predictor` of a finished run."""
    from membrane.inference.predictor import Predictor

    return Predictor(load_keras("", run), tta)


def score_block(slices: list, scratch: Path, recipe: str, block: int, seed: int) -> dict:
    """Trains without a block; returns the row of its scores."""
    held_out, run, record = train_without_block(slices, scratch, recipe, block, seed)
    labels, scores = [to_interior(label, name) for name, _, label in held_out], {}
    predictors = {tta: make_predictor(run, tta) for tta in (True, False)}
    maps = {
        tta: [predict(normalize(image)) for _, image, _ in held_out]
        for tta, predict in predictors.items()
    }
    for method, (tta, segment) in METHODS.items():
        table = metrics.score_thresholds(labels, segment(maps[tta]))
        scores[method] = [[[round(r[key], 4) for key in SCORES] for r in rows] for rows in table]
    return {
        "recipe": recipe,
        "block": block,
        "seed": seed,
        **{key: record[key] for key in ("parameters", "epochs", "minutes", "device")},
        "slices": [name for name, _, _ in held_out],
        "thresholds": metrics.THRESHOLDS,
        "scores": scores,
    }


def ship(recipe: str, slices: list, rows: list[dict], scratch: Path, target: Path) -> None:
    """Trains on all slices and writes model and run.json, with the cross-validated thresholds."""
    import data

    own = [row for row in rows if row["recipe"] == recipe]
    if not own:
        raise UserError(f"{ROWS}: has no {recipe} row to choose the threshold on; train them first")
    run, record = train_run(slices, RECIPES[recipe], scratch / f"{recipe}-all")
    record["flags"] |= {"data": "kaggle", "output": None, "threshold": None, "val_slices": None}
    record |= {"pixel_size": data.PIXEL_SIZE, "cross_validation": {}}
    thresholds = {DEFAULT: "threshold", QUICK: "threshold_without_tta"}
    for method in (DEFAULT, QUICK, *SINGLE):
        result = summarise(own, method)
        v_rand, v_info, _ = result["leave_one_out"].mean(0).tolist()
        about = {"trainings": result["trainings"], "v_rand": v_rand, "v_info": v_info}
        record["cross_validation"][method] = about
        if method in thresholds:
            record[thresholds[method]] = result["threshold"]
    with atomic_write(target / "model.keras") as part:
        shutil.copyfile(run / "model.keras", part)
    write_json(target / "run.json", record)


def summarise(rows: list[dict], method: str) -> dict | None:
    """Returns what the trainings of one recipe scored by one of `METHODS`; None: none has been.

    Returns:
        trainings: how many there are.
        blocks: (seed, block) → the threshold chosen on the other blocks of that seed, and the
            block's mean of each of `SCORES` there; without those that have no other block.
        leave_one_out: float (blocks, scores), the same scores as one array.
        oracle: V_rand and V_info, each at the one threshold that is best for all.
        threshold: the one chosen on all rows.
    """
    rows, blocks = [row for row in rows if method in row["scores"]], {}
    if not rows:
        return None
    thresholds = rows[0]["thresholds"]
    tables = {(row["seed"], row["block"]): np.array(row["scores"][method]) for row in rows}

    def choose(some):  # each of a block: (slices, thresholds, scores)
        named = np.concatenate(some).view([(key, float) for key in SCORES])[..., 0]
        return metrics.choose_threshold(named)

    for (seed, block), table in tables.items():
        others = [other for (s, b), other in tables.items() if s == seed and b != block]
        if others:
            place = choose(others)
            blocks[seed, block] = thresholds[place], table[:, place].mean(0)
    every = list(tables.values())
    return {
        "trainings": len(rows),
        "blocks": blocks,
        "leave_one_out": np.array([scores for _, scores in blocks.values()]),
        "oracle": np.concatenate(every).mean(0).max(0)[:2],
        "threshold": thresholds[choose(every)],
    }


def draw_recipes(rows: list[dict]) -> str:
    """Returns the table of recipes in Markdown."""
    quoted = "V_rand, leave-one-out", "V_info, leave-one-out", "oracle", "membrane F1", "threshold"
    header = "recipe", "parameters", "masks from", "trainings", *quoted, "training"
    lines = []
    for recipe, method in product(dict.fromkeys(row["recipe"] for row in rows), METHODS):
        own = [row for row in rows if row["recipe"] == recipe]
        result = summarise(own, method)
        if result and result["blocks"]:
            v_rand, v_info, f1 = result["leave_one_out"].T
            line = [recipe, f"{own[0]['parameters']:,}", method, result["trainings"]]
            line += [f"{one.mean():.4f} ± {one.std():.4f}" for one in (v_rand, v_info)]
            line += ["{:.4f} / {:.4f}".format(*result["oracle"]), f"{f1.mean():.4f}"]
            minutes = np.mean([row["minutes"] for row in own])
            line += [f"{result['threshold']:g}", f"{own[0]['epochs']} epochs, {minutes:.0f} min"]
            lines.append(line)
    return draw_table(header, lines)


def draw_blocks(rows: list[dict], recipe: str) -> str:
    """Returns the table of one recipe's held-out blocks in Markdown."""
    own = {(row["seed"], row["block"]): row for row in rows if row["recipe"] == recipe}
    found = (summarise(list(own.values()), method) for method in (DEFAULT, SINGLE[0]))
    blocks, lines = next((one["blocks"] for one in found if one), {}), []
    for key, (threshold, scores) in blocks.items():
        slices = own[key]["slices"]
        line = [f"{slices[0]} to {slices[-1]}", own[key]["seed"], f"{threshold:g}"]
        lines.append([*line, *(f"{one:.4f}" for one in scores)])
    return draw_table(("held out", "seed", "threshold from the others", *SCORE_NAMES), lines)


def draw_tables(rows: list[dict]) -> dict[str, str]:
    """Returns every table by its name."""
    blocks = {f"blocks {recipe}": draw_blocks(rows, recipe) for recipe in SHIPPED}
    return {"recipes": draw_recipes(rows), **blocks}


if __name__ == "__main__":
    sys.exit(main())
