"""draw_genotype: a picture of an architecture, its three parts as grids of cells, one below the other.

Called by the pipeline's commands and reports; imported by its own name, so that `import search_space` needs no
matplotlib. All positions are in inches: one unit of the axes is one inch, y points up.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve

from ops import list_ops
from search_space.complexity import genotype_num_parameters
from search_space.genotype import CellGenotype, Genotype, PartGenotype
from search_space.part import LAST_PART
from search_space.space import CellPosition, SearchSpace
from search_space.supernet import cell_key

Point = tuple[float, float]

# Inches, for a picture that is read at 110 dots per inch.
_DPI = 110
_CELL_WIDTH, _CELL_HEIGHT = 0.84, 0.44
_COLUMN_PITCH = 1.24
_ENTRY, _EXIT = 1.42, 2.5  # from the margin to the centre of the stem, from that of the tail to the margin
_BOUNDARY_ARROW = 0.3
_PLUS_RADIUS = 0.1
_MIN_ROW_GAP = 0.5  # between the boxes of two rows, so that diagonal arrows are not flat
_HEAD, _FOOT, _SKIP_CLEARANCE = 0.42, 0.36, 0.12  # of a part
_TITLE, _CAPTION, _LEGEND_ROW, _MARGIN = 0.34, 0.24, 0.24, 0.22
_CURVE_PEAK = 0.75  # share of the height of its two bends that a cubic curve reaches
_NAME_SIZE, _SMALL_SIZE, _HEAD_SIZE, _TITLE_SIZE = 8.5, 7.2, 9.5, 13.0  # points

_INK, _GREY, _FAINT, _BAND = "#263238", "#6b7780", "#c3cbd1", "#f5f7f8"
# Fill and outline of the operators in order of registration: blues for the plain convolutions, other hues for the rest.
_PALETTE = (
    ("#dcebfb", "#5b9bd5"), ("#b9d7f5", "#3f83c4"), ("#93c1ec", "#2b6cb0"), ("#c5ecea", "#2a9d98"),
    ("#eceff1", "#90a4ae"), ("#fde7b5", "#d99a1c"), ("#fbd3d6", "#d1606b"), ("#d5efc5", "#649f3b"),
    ("#f3d6ee", "#b15fa5"), ("#fbdcc4", "#d27b3b"), ("#e6e3c8", "#8f8a4a"), ("#dcd7f7", "#6b5fc0"),
)  # fmt: skip
_DROPPED: dict[str, Any] = {"facecolor": "white", "edgecolor": _FAINT, "linewidth": 0.8, "linestyle": (0, (3, 3))}
_LINES: dict[str, dict[str, Any]] = {
    "pathway": {"color": _INK, "linewidth": 1.1, "zorder": 2.4},
    "dense": {"color": "#ab92d0", "linewidth": 1.0, "zorder": 2.2},
    "detail": {"color": "#00897b", "linewidth": 1.2, "zorder": 2.3, "linestyle": (0, (1, 1.6))},
    "skip": {"color": "#d3b98a", "linewidth": 1.1, "zorder": 2.0},
}
_LINE_NAMES = {
    "pathway": "up, same, down: multi-resolution input",
    "dense": "dense connection",
    "detail": "fine feature fused while up-sampling",
    "skip": "long skip",
}
_RC: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],  # the first comes with matplotlib, the rest serve viewers
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "search_space.draw",  # equal ids inside the file in every run
}
_METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}


def draw_genotype(genotype: Genotype, path: Path | str, *, caption: str = "") -> None:
    """Draw `genotype` and save the picture; equal arguments give equal files.

    Columns are layers, rows resolutions. A box is a cell with its operator and its input and output channels, a faint
    outline a cell that was dropped, a line a kept pathway.

    Args:
        genotype: the architecture.
        path: of the picture, `.svg` or `.png`; missing folders are made.
        caption: below the title, for what a genotype does not know: multiply-adds at a size, PSNR, milliseconds.

    Raises:
        ValueError: `path` has another suffix.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise ValueError(f"`path` must end in .svg or .png, got {path.name!r}")
    layout = _Layout.of(genotype)
    num_parameters = genotype_num_parameters(genotype)
    head = _MARGIN + _TITLE + (_CAPTION if caption else 0.0)
    legend_height = 2 * _LEGEND_ROW + 0.1
    height = head + len(genotype.parts) * layout.part_height + legend_height + _MARGIN / 2

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(layout.width, height), dpi=_DPI, facecolor="white")
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0, layout.width), ylim=(0, height))
        axes.set_axis_off()
        line = height - _MARGIN - 0.08
        _text(axes, (_MARGIN, line), f"genotype {genotype.genotype_id}", _TITLE_SIZE, align="left", weight="bold")
        summary = f"{_short(sum(num_parameters))} parameters, {genotype.num_channels} channels"
        _text(axes, (layout.width - _MARGIN, line), summary, _HEAD_SIZE, align="right", colour=_GREY)
        _text(axes, (_MARGIN, line - 0.29), caption, _HEAD_SIZE, align="left", colour=_GREY)
        for index, part in enumerate(genotype.parts):
            canvas = _Canvas(axes, layout, height - head - index * layout.part_height, index)
            _draw_part(canvas, part, genotype.space, num_parameters[index])
        _draw_legend(axes, genotype, bottom=_MARGIN / 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format=suffix[1:], metadata=_METADATA[suffix])


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where rows and columns lie, the same in all parts of a figure.

    Attributes:
        row_depths: from the top of a part down to the centre of every row of cells.
        part_height: from one part to the next.
        width: of the figure.
    """

    row_depths: tuple[float, ...]
    part_height: float
    width: float

    @classmethod
    def of(cls, genotype: Genotype) -> "_Layout":
        """Leave as much room above and below every row as its longest curves need."""
        above, below = [0.0] * genotype.num_resolutions, [0.0] * genotype.num_resolutions
        for cell in (cell for part in genotype.parts for cell in part.cells):
            row, layer = cell.position
            above[row] = max([above[row], *(_rise(layer - source) for source, _ in cell.dense_pathways)])
            if "up" in dict(cell.resolution_pathways):
                below[row] = max(below[row], _dip(layer - genotype.space.opened_from(cell.position).layer))
        depths = [_HEAD + _SKIP_CLEARANCE + above[0] + _CELL_HEIGHT / 2]
        for upper in range(genotype.num_resolutions - 1):
            gap = max(_MIN_ROW_GAP, below[upper] + above[upper + 1] + 0.2)
            depths.append(depths[-1] + _CELL_HEIGHT + gap)
        return cls(
            row_depths=tuple(depths),
            part_height=depths[-1] + _CELL_HEIGHT / 2 + _FOOT,
            width=_MARGIN + _ENTRY + (genotype.num_layers + 1) * _COLUMN_PITCH + _EXIT + _MARGIN,
        )


@dataclass(frozen=True)
class _Canvas:
    """One part's place in the figure."""

    axes: Axes
    layout: _Layout
    top: float
    part_index: int

    def port(self, position: CellPosition, across: float, up: float) -> Point:
        """Return a point of a box: (-1, -1) is its lower left corner, (0, 0) its centre, (1, 1) its upper right."""
        x = _MARGIN + _ENTRY + position.layer * _COLUMN_PITCH
        y = self.top - self.layout.row_depths[position.resolution]
        return x + across * _CELL_WIDTH / 2, y + up * _CELL_HEIGHT / 2


