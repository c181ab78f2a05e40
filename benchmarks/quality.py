"""Cross-validates the recipes on ISBI-2012, writes the result tables, makes the shipped models.

python benchmarks/quality.py               every measurement that is missing, then the tables
python benchmarks/quality.py --only small  the trainings of one recipe only
python benchmarks/quality.py --tables      the tables only
python benchmarks/quality.py --ship small  trains on all 25 slices, into outputs/pretrained
python benchmarks/quality.py --smoke       all of it in a minute on drawn slices; keeps nothing

Five contiguous blocks of slices are held out in turn, the slice on either side of a block is not
used, the last epoch is taken. The scores of every held-out slice at every threshold are kept as one
row of quality.jsonl per training; the threshold that a block is quoted at is chosen on the rows of
the other four. As many trainings run at once as there are cores, each on one. An interrupted
command goes on where it stopped.
"""

import argparse
import contextlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from functools import partial
from itertools import islice
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import doors  # noqa: E402 the repository's modules lie one folder up

import train  # noqa: E402

ROWS = HERE / "quality.jsonl"
FILES = ("README.md", "benchmarks/quality.md", "outputs/*/MODEL_CARD.md")  # may have marked tables
MARK, END = "<!-- table: {} -->", "<!-- end -->"
SLICES, BLOCKS = 25, 5
RECIPES = {  # flags of train.py
    "small": [],
    "large": ["--filters", "16", "32", "64", "128", "256", "--epochs", "120"],
    "smoke": ["--filters", "4", "8", "--epochs", "1"],
}
PLAN = [("small", 0), ("large", 0), ("small", 1), ("large", 1), ("small", 2)]  # recipe and seed
SHIPPED = {"small": "pretrained", "large": "large"}  # recipe: folder in outputs/
METHODS = {  # of turning the network's output into masks: flips averaged? whole borders?
    "flips averaged": (True, True),
    "one pass": (False, True),
    "flips averaged, plain threshold": (True, False),
    "one pass, plain threshold": (False, False),
}
DEFAULT, QUICK = "flips averaged", "one pass"
SCORES = ("v_rand", "v_info", "membrane_f1")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Returns the flags."""
    parser = doors.Parser(prog="quality.py", description=__doc__)
    add = parser.add_argument
    add("--data", default="kaggle", help="as for train.py; default: %(default)s")
    add("--only", choices=[recipe for recipe, _ in PLAN], help="the trainings of this recipe only")
    add("--tables", action="store_true", help="measure nothing, write the tables")
    add("--ship", choices=SHIPPED, help="train this recipe on all slices, write the shipped run")
    add("--smoke", action="store_true", help="a minute on drawn slices; keeps nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return doors.run(measure, parse_args(argv), "quality.py")


def measure(args: argparse.Namespace) -> int:
    """Does what the flags say."""
    if args.tables:
        write_tables(draw_tables(read_rows(ROWS)))
        return 0
    doors.import_tensorflow_quietly()
    import runs
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    scratch = runs.OUTPUTS / "quality"
    if args.smoke:
        return smoke()
    pairs = load_slices(args.data, SLICES)
    if args.ship:
        ship(args.ship, pairs, read_rows(ROWS), scratch, runs.OUTPUTS / SHIPPED[args.ship])
    else:
        plan = [part for part in PLAN if args.only in (None, part[0])]
        with several_at_once() as each:
            cross_validate(pairs, plan, ROWS, scratch, each)
    write_tables(draw_tables(read_rows(ROWS)))
    return 0


def smoke() -> int:
    """Runs everything on drawn slices with trainings of one epoch; returns the exit status."""
    pairs = load_slices("synthetic", 15)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        cross_validate(pairs, [("smoke", 0)], rows, Path(folder, "scratch"))
        ship("smoke", pairs, read_rows(rows), Path(folder, "scratch"), Path(folder, "run"))
        print(draw_recipes(read_rows(rows)), draw_blocks(read_rows(rows), "smoke"), sep="\n\n")
        return 0 if (Path(folder, "run") / "model.keras").exists() else 1


def load_slices(source: str, count: int):
    """Returns the first `count` labelled slices of a data set."""
    import runs
    from slices import UserError

    import data

    pairs = data.load_pairs(data.find_data_set(source, runs.OUTPUTS / runs.DRAWN))
    if len(pairs.names) < count:
        raise UserError(f"{source}: {len(pairs.names)} labelled slices; expected {count} or more")
    return pairs.take(range(count))


def cross_validate(
    pairs, plan: Sequence[tuple[str, int]], rows: Path, scratch: Path, each: Callable = map
) -> None:
    """Trains and scores every block with every seed that has no row yet; appends the rows.

    Args:
        pairs: the slices.
        plan: recipes and seeds.
        rows: the file of rows.
        scratch: the folder for the networks.
        each: `map`, or one like it that does several at once.
    """
    from slices import UserError

    done = set()
    for row in read_rows(rows):
        done.add((row["recipe"], row["block"], row["seed"]))
        epochs = settle_flags(RECIPES[row["recipe"]], row["seed"]).epochs
        if row["epochs"] != epochs:
            raise UserError(
                f"{rows}: {row['recipe']} was trained for {row['epochs']} epochs, now it would be "
                f"{epochs}; remove its rows"
            )
    jobs = [(recipe, block, seed) for recipe, seed in plan for block in range(BLOCKS)]
    jobs = [job for job in jobs if job not in done]
    for row in each(partial(score_block, pairs, scratch), jobs):
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def several_at_once() -> Iterator[Callable]:
    """Gives a function like `map`, with a process per core, that yields what is done first.

    Trainings side by side take less time than in turn.
    """
    context, cores = multiprocessing.get_context("spawn"), doors.share_cores()
    with ProcessPoolExecutor(cores, context, prepare_process) as pool:

        def each(work: Callable, jobs: Iterable) -> Iterator:
            jobs, running = iter(jobs), set()
            while True:  # none waits in the pool, whence it could not be called back
                running |= {pool.submit(work, job) for job in islice(jobs, cores - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)

        yield each


def prepare_process() -> None:
    """Readies a process for trainings that end with the same weights whenever they are run."""
    doors.import_tensorflow_quietly()
    import tensorflow as tf

    doors.share_cores()
    tf.config.experimental.enable_op_determinism()


def split_block(count: int, block: int) -> tuple[list[int], list[int]]:
    """Returns the places of the slices to train on, and of the block that is held out."""
    size = count // BLOCKS
    first, last = block * size, (block + 1) * size - 1
    return [i for i in range(count) if not first - 1 <= i <= last + 1], list(range(first, last + 1))


def settle_flags(flags: Sequence[str], seed: int, starts_from_run: bool = False):
    """Returns train.py's flags with every default filled in."""
    args = train.parse_args([*flags, "--seed", str(seed)])
    train.settle_schedule(args, starts_from_run, synthetic=False)
    return args


