"""From a recording's clip scores to what a person reads: segments, events, rows of a sheet, a picture."""

import io
import math
import os
import warnings

import numpy as np
import pandas as pd

from birdtpu import storage
from birdtpu.errors import UserError
from birdtpu.species import ClassList

COLUMNS = ["start_seconds", "end_seconds", "species", "common_name", "scientific_name", "score"]


def segments(
    starts_seconds: np.ndarray,
    clip_seconds: float,
    scores: np.ndarray,
    classes: ClassList,
    *,
    threshold: float | np.ndarray,
    duration_seconds: float = math.inf,
) -> pd.DataFrame:
    """Every species that reaches its threshold, clip by clip.

    Args:
        starts_seconds: `(clips,)` start of each clip.
        clip_seconds: Length of a clip.
        scores: `(clips, classes)`.
        classes: The columns of `scores`.
        threshold: One for all, or `(classes,)`; a score that equals it is in.
        duration_seconds: The recording's end, where a padded last clip ends too.

    Returns: a row a clip and species, by start and then falling score: `start_seconds, end_seconds, species,
    common_name, scientific_name, score`.

    Raises: UserError where the shapes do not fit or a score is not finite.
    """
    starts, scores = _checked(starts_seconds, scores, classes)
    clips, columns = np.nonzero(scores >= np.broadcast_to(threshold, scores.shape))
    table = pd.DataFrame(
        {
            "start_seconds": starts[clips],
            "end_seconds": np.minimum(starts[clips] + clip_seconds, duration_seconds),
            "species": _texts(classes.codes, columns),
            "common_name": _texts(classes.common_names, columns),
            "scientific_name": _texts(classes.scientific_names, columns),
            "score": scores[clips, columns],
        },
        columns=COLUMNS,
    )
    return _in_order(table)


def merge_events(segments: pd.DataFrame, *, gap_seconds: float = 0.0) -> pd.DataFrame:
    """Join segments of one species that overlap or touch into one event with their highest score.

    Args:
        segments: What `segments` returns.
        gap_seconds: Pauses up to this length are bridged.

    Returns: the same columns, a row an event, by start and then falling score.
    """
    reach = gap_seconds + 1e-6  # sums of clip starts carry rounding
    events: list[dict] = []
    last: dict[str, dict] = {}
    for row in segments.sort_values("start_seconds", kind="stable").to_dict("records"):
        event = last.get(row["species"])
        if event is not None and row["start_seconds"] <= event["end_seconds"] + reach:
            event["end_seconds"] = max(event["end_seconds"], row["end_seconds"])
            event["score"] = max(event["score"], row["score"])
        else:
            last[row["species"]] = row
            events.append(row)
    return _in_order(pd.DataFrame(events, columns=COLUMNS))


def row_scores(
    starts_seconds: np.ndarray,
    clip_seconds: float,
    scores: np.ndarray,
    start_seconds: float,
    end_seconds: float,
    *,
    aggregate: str = "mean",
) -> np.ndarray | None:
    """What the clips say of one stretch, such as the 5-s rows of the competitions.

    `"mean"` weights each clip with the seconds it shares with the stretch: with 5-s clips every 2.5 s the aligned clip
    counts half and its two neighbours a quarter each, so a bird that only a neighbour holds stays out. Without overlap
    of the clips it is the aligned clip itself. `"max"` is the highest score of the clips whose centre lies in the
    stretch, its ends included: it finds more and lets neighbours in.

    Args:
        starts_seconds: `(clips,)`.
        clip_seconds: Length of a clip.
        scores: `(clips, classes)`.
        start_seconds, end_seconds: The stretch.
        aggregate: `"mean"` or `"max"`.

    Returns: `(classes,)`, or None where no clip reaches into the stretch.
    Raises: ValueError where the aggregate is unknown.
    """
    starts = np.asarray(starts_seconds, np.float64)
    shared = np.minimum(starts + clip_seconds, end_seconds) - np.maximum(starts, start_seconds)
    shared = np.where(shared > 1e-6, shared, 0.0)
    if not shared.any():
        return None
    if aggregate == "mean":
        return shared @ np.asarray(scores, np.float64) / shared.sum()
    if aggregate != "max":
        raise ValueError(f"aggregate must be 'mean' or 'max', not {aggregate!r}")
    centres = starts + clip_seconds / 2
    inside = (centres >= start_seconds - 1e-6) & (centres <= end_seconds + 1e-6)
    # A stretch short beside the clips may hold no centre: then the clip that shares most of it speaks.
    inside = inside & (shared > 0) if (inside & (shared > 0)).any() else shared == shared.max()
    return np.asarray(scores, np.float64)[inside].max(axis=0)