def _draw_part(canvas: _Canvas, part: PartGenotype, space: SearchSpace, num_parameters: int) -> None:
    line = canvas.top - 0.16
    detail = f"{len(part.cells)} of {len(space.cells)} cells, {_short(num_parameters)} parameters"
    _text(canvas.axes, (_MARGIN, line), f"part {canvas.part_index}", _HEAD_SIZE, align="left", weight="bold")
    _text(canvas.axes, (_MARGIN + 0.54, line), detail, _NAME_SIZE, align="left", colour=_GREY)
    _draw_grid(canvas, space)
    cells = {cell.position: cell for cell in part.cells}
    for position in space.cells:
        name = cell_key(position)
        if position not in cells:
            _box(canvas, position, gid=f"dropped_{name}")
            continue
        cell = cells[position]
        channels = f"{space.channels(cell.in_width)}→{space.channels(cell.out_width)}"
        _box(canvas, position, cell.op, channels, colours=_colours(cell.op), gid=f"cell_{name}")
        _draw_pathways(canvas, cell, part, space)
    _draw_frame(canvas, space, space.channels(part.cells[-1].out_width))


def _draw_grid(canvas: _Canvas, space: SearchSpace) -> None:
    """Shade the rows, name rows and columns."""
    right, _ = canvas.port(space.last_cell, 1, 0)
    for row in range(space.num_resolutions):
        x, y = canvas.port(CellPosition(row, 1), -1, -1)
        shade = FancyBboxPatch(
            (x, y), right - x, _CELL_HEIGHT, boxstyle="round,pad=0.1,rounding_size=0.1", facecolor=_BAND,
            edgecolor="none", zorder=0,
        )  # fmt: skip
        canvas.axes.add_patch(shade)
        if row:  # the entry stands beside the first row, which is the image's own size
            _text(canvas.axes, (x - 0.18, y + _CELL_HEIGHT / 2), f"1/{2**row} size", _SMALL_SIZE, align="right",
                  colour=_GREY)  # fmt: skip
    for layer in range(1, space.num_layers + 1):
        x, y = canvas.port(CellPosition(space.num_resolutions - 1, layer), 0, -1)
        _text(canvas.axes, (x, y - 0.2), f"layer {layer}", _SMALL_SIZE, colour=_GREY)