def fit_network(pairs, flags: Sequence[str], seed: int, folder: Path, initial=None):
    """Trains on all slices given, going on from the folder's checkpoint.

    Args:
        pairs: the slices.
        flags: of train.py.
        seed: of all random choices.
        folder: gets the checkpoint and the network.
        initial: a network to start from, as train.py --init does; None for a new one.

    Returns:
        The network, and train.py's flags with what else is known of the training.
    """
    import fit
    import keras
    import tiles
    from files import write_json
    from slices import UserError

    import unet

    args = settle_flags(flags, seed, initial is not None)
    keras.utils.set_random_seed(seed)
    dtype, device = unet.choose_dtype()
    network = unet.with_dtype(initial or unet.build_unet(args.filters, args.dilation), dtype)
    print(f"{folder.name}: {len(pairs.names)} slices, {args.epochs} epochs, {device}", flush=True)
    begun = {"flags": vars(args), "slices": pairs.checksum(), "from": initial is not None}
    if (folder / fit.CHECKPOINT).exists():
        known = folder / "begun.json"
        if not known.exists() or json.loads(known.read_text(encoding="utf-8")) != begun:
            raise UserError(f"{folder}: of other flags or slices; remove it to train again")
    write_json(folder / "begun.json", begun)
    history = fit.fit(
        network,
        tiles.TileSampler(pairs.images, pairs.labels, seed),
        pairs.take([]),
        folder,
        epochs=args.epochs,
        tiles_per_epoch=train.TILES_PER_EPOCH,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
    )
    if len(history) < args.epochs:
        raise KeyboardInterrupt
    unet.with_dtype(network, "float32").save(folder / "model.keras")
    about = {
        "parameters": network.count_params(),
        "epochs": args.epochs,
        "minutes": round(sum(row["seconds"] for row in history) / 60, 1),
        "device": device,
    }
    return network, args, about


