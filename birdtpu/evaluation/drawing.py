"""What the pictures of an evaluation have in common: colours, titles, names that the font can draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from birdtpu.species import ClassList

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, FAINT = "#22313f", "#7f8c97", "#e3e8ec"
# Okabe and Ito's colours, told apart by colour-blind readers too; black is kept for the mean.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a5c3e")
NAMED_CURVES = len(COLOURS)
"""Up to this many classes each have a colour; more are drawn faintly, and only the weakest named."""
NAME_LENGTH = 34


def names_of(classes: ClassList, shown: np.ndarray | list[int]) -> list[str]:
    """A short name a class that the font can draw: common, else scientific, else the code; nocall after the last."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))

    def drawable(text: str) -> bool:
        return bool(text) and all(font.get_char_index(ord(character)) for character in text)

    def name(i: int) -> str:
        if i == len(classes):
            return "nocall"
        known = [classes.common_names[i], classes.scientific_names[i], classes.codes[i]]
        known = [" ".join(text.split()) for text in known]
        plain = "".join(character if drawable(character) else "?" for character in known[-1])
        text = next(filter(drawable, known), plain)
        return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "\N{HORIZONTAL ELLIPSIS}"

    return [name(int(i)) for i in shown]


def title(axes: Axes, text: str, below: str, size: float = 11) -> None:
    """A bold title, and under it a smaller grey line."""
    axes.set_title(f"{text}\n", loc="left", fontsize=size * 1.15, color=INK, fontweight="bold", linespacing=1.6)
    axes.annotate(
        below, (0, 1), (0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=size * 0.85, color=GREY
    )


def legend(axes: Axes, handles: list, labels: list[str], heading: str) -> None:
    """What is drawn, in words beside the axes; dollar signs in names are no formulas."""
    found = axes.legend(
        handles,
        labels,
        title=heading,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    for text in found.get_texts():
        text.set_parse_math(False)


def say_nothing(axes: Axes, why: str) -> None:
    """Empty axes that say why they are."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, f"Nothing to draw: {why}", ha="center", va="center", color=GREY, transform=axes.transAxes)