def plot(
    path: str | os.PathLike,
    log_mel: np.ndarray,
    starts_seconds: np.ndarray,
    clip_seconds: float,
    scores: np.ndarray,
    classes: ClassList,
    *,
    duration_seconds: float,
    mel_hz: np.ndarray | None = None,
    threshold: float | np.ndarray = 0.5,
    max_species: int = 12,
    title: str = "",
) -> None:
    """Write a PNG: the log-mel spectrogram above a strip a species, shaded by score, detections underlined.

    The spectrogram is drawn with each band against its own median over the recording.

    Args:
        path: The PNG.
        log_mel: `(frames, mels)` in dB, spread evenly over the recording.
        starts_seconds, clip_seconds, scores, classes, threshold: As for `segments`.
        duration_seconds: Length of the recording.
        mel_hz: `(mels,)` centre of each band, for the axis; None: bands are numbered.
        max_species: At most so many strips, those with the highest scores. Where no species reaches its threshold,
            the three with the highest scores are shown.
        title: Any text, such as the file's name.

    Raises: UserError as `segments` does, and where there is no clip.
    """
    from matplotlib.figure import Figure

    starts, scores = _checked(starts_seconds, scores, classes)
    if not len(starts):
        raise UserError(f"timeline: no clip to draw in {path}")
    limits = np.broadcast_to(threshold, (len(classes),))
    found = segments(starts, clip_seconds, scores, classes, threshold=limits, duration_seconds=duration_seconds)
    events = merge_events(found)
    shown = _shown(scores, limits, max_species)
    width = float(np.clip(4 + duration_seconds / 8, 9, 24))
    heights = [2.6, 0.36 * max(len(shown), 1)]
    figure = Figure(figsize=(width, sum(heights) + 1.3), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
    _draw_spectrogram(above, log_mel, duration_seconds, mel_hz)
    text = {"parse_math": False, "fontfamily": _fonts()}
    above.set_title(_printable(title), loc="left", fontsize=10, **text)
    shading = _draw_strips(below, starts, clip_seconds, scores[:, shown], duration_seconds)
    for line, column in enumerate(shown):
        for event in events[events["species"] == classes.codes[column]].itertuples():
            below.plot([event.start_seconds, event.end_seconds], [line + 0.36] * 2, color=DETECTED, linewidth=3,
                       solid_capstyle="butt")  # fmt: skip
    names = [_printable(classes.name(classes.codes[column])) for column in shown]
    below.set_yticks(range(len(shown)), names, **text)
    figure.colorbar(shading, ax=below, label="score", pad=0.01, aspect=max(6, 3 * len(shown)), ticks=[0, 0.5, 1])
    _legend(above, limits)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that no installed font holds is drawn as boxes.
        warnings.filterwarnings("ignore", message=".*missing from .*font")
        figure.savefig(picture, format="png", metadata={"Software": None})
    storage.write_bytes(path, picture.getvalue())


# Vermilion of Okabe and Ito: told from the blue strips by any eye.
DETECTED = "#D55E00"
MAX_COLUMNS = 3000
# In this order, where installed: a letter is drawn from the first that has it.
FONTS = ("DejaVu Sans", "Noto Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari")


def _draw_spectrogram(axes, log_mel: np.ndarray, duration_seconds: float, mel_hz: np.ndarray | None) -> None:
    log_mel = np.asarray(log_mel)
    # More frames than pixels: the loudest of each group is kept, so that short calls stay visible.
    step = -(-len(log_mel) // MAX_COLUMNS)
    if step > 1:
        log_mel = np.maximum.reduceat(log_mel, np.arange(0, len(log_mel), step))
    # Each band against its own median: steady noise, loudest where birds are not, would take all the contrast.
    log_mel = log_mel - np.median(log_mel, axis=0)
    bottom, top = np.percentile(log_mel, [55, 99.9])
    axes.imshow(
        log_mel.T, origin="lower", aspect="auto", interpolation="nearest", cmap="magma",
        extent=(0, duration_seconds, -0.5, log_mel.shape[1] - 0.5), vmin=bottom, vmax=max(top, bottom + 1),
    )  # fmt: skip
    if mel_hz is None:
        axes.set_ylabel("mel band")
        return
    ticks = [hz for hz in (250, 500, 1000, 2000, 4000, 8000, 16000) if mel_hz[0] <= hz <= mel_hz[-1]]
    axes.set_yticks(np.interp(ticks, mel_hz, np.arange(len(mel_hz))), [f"{hz / 1000:g}" for hz in ticks])
    axes.set_ylabel("kHz")


def _draw_strips(axes, starts: np.ndarray, clip_seconds: float, scores: np.ndarray, duration_seconds: float):
    """Each clip colours the time nearest to its centre."""
    order = np.argsort(starts, kind="stable")
    centres = np.minimum(starts[order] + clip_seconds / 2, duration_seconds)
    edges = np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [duration_seconds]])
    shading = axes.pcolormesh(
        edges, np.arange(scores.shape[1] + 1) - 0.5, scores[order].T, cmap="Blues", vmin=0, vmax=1
    )
    axes.set_xlim(0, duration_seconds)
    axes.set_ylim(scores.shape[1] - 0.5, -0.5)
    axes.hlines(np.arange(1, scores.shape[1]) - 0.5, 0, duration_seconds, color="#999999", linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds")
    return shading


def _legend(axes, limits: np.ndarray) -> None:
    from matplotlib.lines import Line2D

    at = f"{limits[0]:g}" if np.all(limits == limits[0]) else "its species' threshold"
    line = Line2D([], [], color=DETECTED, linewidth=3, label=f"detected: score of at least {at}")
    axes.legend(handles=[line], loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1, fontsize=8, frameon=False)


def _shown(scores: np.ndarray, limits: np.ndarray, max_species: int) -> np.ndarray:
    """Columns in the order of the first detection; else the three highest."""
    peaks = scores.max(axis=0)
    highest = np.argsort(-peaks, kind="stable")
    detected = [i for i in highest if peaks[i] >= limits[i]][:max_species]
    if not detected:
        return highest[: min(3, max_species)]
    return np.array(sorted(detected, key=lambda i: int(np.argmax(scores[:, i] >= limits[i]))))


def _fonts() -> list[str]:
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return [name for name in FONTS if name in installed]


def _printable(text: str) -> str:
    """Text that a font engine takes: no lone surrogates (names that are no UTF-8), no control characters."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _checked(starts_seconds: np.ndarray, scores: np.ndarray, classes: ClassList) -> tuple[np.ndarray, np.ndarray]:
    starts, scores = np.asarray(starts_seconds, np.float64), np.asarray(scores, np.float64)
    if starts.ndim != 1 or scores.shape != (len(starts), len(classes)):
        raise UserError(
            f"timeline: scores of shape {scores.shape} for {len(starts)} clips and {len(classes)} classes: the class "
            "list is not the model's"
        )
    if not (np.isfinite(scores).all() and np.isfinite(starts).all()):
        raise UserError("timeline: a score is not finite: the weights or the audio are broken")
    return starts, scores


def _texts(values: tuple[str, ...], columns: np.ndarray) -> np.ndarray:
    return np.array(values, dtype=object)[columns]


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(["start_seconds", "score"], ascending=[True, False], kind="stable", ignore_index=True)