def score_block(pairs, scratch: Path, job: tuple[str, int, int]) -> dict:
    """Trains a recipe without a block; returns the block's scores at every threshold."""
    import metrics
    from inference import Predictor
    from masks import make_masker

    recipe, block, seed = job
    training, held_out = (pairs.take(part) for part in split_block(len(pairs.names), block))
    folder = scratch / f"{recipe}-{block}-{seed}"
    network, _, about = fit_network(training, RECIPES[recipe], seed, folder)
    scores, began = {}, time.monotonic()
    predictors = {tta: Predictor(network, tta) for tta in (False, True)}
    maps = {tta: [predict(one) for one in held_out.images] for tta, predict in predictors.items()}
    for method, (tta, whole_borders) in METHODS.items():
        maskers = [make_masker(one) if whole_borders else one.__gt__ for one in maps[tta]]
        table = metrics.score_thresholds(held_out.labels, maskers)
        scores[method] = [[[round(r[key], 4) for key in SCORES] for r in rows] for rows in table]
    print(f"scored in {time.monotonic() - began:.0f} s", flush=True)
    return {
        "recipe": recipe,
        "block": block,
        "seed": seed,
        **about,
        "slices": held_out.names,
        "thresholds": metrics.THRESHOLDS,
        "scores": scores,
    }


def ship(recipe: str, pairs, rows: list[dict], scratch: Path, target: Path) -> None:
    """Trains on all slices and writes model and run.json, with the cross-validated thresholds."""
    import runs
    from files import whole_file, write_json
    from grey import DEVIATION, MEAN
    from slices import UserError

    import data

    own = [row for row in rows if row["recipe"] == recipe]
    if not own:
        raise UserError(f"{ROWS}: has no {recipe} row to choose the threshold on; train them first")
    results = {method: summarise(own, method) for method in (DEFAULT, QUICK)}
    started = runs.now()
    _, args, about = fit_network(pairs, RECIPES[recipe], 0, scratch / f"{recipe}-all")
    with whole_file(target / "model.keras") as part:
        part.write_bytes((scratch / f"{recipe}-all" / "model.keras").read_bytes())
    record = {
        "format": runs.FORMAT,
        "finished": True,
        "started": started,
        "ended": runs.now(),
        "synthetic": False,
        "flags": vars(args),  # of which --data is "kaggle": no path of this machine
        "pixel_size": data.PIXEL_SIZE,
        "train_slices": pairs.names,
        "val_slices": [],
        **about,
        **runs.describe_versions(),
        "tta": True,
        "threshold": results[DEFAULT]["threshold"],
        "threshold_without_tta": results[QUICK]["threshold"],
        "scaling": {"mean": MEAN, "deviation": DEVIATION},
        "cross_validation": {
            method: {
                "trainings": len(own),
                "v_rand": result["fixed"][0][0],
                "v_info": result["fixed"][1][0],
            }
            for method, result in results.items()
            if result["fixed"]
        },
    }
    write_json(target / "run.json", record)


