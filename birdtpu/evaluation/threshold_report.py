"""Chosen thresholds as files: summary.json, thresholds.json, per_class.csv, roc.png, histogram.png."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.evaluation.drawing import COLOURS, FAINT, GREY, INK, NAMED_CURVES, legend, names_of, title
from birdtpu.evaluation.report import write_json
from birdtpu.evaluation.thresholds import Thresholds, roc_curve
from birdtpu.run import THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 40
LISTED = 15
FALSE, TRUE = COLOURS[0], COLOURS[1]


def write_report(found: Thresholds, folder: str | os.PathLike, *, head: str, per_class: bool) -> None:
    """Write the five files into `folder`, each atomically; `thresholds.json` is what the run has of this head."""
    summary = {"head": head, "saved": "per class" if per_class else "global", **found.result}
    write_json(summary, storage.join(folder, "summary.json"))
    text = json.dumps({head: found.values(per_class)}, indent=2, sort_keys=True, ensure_ascii=False)
    storage.write_text(storage.join(folder, THRESHOLDS), text + "\n")
    table = pd.DataFrame(found.result["per_class"])
    storage.write_text(storage.join(folder, "per_class.csv"), table.to_csv(index=False, lineterminator="\n"))
    for name, draw in {"roc.png": roc_figure, "histogram.png": histogram_figure}.items():
        with storage.atomic_write(storage.join(folder, name)) as file:
            draw(found).savefig(file, format="png", dpi=130)


def roc_figure(found: Thresholds) -> Figure:
    """True over false positive rate of each class with both, their mean, and where the thresholds stand.

    The false positive rate's axis is its square root, for what is looked at lies near 0.
    """
    from matplotlib.figure import Figure

    curves = {}
    for i, row in enumerate(found.result["per_class"]):
        if row["positives"] and row["negatives"]:
            known = found.mask[:, i]
            _, false, true = roc_curve(found.truth[known, i], found.scores[known, i])
            curves[i] = np.append(0, false) / false[-1], np.append(0, true) / true[-1]
    figure = Figure(figsize=(10.5, 6.2), layout="constrained", facecolor="white")
    axes = figure.subplots()
    target = found.result["target_fpr"]
    below = f"{len(curves)} of {len(found.classes)} classes have positives and negatives; dashed: the target {target:g}"
    title(axes, "True and false positive rate by recording", below)
    axes.set_xscale("function", functions=(_root, np.square))
    ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(
        xlim=(0, 1.005), ylim=(0, 1.02), xlabel="False positive rate (square-root axis)", ylabel="True positive rate"
    )
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(target, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    if curves:
        _draw_curves(axes, curves, found)
    else:
        axes.text(0.5, 0.5, "no class has both", ha="center", color=GREY, transform=axes.transAxes)
    return figure


def histogram_figure(found: Thresholds) -> Figure:
    """Scores of positives and negatives with the thresholds: all classes together, and class by class where few.

    Many classes have the distribution of their own thresholds instead. Shares are drawn as their square roots, or the
    few false scores near a threshold would not be seen.
    """
    from matplotlib.figure import Figure

    few = len(found.classes) <= NAMED_CURVES
    rows = 1 + (len(found.classes) if few else 1)
    heights = [3.0] + [1.0 if few else 2.0] * (rows - 1)
    figure = Figure(figsize=(10.5, 1.6 + sum(heights)), layout="constrained", facecolor="white")
    every = figure.subplots(rows, 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    count, without = int(found.truth.sum()), int((~found.truth & found.mask).sum())
    below = f"{count} positives and {without} negatives of {len(found.classes)} classes, each as a share of its own"
    title(every[0], "Highest score of a recording", below)
    _draw_scores(every[0], found.scores[found.truth], found.scores[~found.truth & found.mask])
    every[0].axvline(found.common, color=INK, linewidth=1.6, label=f"global threshold {found.common:.3f}")
    every[0].legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    every[0].set_ylabel("share (square-root axis)", fontsize=9, color=GREY)
    if few:
        for i, (axes, name) in enumerate(
            zip(every[1:], names_of(found.classes, range(len(found.classes))), strict=True)
        ):
            known = found.mask[:, i]
            _draw_scores(axes, found.scores[found.truth[:, i], i], found.scores[known & ~found.truth[:, i], i])
            axes.axvline(found.common, color=INK, linewidth=1.2, alpha=0.5)
            own = "none of its own" if np.isnan(found.own[i]) else f"its own {found.own[i]:.3f}"
            axes.axvline(found.own[i], color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
            axes.set_title(f"{name}: {own}", loc="left", fontsize=9, color=INK, parse_math=False, pad=2)
    else:
        own = found.own[~np.isnan(found.own)]
        every[1].hist(own, bins=BINS, range=(0, 1), color=GREY)
        every[1].axvline(found.common, color=INK, linewidth=1.6)
        every[1].set_title(f"Own thresholds of {len(own)} classes", loc="left", fontsize=9, color=INK)
        every[1].set_ylabel("classes", fontsize=9, color=GREY)
    every[-1].set(xlim=(0, 1), xlabel="Score")
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    return figure


def _draw_scores(axes: Axes, positives: np.ndarray, negatives: np.ndarray) -> None:
    for values, colour, name in ((negatives, FALSE, "negatives"), (positives, TRUE, "positives")):
        counts, edges = np.histogram(values, bins=BINS, range=(0, 1))
        axes.stairs(counts / max(len(values), 1), edges, fill=True, color=colour, alpha=0.45, label=name)
    axes.set_yscale("function", functions=(_root, np.square))
    axes.set(ylim=(0, 1))
    axes.set_yticks([0, 0.05, 0.25, 1], ["0", "0.05", "0.25", "1"])
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _draw_curves(axes: Axes, curves: dict[int, tuple[np.ndarray, np.ndarray]], found: Thresholds) -> None:
    table = found.result["per_class"]
    names = dict(zip(curves, names_of(found.classes, list(curves)), strict=True))
    entry = {
        i: f"{table[i]['fpr_at_global']:.2f}  {table[i]['tpr_at_global']:.2f}  {names[i]} ({table[i]['negatives']})"
        for i in curves
    }
    named = len(curves) <= NAMED_CURVES
    grid = np.linspace(0, 1, 1000) ** 2
    stack = np.stack([true[np.searchsorted(false, grid, side="right") - 1] for false, true in curves.values()])
    (mean,) = axes.plot(grid, stack.mean(axis=0), color="black", linewidth=2.4, zorder=3)
    handles, labels = [mean], ["mean of the classes"]
    for colour, (i, (false, true)) in zip(np.resize(COLOURS, len(curves)), curves.items(), strict=True):
        style = {"color": colour, "linewidth": 1.6, "alpha": 0.9} if named else {"color": GREY, "linewidth": 0.5}
        style = style if named else {**style, "alpha": float(np.clip(12 / len(curves), 0.12, 0.5))}
        (line,) = axes.plot(false, true, drawstyle="steps-post", **style)
        at = {"color": colour if named else INK, "linestyle": "none", "clip_on": False, "zorder": 4}
        size = 8 if named else 3
        axes.plot(table[i]["fpr_at_global"], table[i]["tpr_at_global"], "o", markersize=size, alpha=0.8, **at)
        if named:
            handles.append(line)
            labels.append(entry[i])
    if not named:
        low, high = np.percentile(stack, [25, 75], axis=0)
        handles.append(axes.fill_between(grid, low, high, color="#56b4e9", alpha=0.3, linewidth=0))
        labels.append("middle half of the classes")
    handles.append(axes.plot([], [], "o", color=INK, markersize=8 if named else 3)[0])
    labels.append("a class at the global threshold")
    if not named:
        for i in sorted(curves, key=lambda i: -table[i]["fpr_at_global"])[:LISTED]:
            handles.append(axes.plot([], [], linestyle="none")[0])
            labels.append(entry[i])
    whose = "each class" if named else "the worst classes"
    heading = f"False and true positive rate of {whose}\nat the global threshold {found.common:.3f} (negatives)"
    legend(axes, handles, labels, heading)


def _root(values: np.ndarray) -> np.ndarray:
    # An axis asks for a little below 0, too.
    return np.sqrt(np.maximum(values, 0))
