"""Every table of a study but the guidelines': rates per part, their intervals and their tests.

Called by `pipeline.study.analyze`. A family is a set of rates that belong together, such as the operators of each part;
it gives one table of rates and one of comparisons: between parts, and with random architectures of the same space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from pipeline.records import PARTS
from pipeline.study.estimates import Bootstrap, Counts, Label, compare, correct, rates, sum_counts
from pipeline.study.selection import GROUPS, SIZE_GROUPS, Collection
from search_space import DIRECTIONS, WIDTHS

SPECIAL_OPERATORS = ("swin", "hin", "ib")  # the "specific denoising operators" of Figs. 12 and 13
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Family:
    """Rates that are shown and corrected together.

    Attributes:
        name: of its tables.
        count: from a collection to numerators and denominators of all selected architectures.
        reference: what no preference would give, where random architectures have no such rate.
    """

    name: str
    count: Callable[[Collection], Counts]
    reference: float | None = None


def macs_table(collection: Collection) -> pd.DataFrame:
    """Return quartiles of the multiply-adds of every part, per group (Fig. 10)."""
    rows = [
        {"group": group, "part": part, "num_architectures": len(values)}
        | {name: values.quantile(q) for name, q in
           (("min", 0.0), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1.0))}
        for group in SIZE_GROUPS
        for part in PARTS
        for values in [collection.selected.loc[collection.keys(group), f"macs_part{part}"].astype(float)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def rate_table(collection: Collection, counts: Counts, bootstrap: Bootstrap) -> pd.DataFrame:
    """Return the rates of every group with their intervals."""
    tables = [rates(counts.of(collection.keys(group)), bootstrap).assign(group=group) for group in GROUPS]
    return _group_first(pd.concat(tables, ignore_index=True))


def comparison_table(
    collection: Collection, counts: Counts, bootstrap: Bootstrap, *, reference: float | None = None
) -> pd.DataFrame:
    """Compare the parts of every group with each other, and searched groups with the random control.

    With a `reference` the rates are compared with it instead. One correction over the whole table.
    """
    columns = counts.labels
    tables = []
    for group in GROUPS:
        own = counts.of(collection.keys(group))
        if reference is not None:
            table = compare(own, [(label, None) for label in columns], reference=reference, bootstrap=bootstrap)
            names = [f"rate - {reference:.3g}"] * len(columns)
            tables.append(_labelled(table, counts, columns, names).assign(group=group))
            continue
        pairs = _part_pairs(columns)
        names = [f"part {plus[0]} - part {minus[0]}" for plus, minus in pairs]
        table = compare(own, pairs, bootstrap=bootstrap)
        tables.append(_labelled(table, counts, [plus for plus, _ in pairs], names).assign(group=group))
        if group != "random":
            control = counts.of(collection.keys("random"))
            table = compare(own, [(label, None) for label in columns], control=control, bootstrap=bootstrap)
            names = [f"part {label[0]} - random's" for label in columns]
            tables.append(_labelled(table, counts, columns, names).assign(group=group))
    return correct(_group_first(pd.concat(tables, ignore_index=True)).drop(columns="part", errors="ignore"))


def operator_counts(collection: Collection) -> Counts:
    """Count operators over the reachable cells of every part (Fig. 11)."""
    return _choice_counts(collection, reachable_cells(collection), "operator", collection.operators)


def special_counts(collection: Collection) -> Counts:
    """Count swin, hin and ib over the reachable cells that have one of them (Fig. 12)."""
    offered = special_operators(collection)
    cells = reachable_cells(collection)
    return _choice_counts(collection, cells[cells["operator"].isin(offered)], "operator", offered)


def special_operators(collection: Collection) -> tuple[str, ...]:
    """Return those of swin, hin and ib that are on offer."""
    return tuple(name for name in SPECIAL_OPERATORS if name in collection.operators)


def pathway_counts(collection: Collection) -> Counts:
    """Sum softmax(beta) over the reachable cells with three inputs, by operator and direction (Fig. 13).

    An input that a budget took away has probability 0 and is none: the cell had nothing to choose among three. The
    derived network keeps two of three inputs at most, so the paper's figure can only speak of the softmax.
    """
    cells = reachable_cells(collection)
    cells = cells[[isinstance(beta, dict) and _num_inputs(beta) == len(DIRECTIONS) for beta in cells["beta"]]]
    operators = special_operators(collection)
    rows = pd.concat([
        pd.DataFrame({"key": cells["key"], "operator": operator, "direction": direction, "denominator": 1.0,
                      "numerator": np.array([beta[direction] for beta in cells["beta"]], dtype=float)})
        for direction in DIRECTIONS
        for operator in (cells["operator"], ALL)
    ])  # fmt: skip
    columns = pd.MultiIndex.from_product([(*operators, ALL), DIRECTIONS], names=["operator", "direction"])
    return sum_counts(rows, columns, collection.selected.index)


def _num_inputs(beta: dict[str, float | None]) -> int:
    """Return how many directions a cell could choose among."""
    return sum((beta.get(direction) or 0) > 0 for direction in DIRECTIONS)


def width_counts(collection: Collection) -> Counts:
    """Count output widths over the reachable cells of every part."""
    cells = reachable_cells(collection)
    cells = cells.assign(width=cells["out_width"].map(lambda width: f"{width:.0f}/{WIDTHS[0]}"))
    return _choice_counts(collection, cells, "width", [f"{width}/{WIDTHS[0]}" for width in WIDTHS])


def mean_width_counts(collection: Collection) -> Counts:
    """Sum output widths, as fractions of C, over the reachable cells of every part and resolution."""
    cells = reachable_cells(collection)
    return _resolution_counts(collection, cells, cells["out_width"] / WIDTHS[0], 1.0)


def dense_counts(collection: Collection) -> Counts:
    """Count kept dense connections among those on offer to the reachable cells of every part."""
    cells = reachable_cells(collection)
    rows = cells[["key", "part"]].assign(
        numerator=cells["dense_layers"].map(len), denominator=cells["num_dense_options"]
    )
    return sum_counts(rows, _part_columns(), collection.selected.index)


def reachable_counts(collection: Collection) -> Counts:
    """Count reachable cells among those of the grid, by part and resolution."""
    return _resolution_counts(collection, collection.cells, collection.cells["reachable"].astype(float), 1.0)


def macs_counts(collection: Collection) -> Counts:
    """Give every part's share of its network's multiply-adds; every network counts the same."""
    macs = collection.selected[[f"macs_part{part}" for part in PARTS]].astype(float)
    numerator = macs.div(macs.sum(axis=1), axis=0).set_axis(_part_columns(), axis=1)
    return Counts(numerator=numerator, denominator=numerator.notna().astype(float))


FAMILIES = (
    Family(name="operator_rates", count=operator_counts),
    Family(name="special_operator_shares", count=special_counts),
    Family(name="pathway_preferences", count=pathway_counts, reference=1 / len(DIRECTIONS)),
    Family(name="mean_widths", count=mean_width_counts),
    Family(name="width_shares", count=width_counts),
    Family(name="dense_connections", count=dense_counts),
    Family(name="reachable_cells", count=reachable_counts),
    Family(name="macs_shares", count=macs_counts),
)


def reachable_cells(collection: Collection) -> pd.DataFrame:
    """Return the cells that the derivation kept."""
    return collection.cells[collection.cells["reachable"]]


def _choice_counts(collection: Collection, cells: pd.DataFrame, choice: str, options: Sequence[str]) -> Counts:
    """Count each option of a choice over `cells`, by part."""
    rows = cells[["key", "part", choice]].merge(pd.DataFrame({"option": list(options)}), how="cross")
    rows = rows.assign(numerator=(rows[choice] == rows["option"]).astype(float), denominator=1.0)
    columns = pd.MultiIndex.from_product([PARTS, list(options)], names=["part", choice])
    return sum_counts(rows.drop(columns=choice).rename(columns={"option": choice}), columns, collection.selected.index)


def _resolution_counts(collection: Collection, cells: pd.DataFrame, numerator: pd.Series, denominator: float) -> Counts:
    """Sum over the cells of every part and resolution, and of all resolutions together."""
    present = sorted(collection.cells["resolution"].unique())
    names = cells["resolution"].map({resolution: resolution_name(resolution) for resolution in present})
    rows = cells[["key", "part"]].assign(resolution=names, numerator=numerator, denominator=denominator)
    columns = pd.MultiIndex.from_product(
        [PARTS, [*map(resolution_name, present), ALL]], names=["part", "resolution"]
    )  # fmt: skip
    return sum_counts(pd.concat([rows, rows.assign(resolution=ALL)]), columns, collection.selected.index)


def resolution_name(resolution: int) -> str:
    """Return `full`, `1/2`, `1/4`."""
    return f"1/{2**resolution}" if resolution else "full"


def _part_columns() -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([list(PARTS)], names=["part"])


def _part_pairs(columns: list[Label]) -> list[tuple[Label, Label]]:
    choices = dict.fromkeys(label[1:] for label in columns)
    return [((a, *choice), (b, *choice)) for choice in choices for a, b in combinations(PARTS, 2)]


def _labelled(table: pd.DataFrame, counts: Counts, labels: Sequence[Label], names: list[str]) -> pd.DataFrame:
    levels = pd.MultiIndex.from_tuples(labels, names=counts.numerator.columns.names).to_frame(index=False)
    return pd.concat([pd.Series(names, name="compared", dtype=str), levels, table], axis=1)


def _group_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["group", *(column for column in table.columns if column != "group")]]