def _draw_frame(canvas: _Canvas, space: SearchSpace, last_channels: int) -> None:
    """Draw what surrounds the cells: entry, stem, tail, long skip and exit."""
    axes, index, channels = canvas.axes, canvas.part_index, space.num_channels
    stem, tail = CellPosition(0, 0), CellPosition(0, space.num_layers + 1)
    _box(canvas, stem, "stem", f"{3 if index == 0 else channels}→{channels}", gid="stem")
    _box(canvas, tail, "tail", f"{last_channels}→{channels}", gid="tail")
    (first, y), (last, _) = canvas.port(stem, -1, 0), canvas.port(tail, 1, 0)
    entry = first - _BOUNDARY_ARROW
    _text(axes, (entry - 0.06, y), "noisy" if index == 0 else "features", _NAME_SIZE, align="right")
    _arrow(canvas, [(entry, y), (first, y)], gid="entry")
    _arrow(canvas, [canvas.port(space.last_cell, 1, 0), canvas.port(tail, -1, 0)], gid="to_tail")

    # The long skip starts at the stem's output in part 0, at the part's input in parts 1 and 2.
    start = canvas.port(stem, 0, 1) if index == 0 else (entry + 0.08, y)
    plus, bend = last + (_COLUMN_PITCH - _CELL_WIDTH) / 2, canvas.top - _HEAD
    _arrow(canvas, [start, (start[0], bend), (plus, bend), (plus, y + _PLUS_RADIUS)], style="skip", gid="long_skip")
    _arrow(canvas, [(last, y), (plus - _PLUS_RADIUS, y)], gid="to_sum")
    axes.add_patch(Circle((plus, y), _PLUS_RADIUS, facecolor="white", edgecolor=_GREY, linewidth=0.9, zorder=3))
    _text(axes, (plus, y), "+", _HEAD_SIZE)
    end = plus + _PLUS_RADIUS
    if index == LAST_PART:
        image = CellPosition(0, tail.layer + 1)
        _box(canvas, image, "image", f"{channels}→3", gid="image")
        _arrow(canvas, [(end, y), canvas.port(image, -1, 0)], gid="to_image")
        end, _ = canvas.port(image, 1, 0)
    _arrow(canvas, [(end, y), (end + _BOUNDARY_ARROW, y)], gid="exit")
    name = "residual" if index == LAST_PART else "features"
    _text(axes, (end + _BOUNDARY_ARROW + 0.06, y), name, _NAME_SIZE, align="left")


def _draw_pathways(canvas: _Canvas, cell: CellGenotype, part: PartGenotype, space: SearchSpace) -> None:
    """Draw what `cell` reads. Each pathway has its own place on the edge of a box, so that none hides another."""
    target = cell.position
    name = cell_key(target)
    for direction, _ in cell.resolution_pathways:
        height = {"up": 0.5, "same": 0.0, "down": -0.5}[direction]
        start, end = canvas.port(space.source(target, direction), 1, height), canvas.port(target, -1, -height)
        _arrow(canvas, [start, end], gid=f"{direction}_{name}")
        if direction == "up":
            source = space.opened_from(target)  # x_{s,m} of Eq. (1)
            start, end = canvas.port(source, 0.5, -1), canvas.port(target, -0.5, -1)
            _curve(canvas, start, end, -_dip(target.layer - source.layer) / _CURVE_PEAK, "detail", f"detail_{name}")
    layers = sorted((layer for layer, _ in cell.dense_pathways), reverse=True)
    for layer in layers:
        source = CellPosition(target.resolution, layer)
        # Curves arrive on the left half of the upper edge, nearest first, and leave on the right half, farthest first:
        # then those that share an end do not cross.
        start = canvas.port(source, 0.1 + 0.8 * _place(target.layer, _dense_readers(part, source)), 1)
        end = canvas.port(target, -0.9 + 0.8 * _place(layer, layers), 1)
        _curve(canvas, start, end, _rise(target.layer - layer) / _CURVE_PEAK, "dense", f"dense{layer}_{name}")


def _dense_readers(part: PartGenotype, source: CellPosition) -> list[int]:
    """Return the layers to which `source` has a dense connection, farthest first."""
    row = [cell for cell in part.cells if cell.position.resolution == source.resolution]
    return [cell.position.layer for cell in reversed(row) if source.layer in dict(cell.dense_pathways)]


def _place(layer: int, layers: list[int]) -> float:
    return (layers.index(layer) + 0.5) / len(layers)


def _rise(num_layers: int) -> float:
    """Height in inches of a dense connection over `num_layers` layers."""
    return 0.12 + 0.075 * num_layers


