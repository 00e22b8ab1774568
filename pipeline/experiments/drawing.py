"""What the figures of experiments share: their look, and where they are saved; no window is opened."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.experiments.cells import FIGURES_FOLDER

# Okabe and Ito, "Color Universal Design" (2008): told apart with any colour vision.
BLUE, VERMILION, GREEN, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#5f6368", "#202124"
_DPI = 110
_RC: dict[Any, Any] = {
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


def new_figure(num_rows: int, num_columns: int, *, inches: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `inches` (width, height) with a grid of axes, rows first."""
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: np.ndarray = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, axes.tolist()


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save a figure of the experiment in `folder` and return its path."""
    path = folder / FIGURES_FOLDER / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_RC):
        figure.savefig(path)
    return path
