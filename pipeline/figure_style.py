"""How all figures look; used by `pipeline.study` and `pipeline.experiments`."""

from typing import Any

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
GREY, INK = "#5f6368", "#202124"
FIGURE_STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # it comes with matplotlib
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "xtick.color": INK,
    "ytick.color": INK,
}