def _dip(num_layers: int) -> float:
    """Depth in inches of a dotted connection over `num_layers` layers."""
    return 0.1 + 0.03 * num_layers


def _colours(op: str) -> tuple[str, str]:
    return _PALETTE[list_ops().index(op) % len(_PALETTE)]


def _box(
    canvas: _Canvas, position: CellPosition, name: str = "", channels: str = "", *,
    colours: tuple[str, str] = ("white", _GREY), gid: str,
) -> None:  # fmt: skip
    """Draw a cell; without a name, the faint outline of a dropped one."""
    look = _DROPPED
    if name:
        look = {"facecolor": colours[0], "edgecolor": colours[1], "linewidth": 1.0}
        _text(canvas.axes, canvas.port(position, 0, 0.36), name, _NAME_SIZE)
        _text(canvas.axes, canvas.port(position, 0, -0.44), channels, _SMALL_SIZE, colour=_GREY)
    box = FancyBboxPatch(
        canvas.port(position, -1, -1), _CELL_WIDTH, _CELL_HEIGHT, boxstyle="round,pad=0,rounding_size=0.07",
        zorder=3 if name else 1, gid=f"part{canvas.part_index}_{gid}", **look,
    )  # fmt: skip
    canvas.axes.add_patch(box)


def _arrow(canvas: _Canvas, points: list[Point], *, style: str = "pathway", gid: str, curved: bool = False) -> None:
    """Draw an arrow along `points`, or along the cubic curve that they control."""
    codes = [Curve.MOVETO] + [Curve.CURVE4 if curved else Curve.LINETO] * (len(points) - 1)
    look: dict[str, Any] = {"arrowstyle": "-|>,head_length=0.4,head_width=0.18", "mutation_scale": 10}
    look |= {"joinstyle": "miter", "capstyle": "butt", "gid": f"part{canvas.part_index}_{gid}"} | _LINES[style]
    if "linestyle" in look:  # dots would break up the head, so it is drawn by itself
        canvas.axes.add_patch(FancyArrowPatch(path=Curve(points, codes), **look | {"arrowstyle": "-"}))
        (x, y), (_, bend) = points[-1], points[-2]
        points, codes = [(x, y + (0.1 if bend > y else -0.1)), (x, y)], codes[:1] + [Curve.LINETO]
        look |= {"linestyle": "-", "linewidth": 0.1, "gid": None}
    canvas.axes.add_patch(FancyArrowPatch(path=Curve(points, codes), **look))


def _curve(canvas: _Canvas, start: Point, end: Point, bend: float, style: str, gid: str) -> None:
    points = [start, (start[0], start[1] + bend), (end[0], end[1] + bend), end]
    _arrow(canvas, points, style=style, gid=gid, curved=True)


def _text(
    axes: Axes, at: Point, text: str, size: float, *, align: str = "center", colour: str = _INK, weight: str = "normal"
) -> None:
    look: dict[str, Any] = {"fontsize": size, "ha": align, "va": "center_baseline", "fontweight": weight}
    axes.text(*at, text, color=colour, zorder=5, parse_math=False, **look)


def _draw_legend(axes: Axes, genotype: Genotype, *, bottom: float) -> None:
    """List the operators that occur, and the lines below them."""
    cells = [cell for part in genotype.parts for cell in part.cells]
    occurs = {"pathway", "skip"}
    occurs |= {"dense"} if any(cell.dense_pathways for cell in cells) else set()
    occurs |= {"detail"} if any("up" in dict(cell.resolution_pathways) for cell in cells) else set()
    lines: list[Artist] = [Line2D([], [], label=_LINE_NAMES[kind], **_LINES[kind]) for kind in _LINES if kind in occurs]
    names = [name for name in list_ops() if name in {cell.op for cell in cells}]
    boxes: list[Artist] = [
        Patch(facecolor=_colours(name)[0], edgecolor=_colours(name)[1], label=name) for name in names
    ]
    if len(cells) < len(genotype.parts) * len(genotype.space.cells):
        boxes.append(Patch(label="dropped cell", **_DROPPED))
    for row, handles in enumerate((lines, boxes)):
        legend = Legend(
            axes, handles=handles, labels=[str(handle.get_label()) for handle in handles], loc="lower left",
            bbox_to_anchor=(_MARGIN, bottom + row * _LEGEND_ROW), bbox_transform=axes.transData, ncols=len(handles),
            frameon=False, borderpad=0, borderaxespad=0, fontsize=_NAME_SIZE, handlelength=1.8, handleheight=0.9,
            columnspacing=1.8, labelcolor=_INK,
        )  # fmt: skip
        axes.add_artist(legend)


def _short(number: int) -> str:
    """Write a count with three digits, for example 2.31 M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
