"""The end of a training: thresholds chosen on the held-out slices, scores, pictures, run.json."""

from pathlib import Path

import keras
import numpy as np

from membrane import metrics, runs
from membrane.inference.neighbours import precompute_segmentations
from membrane.inference.precision import with_dtype
from membrane.inference.predictor import Predictor
from membrane.io.normalization import DEVIATION, MEAN
from membrane.io.writers import atomic_write, write_json
from membrane.viewer import plots


def calibrate_and_save(
    folder: Path,
    record: dict,
    network: keras.Model,
    held_out,
    history: list[dict],
    prior: float = 0.5,
) -> None:
    """Chooses the thresholds, writes model, pictures and run.json, and prints the scores.

    The thresholds are chosen on `held_out`, `data.Pairs` that may be empty. They and the scores
    are added to the record, for run.json. The history has a row per epoch; `prior` is a threshold
    that was not chosen on these slices, at which a single one is scored.
    """
    with atomic_write(folder / "model.keras") as part:
        with_dtype(network, "float32").save(part)
    record |= {"tta": True, "scaling": {"mean": MEAN, "deviation": DEVIATION}}
    sheet = _calibrate(record, network, held_out, prior) if held_out.names else None
    if threshold := record["flags"]["threshold"]:
        record |= {"threshold": threshold, "threshold_without_tta": threshold}
    write_json(folder / "run.json", record)  # before any picture, which can fail
    plots.draw_curves(folder / "curves.png", history)
    if sheet:
        plots.draw_validation_sheet(folder / "validation.png", *sheet)
    last = history[-1]
    if max(last["membrane_iou"], last["val_membrane_iou"] or 0) < 0.1:  # it has failed
        print(
            "Note: it finds hardly any membrane, even on its own tiles; train longer, or with a "
            "third of the --learning-rate"
        )
    shown = runs.display_path(folder)
    pictures = f"{shown}/validation.png, curves.png" if held_out.names else f"{shown}/curves.png"
    alone = len(held_out.names) == 1 and not record["flags"]["threshold"]
    how = ", the best on that one slice" if alone else ""
    print(f"Threshold on P(interior): {record['threshold']:g}{how}")
    print(f"Pictures to look at: {pictures}")


def _calibrate(record: dict, network: keras.Model, held_out, prior: float) -> tuple:
    """Chooses the thresholds on the held-out slices, prints scores; returns what to draw."""
    several = len(held_out.names) > 1
    way = "leave-one-out" if several else f"at {prior:g}"
    how = "each slice's threshold chosen on the others" if several else "not chosen on this slice"
    slices = f"{len(held_out.names)} held-out slice{'s' if several else ''}"
    print(f"\nValidation scores on the {slices} ({way}: {how}; oracle: the best one for all)")
    for tta, end, title in ((False, "_without_tta", ""), (True, "", ", 8 flips averaged")):
        predict = Predictor(network, tta=tta)
        maps = [predict(image) for image in held_out.images]
        segmentations = precompute_segmentations(maps)
        chosen = metrics.calibrate(
            held_out.labels, segmentations, known=held_out.known, prior=prior
        )
        record |= {f"threshold{end}": chosen["threshold"], f"validation{end}": chosen}
        quoted, oracle = (
            f"{scores['v_rand']:.4f} / {scores['v_info']:.4f}"
            for scores in (chosen["leave_one_out"], chosen["oracle"])
        )
        print(f"  V_rand / V_info{title}: {way} {quoted}, oracle {oracle}")
    masks = [segment(chosen["threshold"]) for segment in segmentations]
    labels = [  # where nothing is known, nothing differs
        label if known is None else np.where(known, label, mask)
        for label, known, mask in zip(
            held_out.labels, held_out.known or [None] * len(masks), masks, strict=True
        )
    ]
    return held_out.names, held_out.images, labels, maps, masks, chosen["slices"]
