"""An evaluation as files: metrics.json, per_class.csv, confusion.png, precision_recall.png."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from birdtpu import metrics, storage
from birdtpu.evaluation.drawing import COLOURS, FAINT, GREY, INK, NAMED_CURVES, legend, names_of, say_nothing, title
from birdtpu.evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COUNTED_CELLS = 40
"""Up to this many classes the confusion's cells hold their counts; more, and a list beside it does."""
LISTED = 25


def write_report(evaluation: Evaluation, folder: str | os.PathLike) -> None:
    """Write the four files into `folder`, each atomically."""
    write_json(evaluation.result, storage.join(folder, "metrics.json"))
    table = pd.DataFrame(evaluation.result["per_class"])
    storage.write_text(storage.join(folder, "per_class.csv"), table.to_csv(index=False, lineterminator="\n"))
    for name, draw in {"confusion.png": confusion_figure, "precision_recall.png": precision_recall_figure}.items():
        with storage.atomic_write(storage.join(folder, name)) as file:
            draw(evaluation).savefig(file, format="png", dpi=130)


def write_json(result: dict, path: str | os.PathLike) -> None:
    """Write an evaluation's result as JSON; what is undefined is null. Raises ValueError on a NaN."""
    storage.write_text(path, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def confusion_figure(evaluation: Evaluation) -> Figure:
    """Label against top-scoring class, over the rows that one class (or nocall) names.

    Colours are shares of the label's rows; counts stand in the cells, or for many classes in a list of the most
    frequent confusions. Classes that neither name a row nor score highest in one are left out.
    """
    from matplotlib.figure import Figure

    counts, shown = _confusion(evaluation)
    names = names_of(evaluation.classes, shown)
    size = len(shown)
    cell = float(np.clip(12 / size, 0.085, 0.62)) if size else 1.0
    many = size > COUNTED_CELLS
    side = max(size * cell, 2.5)
    figure = Figure(figsize=(side + (9.0 if many else 3.4), side + 3.0), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, width_ratios=(side, 4.0), squeeze=False)[0] if many else [figure.subplots()]
    noun = "recordings" if evaluation.result["by"] == "recording" else "rows with one species or none"
    text = f"{np.trace(counts)} of {counts.sum()} {noun} on the diagonal"
    large = float(np.clip(side, 11, 20)) if many else 11
    title(axes[0], "Label against top-scoring species", text, large)
    if not counts.sum():
        say_nothing(axes[0], "no row is named by one species")
        return figure
    kind = "Primary label (recordings)" if evaluation.result["by"] == "recording" else "Label (rows)"
    axes[0].set_ylabel(kind, fontsize=large * 0.85, color=GREY)
    axes[0].set_xlabel("Top-scoring species", fontsize=large * 0.85, color=GREY)
    _draw_confusion(axes[0], counts, names, cell)
    if many:
        _list_confusions(axes[1], counts, names, large)
    return figure


def precision_recall_figure(evaluation: Evaluation) -> Figure:
    """Precision over recall of each class with a positive, and their mean.

    Steps as average precision sums them: the area under a class's curve is its average precision, and that under the
    mean the macro average precision.
    """
    from matplotlib.figure import Figure

    curves = {}
    for i in range(len(evaluation.classes)):
        known = evaluation.mask[:, i]
        if evaluation.truth[known, i].any():
            curves[i] = metrics.precision_recall(evaluation.truth[known, i], evaluation.scores[known, i])
    figure = Figure(figsize=(10.5, 6.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    by = "recording" if evaluation.result["by"] == "recording" else "row"
    title(axes, f"Precision and recall by {by}", f"{len(curves)} of {len(evaluation.classes)} classes have a positive")
    if not curves:
        say_nothing(axes, "no class has a positive")
        return figure
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel="Recall", ylabel="Precision")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _draw_curves(axes, curves, evaluation)
    return figure


def _confusion(evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray]:
    """Counts `(shown, shown)` of label by top-scoring class, and the classes that are shown."""
    named = evaluation.label >= 0
    label, top = evaluation.label[named], evaluation.top[named]
    counts = np.zeros((len(evaluation.classes) + 1,) * 2, int)
    np.add.at(counts, (label, top), 1)
    shown = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    return counts[np.ix_(shown, shown)], shown


def _draw_confusion(axes: Axes, counts: np.ndarray, names: list[str], cell: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    rows = counts.sum(axis=1)
    share = counts / np.maximum(rows, 1)[:, None]
    colours = LinearSegmentedColormap.from_list("label", ["#ffffff", "#cfe3ef", "#5b9dc4", "#0b3c5d"])
    # A single mistake among many must still be seen, so the colours rise fast near 0.
    image = axes.imshow(share**0.6, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    image.set_rasterized(True)
    font = float(np.clip(cell * 72 * 0.8, 4.5, 9.5))
    ticks = np.arange(len(names))
    many = len(names) > COUNTED_CELLS
    axes.set_xticks(ticks, names, rotation=90 if many else 40, ha="center" if many else "right", parse_math=False)
    if not many:
        for text in axes.get_xticklabels():
            text.set_rotation_mode("anchor")
    axes.set_yticks(ticks, [f"{name}  ({n})" for name, n in zip(names, rows, strict=True)], parse_math=False)
    axes.tick_params(labelsize=font, length=0, pad=3, labelcolor=INK)
    axes.set_xticks(ticks[:-1] + 0.5, minor=True)
    axes.set_yticks(ticks[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.3 if many else 1.0)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color(FAINT)
    if not many:
        for i, j in np.argwhere(counts):
            colour = "white" if share[i, j] > 0.4 else INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=font, color=colour)


def _list_confusions(axes: Axes, counts: np.ndarray, names: list[str], large: float) -> None:
    """Bars of the most frequent pairs off the diagonal, as `label -> top-scoring species`."""
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    rows = counts.sum(axis=1)
    pairs = sorted(np.argwhere(wrong).tolist(), key=lambda pair: (-wrong[*pair], rows[pair[0]]))[:LISTED]
    places = np.arange(len(pairs))
    axes.barh(places, [wrong[i, j] for i, j in pairs], height=0.3, color="#5b9dc4")
    for place, (i, j) in zip(places, pairs, strict=True):
        text = f"{names[i]} \N{RIGHTWARDS ARROW} {names[j]}   {wrong[i, j]} of {rows[i]}"
        axes.text(0, place - 0.26, text, fontsize=max(large * 0.6, 8.5), color=INK, va="bottom", parse_math=False)
    axes.set_ylim(LISTED, -1)
    axes.set_axis_off()
    title(axes, "Most frequent confusions", "label \N{RIGHTWARDS ARROW} top-scoring species", large)


def _draw_curves(axes: Axes, curves: dict[int, tuple[np.ndarray, np.ndarray]], evaluation: Evaluation) -> None:
    per_class = evaluation.result["per_class"]
    grid = (np.arange(1000) + 0.5) / 1000
    stack = np.stack([precision[np.searchsorted(recall, grid)] for precision, recall in curves.values()])
    names = dict(zip(curves, names_of(evaluation.classes, list(curves)), strict=True))
    entry = {i: f"{per_class[i]['average_precision']:.2f}  {names[i]} ({per_class[i]['positives']})" for i in curves}
    handles, labels = [], []
    named = len(curves) <= NAMED_CURVES
    for colour, (i, (precision, recall)) in zip(np.resize(COLOURS, len(curves)), curves.items(), strict=True):
        style = {"color": colour, "linewidth": 1.6, "alpha": 0.9} if named else {"color": GREY, "linewidth": 0.5}
        style = style if named else {**style, "alpha": float(np.clip(12 / len(curves), 0.12, 0.5))}
        x, y = np.append(0, recall), np.append(precision[0], precision)
        (line,) = axes.plot(x, y, drawstyle="steps-pre", **style)
        if named:
            handles.append(line)
            labels.append(entry[i])
    if not named:
        low, high = np.percentile(stack, [25, 75], axis=0)
        handles.append(axes.fill_between(grid, low, high, color="#56b4e9", alpha=0.3, linewidth=0))
        labels.append("middle half of the classes")
        for i in sorted(curves, key=lambda i: per_class[i]["average_precision"])[:15]:
            handles.append(axes.plot([], [], linestyle="none")[0])
            labels.append(entry[i])
    (mean,) = axes.plot(grid, stack.mean(axis=0), color="black", linewidth=2.4)
    heading = (
        "Average precision of each class\n(its positives)"
        if named
        else "Average precision of the weakest classes\n(their positives)"
    )
    mean_label = f"{evaluation.result['macro_average_precision']['value']:.2f}  mean of the classes"
    legend(axes, [mean, *handles], [mean_label, *labels], heading)
