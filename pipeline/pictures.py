"""Before and after: a figure of noisy, denoised and clean images, enlarged where there is most to see.

Called by a run when it evaluates, and by the experiment `denoisers`; figures are saved as files, no window is opened.

Legend: H height, W width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.data.images import to_8_bit, white_level
from pipeline.metrics import psnr_db

CROP_STEP = 4  # pixels between the crops that compete
_ACCENT = "#ffb000"
_BLACK = "#202124"
_GREY = "#5f6368"
_DPI = 110
_FONT_SIZE = 9.5  # points
_INCHES = {"cell": 2.15, "gap": 0.1, "caption": 0.36, "margin": 0.16, "name": 0.24, "title": 0.34}
_EXPLANATION = "enlarged where framed, PSNR of the whole image"
_FONT: dict[Any, Any] = {"font.family": ["sans-serif"], "font.sans-serif": ["DejaVu Sans"]}  # it comes with matplotlib


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One image in its versions, all (H, W, 3), uint8 or uint16 as `clean`.

    Attributes:
        name: written above the row.
        noisy: the input.
        denoised: the result of the network that the figure is about.
        clean: the reference.
        prior: the result of the prior, where there is one.
    """

    name: str
    noisy: np.ndarray
    denoised: np.ndarray
    clean: np.ndarray
    prior: np.ndarray | None = None

    def __post_init__(self) -> None:
        for version in ("clean", "noisy", "denoised", "prior"):
            image = getattr(self, version)
            if version == "prior" and image is None:
                continue
            dtype = np.uint16 if self.clean.dtype == np.uint16 else np.uint8
            if image.dtype != dtype or image.ndim != 3 or image.shape != (*self.clean.shape[:2], 3):
                raise ValueError(
                    f"`{version}` of {self.name!r} must be {dtype.__name__} of shape {(*self.clean.shape[:2], 3)}, "
                    f"got {image.dtype} of shape {image.shape}"
                )


def comparison_figure(
    rows: Sequence[ComparisonRow],
    path: Path | str,
    *,
    title: str = "",
    crop_size: int = 96,
    denoised_label: str = "denoised",
) -> None:
    """Draw for every image the whole picture and enlarged crops: noisy, prior, denoised, clean; save it at `path`.

    The crop is the one with the most detail. The PSNR below a crop is that of the whole image.

    Args:
        rows: the images; the prior's column appears if any row has one.
        path: of the picture; PNG, or another format of matplotlib by its suffix.
        title: above the figure; say which network and which noise.
        crop_size: height and width of a crop in pixels, cut to the image where that is smaller.
        denoised_label: heads the column of the network's results, for example its name.

    Raises:
        ValueError: there are no rows, or `crop_size` is below 1.
    """
    if not rows:
        raise ValueError("`rows` must hold at least one image, got none")
    has_prior = any(row.prior is not None for row in rows)
    labels = {"noisy": "noisy", "prior": "prior", "denoised": denoised_label, "clean": "clean"}
    if not has_prior:
        del labels["prior"]

    with matplotlib.rc_context(_FONT):
        layout = _Layout(num_rows=len(rows), num_columns=1 + len(labels))
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=(layout.width, layout.height), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        start, end, height = layout.head()
        figure.text(start, height, title, fontsize=_FONT_SIZE + 2.5, fontweight="bold", color=_BLACK, va="top")
        figure.text(end, height, _EXPLANATION, fontsize=_FONT_SIZE - 1, color=_GREY, va="top", ha="right")
        for index, row in enumerate(rows):
            top, left, height, width = most_detailed_crop(row.clean, crop_size)
            axes = figure.add_axes(layout.cell(index, 0))
            _draw_whole(axes, row, (top, left, height, width))
            for column, (version, label) in enumerate(labels.items(), start=1):
                image = getattr(row, version)
                axes = figure.add_axes(layout.cell(index, column))
                if image is None:
                    axes.axis("off")
                    continue
                _show(axes, image[top : top + height, left : left + width], interpolation="nearest")
                caption = label if version == "clean" else f"{label}  {_decibels(image, row.clean)}"
                axes.set_xlabel(caption, fontsize=_FONT_SIZE, labelpad=4, color=_BLACK)
        figure.savefig(path)