def read_rows(path: Path) -> list[dict]:
    """Returns the rows of a file, none without it."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summarise(rows: list[dict], method: str) -> dict:
    """Returns mean and deviation over the trainings of one recipe, at thresholds chosen elsewhere.

    Args:
        rows: of one recipe.
        method: one of `METHODS`.

    Returns:
        fixed: per score, (mean, standard deviation) over blocks and seeds, each block at the
            threshold chosen on the other blocks of its seed; None with fewer than two blocks.
        best: V_rand and V_info at the threshold that is best for each over all.
        shifted: the mean (V_rand, V_info) at the chosen threshold - 0.05 and + 0.05, interpolated.
        threshold: the one chosen on all rows.
        blocks: per training, its scores at its fixed threshold.
    """
    import metrics
    import numpy as np

    thresholds = np.array(rows[0]["thresholds"])
    table = {
        (row["seed"], row["block"]): np.array(row["scores"][method]) for row in rows
    }  # (slices, thresholds, scores) each

    def choose(parts):
        named = [[dict(zip(SCORES, one, strict=True)) for one in rows] for p in parts for rows in p]
        return metrics.choose_threshold(named)

    blocks = {}
    for seed, block in table:
        others = [t for (s, b), t in table.items() if s == seed and b != block]
        if others:
            place = choose(others)
            blocks[seed, block] = (thresholds[place], table[seed, block][:, place].mean(0))
    means = np.concatenate(list(table.values())).mean(0)
    chosen = float(thresholds[choose(table.values())])
    shifted = [
        [float(np.interp(chosen + step, thresholds, means[:, k])) for k in (0, 1)]
        for step in (-0.05, 0.05)
    ]
    fixed = np.array([scores for _, scores in blocks.values()])
    return {
        "fixed": list(zip(fixed.mean(0), fixed.std(0), strict=True)) if blocks else None,
        "best": means.max(0)[:2],
        "shifted": shifted,
        "threshold": chosen,
        "blocks": blocks,
    }


def draw_recipes(rows: list[dict]) -> str:
    """Returns the table of recipes in Markdown."""
    lines = [
        "| recipe | parameters | masks from | trainings | V_rand, fixed | V_info, fixed | best "
        "| at ± 0.05 | membrane F1 | threshold | training |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        own = [row for row in rows if row["recipe"] == recipe]
        minutes = sum(row["minutes"] for row in own) / len(own)
        for method in METHODS:
            result = summarise(own, method)
            if not result["fixed"]:
                continue
            v_rand, v_info, f1 = (f"{mean:.4f} ± {sd:.4f}" for mean, sd in result["fixed"])
            best = " / ".join(f"{score:.4f}" for score in result["best"])
            shifted = ", ".join(f"{r:.3f} / {i:.3f}" for r, i in result["shifted"])
            lines.append(
                f"| {recipe} | {own[0]['parameters']:,} | {method} | {len(own)} | {v_rand} "
                f"| {v_info} | {best} | {shifted} | {f1.split()[0]} | {result['threshold']:g} "
                f"| {own[0]['epochs']} epochs, {minutes:.0f} min |"
            )
    return "\n".join(lines)


def draw_blocks(rows: list[dict], recipe: str) -> str:
    """Returns the table of one recipe's held-out blocks in Markdown."""
    own = [row for row in rows if row["recipe"] == recipe]
    lines = [
        "| held out | seed | threshold from the others | V_rand | V_info | membrane F1 |",
        "|---|---|---|---|---|---|",
    ]
    blocks = summarise(own, DEFAULT)["blocks"] if own else {}
    for row in own:
        if (row["seed"], row["block"]) in blocks:
            threshold, scores = blocks[row["seed"], row["block"]]
            cells = " | ".join(f"{score:.4f}" for score in scores)
            held = f"{row['slices'][0]} to {row['slices'][-1]}"
            lines.append(f"| {held} | {row['seed']} | {threshold:g} | {cells} |")
    return "\n".join(lines)


def draw_tables(rows: list[dict]) -> dict[str, str]:
    """Returns every table by its name."""
    tables = {"recipes": draw_recipes(rows)}
    return tables | {f"blocks {recipe}": draw_blocks(rows, recipe) for recipe in RECIPES}


def list_documents() -> list[Path]:
    """Returns the files that may have marked tables."""
    return sorted(path for pattern in FILES for path in HERE.parent.glob(pattern))


def write_tables(tables: dict[str, str]) -> None:
    """Writes each table between its marks, in every file that has them."""
    for path in list_documents():
        text = path.read_text(encoding="utf-8")
        for name, table in tables.items():
            begin = MARK.format(name)
            if begin in text:
                before, rest = text.split(begin)
                text = f"{before}{begin}\n\n{table}\n\n{END}{rest.split(END, 1)[1]}"
        path.write_text(text, encoding="utf-8")
    print(*tables.values(), sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
