"""The figures of a study, drawn from its tables. Called by `pipeline.study.analyze`; no window is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ops.files import written_beside
from pipeline.figure_style import BLUE, FIGURE_STYLE, GREY, INK, VERMILION
from pipeline.records import PARTS
from pipeline.study.selection import SIZE_GROUPS, Collection
from pipeline.study.tables import ALL

# Markers differ too.
_COLOURS = {"large": BLUE, "small": VERMILION, "random": "#7a7a7a"}
_MARKERS = {"large": "o", "small": "s", "random": "D"}
_NAMES = {"large": "large (\N{GREEK SMALL LETTER LAMDA} = 0)", "small": "small (\N{GREEK SMALL LETTER LAMDA} > 0)",
          "random": "random control"}  # fmt: skip
_BAND = "#f4f5f6"
_WIDTH, _ROW, _FRAME = 9.2, 0.42, 1.45  # inches: of a figure, of a line of dots, of what surrounds the lines
_SPREAD = 0.5  # of a line, over which the groups of one line are spread
_RC = FIGURE_STYLE | {
    "xtick.color": GREY,
    "svg.hashsalt": "pipeline.study",  # equal ids inside the file in every run
}


@dataclass(frozen=True, kw_only=True)
class StudyFigure:
    """One figure with the words below it.

    Attributes:
        name: of its files and of the tables that it shows.
        title: above it in the report.
        caption: how to read it.
        figure: as matplotlib draws it.
    """

    name: str
    title: str
    caption: str
    figure: Figure

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write `NAME.svg` and `NAME.png`; equal tables give equal files."""
        svg, png = (folder / f"{self.name}{suffix}" for suffix in (".svg", ".png"))
        with matplotlib.rc_context(_RC):
            with written_beside(svg) as beside:
                self.figure.savefig(beside, metadata={"Date": None, "Creator": None})
            with written_beside(png) as beside:
                self.figure.savefig(beside, dpi=130, metadata={"Software": None})
        return svg, png


_INTERVAL = "Bars are 95 % bootstrap intervals over architectures."
_PANELS = {  # name: title, caption, column of the panels, column of the lines, label of the axis
    "operator_rates": (
        "Operators of each part (Fig. 11)", f"Share of a part's reachable cells. {_INTERVAL} Dotted: all equal.",
        "part", "operator", "rate of the operator",
    ),
    "special_operator_shares": (
        "swin, hin and ib among each other (Fig. 12)",
        f"Share of an operator among the cells that have one of them. {_INTERVAL} Dotted: all equal.",
        "part", "operator", "share among them",
    ),
    "pathway_preferences": (
        "Resolutions that feed an operator (Fig. 13)",
        f"Mean softmax(beta) of cells with three inputs: up from the coarser, same, down from the finer. {_INTERVAL} "
        "Dotted: a third, no preference. Random architectures have no beta.",
        "operator", "direction", "mean softmax(\N{GREEK SMALL LETTER BETA})",
    ),
    "mean_widths": (
        "Output widths", f"Mean output width of reachable cells as a fraction of C, by resolution. {_INTERVAL}",
        "part", "resolution", "mean width / C",
    ),
    "reachable_cells": (
        "Cells that remain", f"Share of the grid's cells that the derivation kept, by resolution. {_INTERVAL}",
        "part", "resolution", "share of cells kept",
    ),
    "dense_connections": (
        "Dense connections", f"Share of the dense connections on offer to reachable cells that were kept. {_INTERVAL}",
        None, "part", "share kept",
    ),
}  # fmt: skip


def draw_figures(tables: Mapping[str, pd.DataFrame], collection: Collection) -> list[StudyFigure]:
    """Draw every figure, those of the paper first; without swin, hin and ib on offer there is none of their shares.

    Args:
        tables: by name; the rates of all families and `architectures`.
        collection: whose selected architectures give the violins.
    """
    with matplotlib.rc_context(_RC):
        figures = [_macs_figure(collection, tables["macs_shares"])]
        for name, (title, caption, panel, line, label) in _PANELS.items():
            table = tables[name]
            if table.empty:
                continue
            equal = 1 / table[line].nunique() if "Dotted" in caption else None
            figure = _dot_figure(table, panel, line, label, equal)
            figures.append(StudyFigure(name=name, title=title, caption=caption, figure=figure))
        return [*figures, _pareto_figure(tables["architectures"])]


