"""The ISBI-2012 challenge's scores, membrane pixel scores, and the threshold they ask for.

Definitions: Arganda-Carreras et al. 2015, Crowdsourcing the creation of image segmentation
algorithms for connectomics, doi:10.3389/fnana.2015.00142. All arrays are one slice, (height,
width); labels and masks are bool, True = cell interior; probabilities are P(interior) in [0, 1].
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter

import numpy as np
from scipy.special import entr
from skimage.measure import label as connected_components
from skimage.metrics import contingency_table
from skimage.segmentation import watershed

from membrane.errors import UserError

# Missing membrane is the costlier error, so the best threshold is high: the grid is finer there.
THRESHOLDS = (
    *(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.84, 0.87),
    *(0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99),
)
PART = 50  # px; smaller parts of cells on the wrong side of a border are no error worth showing
SEGMENTATION_SCORES = "v_rand v_info v_rand_split v_rand_merge v_info_split v_info_merge".split()
Segmentation = Callable[[float], np.ndarray]


def thin_borders(mask: np.ndarray) -> np.ndarray:
    """Grows the 4-connected cells of a mask until one-pixel lines are left between them.

    Returns:
        int (height, width): cell numbers from 1, and 0 on the lines. A mask without any interior
        becomes one cell that covers everything.
    """
    if not mask.any():
        return np.ones(mask.shape, np.int32)
    cells = connected_components(mask, connectivity=1)
    return watershed(~mask, cells, connectivity=1, watershed_line=True)


def score_segmentation(label: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Scores how well the cells of a mask, the proposal, agree with those of a label, the truth.

    With c_ij the pixels in true cell i and proposed cell j, counted where the label is interior,
    and z of these pixels on the proposal's lines, each a segment of its own: A = Σ_i (Σ_j c_ij)²,
    B = Σ_{j>0} (Σ_i c_ij)² + z, AB = Σ_{j>0} c_ij² + z. V_rand = 2·AB / (A + B), its split term
    AB / A and its merge term AB / B. V_info = 2·I(S;T) / (H(S) + H(T)) on the same table, its split
    term I / H(S) and its merge term I / H(T).

    Returns:
        v_rand, v_rand_split, v_rand_merge, v_info, v_info_split, v_info_merge, each in [0, 1],
        1 = perfect; all NaN when the label has no interior, where they are not defined.
    """
    return score_cells(label, thin_borders(mask))


def score_cells(label: np.ndarray, cells: np.ndarray) -> dict[str, float]:
    """Returns `score_segmentation` of cells, int (height, width), that are numbered from 1."""
    if not label.any():
        return dict.fromkeys(SEGMENTATION_SCORES, float("nan"))
    truth = connected_components(label, connectivity=1)
    table = contingency_table(truth, cells, ignore_labels=[0]).tocsc()
    n = table.sum()
    true_sizes = np.asarray(table.sum(axis=1)).ravel()
    sizes = np.asarray(table.sum(axis=0)).ravel()
    singletons, sizes = sizes[0], sizes[1:]
    joint = table[:, 1:].data

    a = np.square(true_sizes).sum()
    b = np.square(sizes).sum() + singletons
    ab = np.square(joint).sum() + singletons
    alone = singletons / n * np.log(n)
    h_true = entr(true_sizes / n).sum()
    h_mask = entr(sizes / n).sum() + alone
    shared = max(0.0, h_true + h_mask - (entr(joint / n).sum() + alone))

    def ratio(part, whole):
        return float(min(1.0, part / whole)) if whole > 1e-12 else 1.0

    return {
        "v_rand": float(2 * ab / (a + b)),
        "v_info": ratio(2 * shared, h_true + h_mask),
        "v_rand_split": float(ab / a),
        "v_rand_merge": float(ab / b),
        "v_info_split": ratio(shared, h_mask),
        "v_info_merge": ratio(shared, h_true),
    }


