"""The report of a study: one HTML file that needs nothing beside it. Called by `pipeline.study.analyze`."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment

from pipeline.study.figures import StudyFigure
from pipeline.study.guidelines import Answer
from pipeline.study.selection import GROUPS, Collection, selection_counts

_NO_VALUE = "\N{EN DASH}"
_STATISTICS = ("num_architectures", "num_control", "out_of", "rate", "low", "high")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """A table as the report prints it: texts only."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def summarise(collection: Collection, paper: pd.DataFrame, answers: Sequence[Answer]) -> pd.DataFrame:
    """Return the headline: how many were selected, the rates that the paper prints, the answers to its guidelines.

    All columns are texts: `quantity`, `searched`, `random`, `paper`.
    """
    counts = selection_counts(collection).set_index("group")
    chosen = {group: f"{row['selected']} of {row['records']}" for group, row in counts.iterrows()}
    large_small = f"{chosen['searched']} (large {chosen['large']}, small {chosen['small']})"
    rows = [["architectures selected", large_small, chosen["random"], "200"]]
    for _, row in paper.iterrows():
        name = f"{row['quantity']}, part {row['part']}"
        rows.append([name, _interval(row, "searched"), _text(row["random"]), _text(row["paper"])])
    rows += [[f"guideline {answer.number}: {answer.title}", answer.verdict, "", ""] for answer in answers]
    return pd.DataFrame(rows, columns=["quantity", "searched", "random", "paper"])


def render_report(
    tables: Mapping[str, pd.DataFrame], figures: Sequence[tuple[StudyFigure, Path]], answers: Sequence[Answer], *,
    collection: Collection, summary: pd.DataFrame, num_resamples: int, source: str,
) -> str:  # fmt: skip
    """Return the report as HTML; every text from the data set is escaped.

    Args:
        tables: by name, as `analyze` writes them.
        figures: with the SVG file of each, which is embedded.
        answers: to the guidelines.
        collection: what they were made of.
        summary: what `summarise` returned.
        num_resamples: of the bootstrap.
        source: name of the data set.
    """
    template = resources.files("pipeline.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    offered = {tuple(sorted(names)) for names in collection.selected["candidate_ops"]}
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template).render(
        source=source,
        summary=_shown("", summary),
        answers=[(answer, _claims(tables["guidelines"], answer.number)) for answer in answers],
        counts=_shown("", tables["selection"]),
        scale=_shown("", tables["scale"]),
        paper=_shown("", _with_interval(tables["paper_numbers"], "searched")),
        sections=[
            {
                "title": figure.title, "caption": figure.caption, "name": figure.name,
                "image": base64.b64encode(path.read_bytes()).decode(), "tables": _details(tables, figure.name),
            }
            for figure, path in figures
        ],
        other=_details(tables, "width_shares"),
        margin=collection.margin_db,
        num_resamples=num_resamples,
        is_warm=(collection.selected["weights"] == "warm").any(),
        has_mixed_operators=len(offered) > 1,
        files=sorted(tables),
    )  # fmt: skip


def _details(tables: Mapping[str, pd.DataFrame], name: str) -> list[_Shown]:
    """Return what is folded away below a figure: rates, and the comparisons that are significant."""
    if name == "pareto":
        front = tables["architectures"].query("is_non_dominated").sort_values("predicted_ms")
        columns = ["group", "index", "genotype_id", "predicted_ms", "proxy_psnr_db", "num_parameters", "macs"]
        return [_shown(f"Non-dominated architectures ({len(front)})", front[columns])]
    shown = [_shown("Quartiles of multiply-adds", tables[name])] if name == "macs_per_part" else []
    family = "macs_shares" if name == "macs_per_part" else name
    shown.append(_rates(tables[family]))
    comparisons = tables[f"{family}_comparisons"]
    significant = _with_interval(comparisons[comparisons["significant"]], "difference").drop(columns="significant")
    shown.append(_shown(f"Significant differences ({len(significant)} of {len(comparisons)} comparisons)", significant))
    return shown


def _rates(table: pd.DataFrame) -> _Shown:
    """Lay the groups side by side."""
    levels = [column for column in table.columns if column not in ("group", *_STATISTICS)]
    texts = table.assign(text=[_interval(row, "rate") for _, row in table.iterrows()])
    wide = texts.set_index([*levels, "group"])["text"].unstack("group", sort=False)[list(GROUPS)]
    return _shown("Rates with 95 % intervals", wide.reset_index())


def _claims(claims: pd.DataFrame, number: int) -> _Shown:
    columns = ["claim", "num_architectures", "num_control", "rate", "against", "difference", "effect", "p_corrected",
               "verdict"]  # fmt: skip
    return _shown("", _with_interval(claims[claims["guideline"] == number], "difference")[columns])


def _with_interval(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Join `low` and `high` to `column`, as text."""
    texts = pd.Series([_interval(row, column) for _, row in table.iterrows()], index=table.index, dtype=str)
    return table.assign(**{column: texts}).drop(columns=["low", "high"])


def _interval(row: pd.Series, column: str) -> str:
    if pd.isna(row[column]):
        return _NO_VALUE
    interval = "no interval" if pd.isna(row["low"]) else f"{row['low']:.3f}, {row['high']:.3f}"
    return f"{row[column]:.3f} [{interval}]"


def _shown(title: str, table: pd.DataFrame) -> _Shown:
    rows = [[_text(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return _Shown(title=title, columns=[str(column).replace("_", " ") for column in table.columns], rows=rows)


def _text(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if not isinstance(value, str) and pd.isna(value):
        return _NO_VALUE
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(float(value)) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