def _dot_figure(table: pd.DataFrame, panel: str | None, line: str, label: str, equal: float | None) -> Figure:
    """Draw one panel per value of `panel`, one line per value of `line`, one dot per group."""
    lines = list(dict.fromkeys(table[line]))
    panels = list(dict.fromkeys(table[panel])) if panel else [None]
    figure, row = _new_figure(len(panels), _FRAME + _ROW * len(lines))
    groups = _present(table)
    left, right = _limits(table)
    for axes, value in zip(row, panels, strict=True):
        own = table[table[panel] == value] if panel else table
        if panel:
            axes.set_title(f"{panel} {value}" if panel == "part" else _operator_title(str(value)))
        _draw_dots(axes, own, line, lines, groups)
        if equal is not None:
            axes.axvline(equal, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.set_xlim(left, right)
        axes.set_xlabel(label)
    names = [f"part {name}" for name in lines] if line == "part" else [str(name) for name in lines]
    row[0].set_yticks(range(len(lines)), names)
    _add_legend(figure, groups)
    return figure


def _limits(table: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the axis: from 0, unless all rates lie close together far from it."""
    values = table[["rate", "low", "high"]].to_numpy(dtype=float)
    values = values[~np.isnan(values)]
    if not len(values) or values.max() == 0:
        return 0.0, 1.0
    low, high = values.min(), values.max()
    margin = 0.06 * high if low < high / 2 else 0.5 * (high - low) + 0.01
    return (0.0 if low < high / 2 else low - margin), high + margin


def _draw_dots(axes: Axes, table: pd.DataFrame, line: str, lines: Sequence[Any], groups: Sequence[str]) -> None:
    for index in range(0, len(lines), 2):
        axes.axhspan(index - 0.5, index + 0.5, color=_BAND, zorder=0)
    for place, group in enumerate(groups):
        own = table[table["group"] == group].set_index(line).reindex(list(lines))
        offset = ((place + 0.5) / len(groups) - 0.5) * _SPREAD
        height = np.arange(len(lines)) + offset
        axes.hlines(height, own["low"], own["high"], color=_COLOURS[group], linewidth=1.6, zorder=2)
        axes.plot(own["rate"], height, _MARKERS[group], color=_COLOURS[group], markersize=4.5, zorder=3, clip_on=False)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _macs_figure(collection: Collection, shares: pd.DataFrame) -> StudyFigure:
    groups = _present(shares)
    figure, row = _new_figure(len(groups) + 1, 3.6, share_y=False)
    macs = collection.selected[[f"macs_part{part}" for part in PARTS]].astype(float) / 1e9
    for axes, group in zip(row, groups, strict=False):
        values = macs.loc[collection.keys(group)].to_numpy()
        violins = axes.violinplot(values, positions=PARTS, widths=0.85, showextrema=False)
        for body in violins["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=_COLOURS[group], alpha=0.45, edgecolor=_COLOURS[group])
        for part in PARTS:
            low, middle, high = np.quantile(values[:, part], (0.25, 0.5, 0.75))
            axes.hlines([low, high], part - 0.14, part + 0.14, color=INK, linewidth=1, linestyle=(0, (2, 1.5)))
            axes.hlines(middle, part - 0.2, part + 0.2, color=INK, linewidth=1.8)
        axes.set_title(f"{group}, {len(values)} networks")
        axes.set_xticks(PARTS, [f"part {part}" for part in PARTS])
        axes.set_ylim(0, 1.05 * macs.to_numpy().max())
    row[0].set_ylabel("multiply-adds, G")
    axes = row[-1]
    axes.set_title("mean share")
    _draw_dots(axes, shares, "part", PARTS, groups)
    axes.set_yticks(PARTS, [f"part {part}" for part in PARTS])
    axes.set_xlim(0, _limits(shares)[1])
    axes.set_xlabel("share of multiply-adds")
    _add_legend(figure, groups)
    caption = (
        "Each violin is the distribution over architectures, its lines the quartiles, the thick one the median. Right: "
        f"mean share of a part in its own network. {_INTERVAL}"
    )
    return StudyFigure(name="macs_per_part", title="Complexity of each part (Fig. 10)", caption=caption, figure=figure)


def _pareto_figure(architectures: pd.DataFrame) -> StudyFigure:
    figure, (axes,) = _new_figure(1, 4.4)
    known = architectures.dropna(subset=["predicted_ms", "proxy_psnr_db"])
    groups = _present(known)
    for group in reversed(groups):
        for is_selected, opacity in ((False, 0.25), (True, 0.85)):
            own = known[(known["group"] == group) & (known["is_selected"] == is_selected)]
            axes.plot(own["predicted_ms"], own["proxy_psnr_db"], _MARKERS[group], color=_COLOURS[group], markersize=4.5,
                      markeredgewidth=0, alpha=opacity)  # fmt: skip
    front = known[known["is_non_dominated"]].sort_values("predicted_ms")
    axes.plot(front["predicted_ms"], front["proxy_psnr_db"], color=INK, linewidth=0.9, drawstyle="steps-post",
              marker="o", markersize=8, markerfacecolor="none", markeredgewidth=1.1)  # fmt: skip
    axes.set_xlabel("predicted latency, ms")
    axes.set_ylabel("PSNR with shared weights, dB")
    axes.grid(color=_BAND)
    ring = Line2D([], [], color=INK, linewidth=0.9, marker="o", markersize=8, markerfacecolor="none",
                  label="non-dominated")  # fmt: skip
    _add_legend(figure, groups, [ring])
    return StudyFigure(
        name="pareto", title="Quality against speed", figure=figure,
        caption="All architectures; faint ones were not selected for the statistics. Ringed: no other is as good and "
        "as fast and better in one.",
    )  # fmt: skip


def _new_figure(num_panels: int, height: float, *, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    width = _WIDTH if num_panels > 1 else 0.7 * _WIDTH
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, num_panels, sharey=share_y, squeeze=False)[0])


def _add_legend(figure: Figure, groups: Sequence[str], more: Sequence[Line2D] = ()) -> None:
    dots = [Line2D([], [], linestyle="", marker=_MARKERS[group], color=_COLOURS[group], markersize=5,
                   label=_NAMES[group]) for group in groups]  # fmt: skip
    if dots or more:
        figure.legend(handles=[*dots, *more], loc="outside upper center", ncols=len(dots) + len(more), frameon=False)


def _present(table: pd.DataFrame) -> list[str]:
    """Return the groups with numbers, in order."""
    has_numbers = table.dropna(subset=["rate"]) if "rate" in table else table
    return [group for group in SIZE_GROUPS if (has_numbers["group"] == group).any()]


def _operator_title(operator: str) -> str:
    return "all operators" if operator == ALL else operator