def most_detailed_crop(image: np.ndarray, crop_size: int) -> tuple[int, int, int, int]:
    """Find the square crop with the most detail; equal images give equal crops.

    Detail is the mean brightness difference between neighbouring pixels. Its square root is taken, so that texture
    that fills the crop counts for more than one hard edge across it.

    Args:
        image: (H, W, 3) uint8 or uint16.
        crop_size: height and width in pixels, cut to the image where that is smaller.

    Returns:
        top, left, height and width of the crop in pixels.

    Raises:
        ValueError: `crop_size` is below 1.
    """
    if crop_size < 1:
        raise ValueError(f"`crop_size` must be at least 1, got {crop_size}")
    height, width = (min(crop_size, side) for side in image.shape[:2])
    brightness = image.astype(np.float64).mean(axis=2)
    gradient = np.abs(np.diff(brightness, axis=0, append=brightness[-1:]))
    gradient += np.abs(np.diff(brightness, axis=1, append=brightness[:, -1:]))
    summed = np.pad(np.sqrt(gradient), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)  # summed-area table
    detail = summed[height:, width:] - summed[:-height, width:] - summed[height:, :-width] + summed[:-height, :-width]
    detail = detail[::CROP_STEP, ::CROP_STEP].round(6)  # rounded: equal crops tie, and the first of them wins
    top, left = np.unravel_index(int(detail.argmax()), detail.shape)
    return int(top) * CROP_STEP, int(left) * CROP_STEP, height, width


class _Layout:
    """Positions of the cells of the figure, as fractions of its size in inches."""

    def __init__(self, *, num_rows: int, num_columns: int) -> None:
        self.row_height = _INCHES["name"] + _INCHES["cell"] + _INCHES["caption"]
        self.width = 2 * _INCHES["margin"] + num_columns * (_INCHES["cell"] + _INCHES["gap"]) - _INCHES["gap"]
        self.height = _INCHES["margin"] + _INCHES["title"] + num_rows * self.row_height

    def head(self) -> tuple[float, float, float]:
        """Return the left and right end and the top of the line above the rows."""
        left = _INCHES["margin"] / self.width
        return left, 1 - left, 1 - _INCHES["margin"] / self.height

    def cell(self, row: int, column: int) -> tuple[float, float, float, float]:
        left = _INCHES["margin"] + column * (_INCHES["cell"] + _INCHES["gap"])
        bottom = self.height - _INCHES["margin"] - _INCHES["title"] - (row + 1) * self.row_height + _INCHES["caption"]
        side = _INCHES["cell"]
        return left / self.width, bottom / self.height, side / self.width, side / self.height


def _draw_whole(axes: Axes, row: ComparisonRow, crop: tuple[int, int, int, int]) -> None:
    top, left, height, width = crop
    _show(axes, row.clean, interpolation="lanczos")
    corner = (left - 0.5, top - 0.5)  # pixel centres lie on whole numbers
    axes.add_patch(Rectangle(corner, width, height, linewidth=1.6, edgecolor=_ACCENT, facecolor="none"))
    axes.set_title(row.name, fontsize=_FONT_SIZE, fontweight="bold", loc="left", pad=5, color=_GREY)


def _show(axes: Axes, image: np.ndarray, *, interpolation: Literal["nearest", "lanczos"]) -> None:
    axes.imshow(to_8_bit(image), interpolation=interpolation)
    axes.set_anchor("NW")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _decibels(image: np.ndarray, clean: np.ndarray) -> str:
    psnr = psnr_db(image, clean, data_range=white_level(clean))
    return "\N{INFINITY} dB" if math.isinf(psnr) else f"{psnr:.2f} dB"