def find_errors(label: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the parts of cells that a mask joins to another cell, or cuts off their own.

    The partner of a true cell is the proposed one that has most of it, and the other way round. A
    part that lies in a proposed cell whose partner is another true cell is merged; one that lies in
    another proposed cell than the true cell's partner, and is not merged, is split off. The borders
    of the mask are thinned as for the scores.

    Returns:
        merged, split: int32 (height, width), the parts numbered from 1, largest first; 0
        elsewhere. Parts below 50 px are left out: a border drawn a little beside its place.
    """
    truth, cells = connected_components(label, connectivity=1), thin_borders(mask)
    inside = (truth > 0) & (cells > 0)
    if not inside.any():
        return _number_by_size(inside), _number_by_size(inside)
    table = contingency_table(truth[inside], cells[inside])
    merged, split = np.zeros((2, *label.shape), bool)
    merged[inside] = np.asarray(table.argmax(axis=0)).ravel()[cells[inside]] != truth[inside]
    split[inside] = np.asarray(table.argmax(axis=1)).ravel()[truth[inside]] != cells[inside]
    split &= ~merged
    return _number_by_size(merged), _number_by_size(split)


def score_membrane(label: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Returns membrane_f1 and membrane_iou of the membrane pixels; 1 where neither has any."""
    both = np.count_nonzero(~label & ~mask)
    either = np.count_nonzero(~label | ~mask)
    iou = both / either if either else 1.0
    return {"membrane_f1": 2 * iou / (1 + iou), "membrane_iou": iou}


def score_slice(
    label: np.ndarray, mask: np.ndarray, known: np.ndarray | None = None
) -> dict[str, float]:
    """Returns `score_segmentation` and `score_membrane` in one dictionary.

    Pixels that are not `known`, bool (height, width), do not count; None where all are. All scores
    are NaN where none is.
    """
    if known is None:
        return score_segmentation(label, mask) | score_membrane(label, mask)
    pixels = score_membrane(label | ~known, mask | ~known)
    if not known.any():
        pixels = dict.fromkeys(pixels, float("nan"))
    return score_segmentation(label & known, mask) | pixels


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each score over slices, leaving out undefined ones."""
    columns = {key: np.array([one[key] for one in scores]) for key in scores[0]}
    return {
        key: float(np.nanmean(column)) if not np.isnan(column).all() else float("nan")
        for key, column in columns.items()
    }


def score_thresholds(
    labels: Sequence,
    segmentations: Sequence[Segmentation],
    thresholds: Sequence = THRESHOLDS,
    known: Sequence | None = None,
) -> list[list[dict[str, float]]]:
    """Returns, per slice and per threshold, `score_slice` of the mask.

    A segmentation is a function from threshold to mask: `precompute_segmentation(map)`, or
    `map.__gt__` for the plain threshold of the challenge.
    """

    def score(label, mask, known):
        return [score_slice(label, mask(threshold), known) for threshold in thresholds]

    with ThreadPoolExecutor(2) as pool:  # the watershed lets go of the interpreter
        return list(pool.map(score, labels, segmentations, known or [None] * len(labels)))


def choose_threshold(scores: Sequence[Sequence[dict[str, float]]]) -> int:
    """Returns the index of the threshold that serves V_rand and V_info together.

    That is the highest mean of (V_rand + V_info) / 2 over the slices, each threshold averaged with
    its two neighbours: one lucky slice makes a peak, only a plateau holds on other slices. So the
    first and the last of three or more, beyond which nothing is known, are never it. Takes what
    `score_thresholds` returns; undefined scores do not count.
    """
    merit = np.array([[row["v_rand"] + row["v_info"] for row in rows] for rows in scores])
    merit = np.nan_to_num(merit).sum(0)
    if len(merit) < 3:
        return int(merit.argmax())
    return int((merit[:-2] + merit[1:-1] + merit[2:]).argmax()) + 1


def calibrate(
    labels: Sequence,
    segmentations: Sequence[Segmentation],
    thresholds: Sequence = THRESHOLDS,
    known: Sequence | None = None,
    prior: float = 0.5,
) -> dict:
    """Finds the threshold on P(interior) that serves V_rand and V_info together.

    The arguments are those of `score_thresholds`; `prior` is a threshold that was not chosen on
    these slices.

    Returns:
        threshold: the candidate of `choose_threshold`.
        leave_one_out: mean scores when each slice's threshold is chosen on the other slices; these
            are the ones to quote. Of a single slice, at the candidate nearest to `prior`.
        oracle: v_rand and v_info, the highest mean of each over thresholds, with
            v_rand_threshold and v_info_threshold.
        table: per threshold, the mean v_rand and v_info.
        slices: per slice, its scores at `threshold`.

    Raises:
        UserError: no label has any interior.
    """
    scores = score_thresholds(labels, segmentations, thresholds, known)
    defined = [rows for rows in scores if not np.isnan(rows[0]["v_rand"])]
    if not defined:
        raise UserError("the labels have no cell interior (255), so nothing can be scored")
    chosen = choose_threshold(scores)
    nearest = int(np.abs(np.array(thresholds) - prior).argmin())
    leave_one_out = defined[0][nearest]
    if len(defined) > 1:
        others = [choose_threshold(scores[:i] + scores[i + 1 :]) for i in range(len(scores))]
        leave_one_out = mean_scores([rows[i] for rows, i in zip(scores, others, strict=True)])
    keys, table, oracle = ("v_rand", "v_info"), [], {}
    for threshold, *rows in zip(thresholds, *defined, strict=True):
        mean = mean_scores(rows)
        table.append({"threshold": float(threshold), **{key: mean[key] for key in keys}})
    for key in keys:
        best = max(table, key=itemgetter(key))
        oracle |= {key: best[key], f"{key}_threshold": best["threshold"]}
    return {
        "threshold": float(thresholds[chosen]),
        "leave_one_out": leave_one_out,
        "oracle": oracle,
        "table": table,
        "slices": [rows[chosen] for rows in scores],
    }


def _number_by_size(parts: np.ndarray) -> np.ndarray:
    """Returns the connected parts numbered from 1, largest first, without the small ones."""
    pieces = connected_components(parts, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes >= PART)]
    numbers = np.zeros(len(sizes), np.int32)
    numbers[order] = np.arange(1, len(order) + 1)
    return numbers[pieces]
