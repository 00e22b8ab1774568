"""What the figures of experiments share: their look, and where they are saved; no window is opened."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ops.files import written_beside
from pipeline.experiments.cells import FIGURES_FOLDER
from pipeline.figure_style import FIGURE_STYLE

_DPI = 110


def new_figure(num_rows: int, num_columns: int, *, inches: tuple[float, float]) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of `inches` (width, height) with a grid of axes, rows first."""
    with matplotlib.rc_context(FIGURE_STYLE):
        figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes: np.ndarray = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, axes.tolist()


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save a figure of the experiment in `folder` and return its path."""
    path = folder / FIGURES_FOLDER / f"{name}.png"
    with matplotlib.rc_context(FIGURE_STYLE), written_beside(path) as beside:
        figure.savefig(beside)
    return path
