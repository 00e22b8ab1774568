"""From the numbers of all cells to a table: mean and spread over seeds, beside the paper's figures.

Called by `report`, as a pandas DataFrame for CSV and as Markdown.
"""

import math
from statistics import fmean, stdev

import pandas as pd

from pipeline.experiments.claims import Finding, overall
from pipeline.experiments.experiment import Column, Experiment, ValuesBySeed, Variant
from pipeline.markdown import GAP, markdown_row

_PLUS_MINUS, _MINUS = "\N{PLUS-MINUS SIGN}", "\N{MINUS SIGN}"


def long_table(experiment: Experiment, values: ValuesBySeed) -> pd.DataFrame:
    """Return one row per variant and number: mean, spread, and the paper's figure where there is one.

    Numbers that no column shows are rows too. `std` is the sample standard deviation, empty with one seed.
    """
    rows = []
    for variant in experiment.variants:
        cells = [of_seed[variant.name] for of_seed in values.values()]
        keys = list(dict.fromkeys(key for cell in cells for key in cell))
        for key in keys:
            numbers = [cell[key] for cell in cells if key in cell]
            rows.append(
                {
                    "variant": variant.name, "quantity": key, "mean": fmean(numbers),
                    "std": stdev(numbers) if len(numbers) > 1 else math.nan, "min": min(numbers), "max": max(numbers),
                    "num_seeds": len(numbers), "paper": variant.paper.get(key, math.nan),
                }
            )  # fmt: skip
    names = ["variant", "quantity", "mean", "std", "min", "max", "num_seeds", "paper"]
    return pd.DataFrame(rows, columns=names)


def markdown_table(experiment: Experiment, table: pd.DataFrame) -> str:
    """Return the columns of the experiment as a Markdown table, the paper's figure beside each number that has one."""
    cells = {(row["variant"], row["quantity"]): row for row in table.to_dict("records")}
    has_paper = {column.key: any(column.key in variant.paper for variant in experiment.variants)
                 for column in experiment.columns}  # fmt: skip
    titles = [""]
    for column in experiment.columns:
        titles += [column.title, column.paper_title] if has_paper[column.key] else [column.title]
    lines = [markdown_row(titles), markdown_row(["---"] + ["---:"] * (len(titles) - 1))]
    for variant in experiment.variants:
        texts = [variant.label]
        for column in experiment.columns:
            row = cells.get((variant.name, column.key))
            texts.append(GAP if row is None else _number(column, row["mean"], row["std"]))
            if has_paper[column.key]:
                texts.append(_paper(column, variant))
        lines.append(markdown_row(texts))
    return "\n".join(lines) + "\n"


def markdown_findings(findings: list[Finding]) -> str:
    """Return one sentence with the verdict on the paper's finding, then a line per claim."""
    papers = [finding for finding in findings if finding.claim.is_papers]
    counts = {verdict: sum(finding.verdict == verdict for finding in papers)
              for verdict in ("seen", "not seen", "not decided")}  # fmt: skip
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = [f"**The paper's finding is {overall(findings)}** here (claims: {counted}).", ""]
    for finding in findings:
        claim, found = finding.claim, finding.estimate
        mean = "unknown" if found is None else f"{_signed(found.value, claim.digits)} {claim.unit}".rstrip()
        text = f"- *{finding.verdict}*: {claim.text}: {mean}"
        if found is not None and math.isfinite(found.high):
            text += f", 95 % interval {_signed(found.low, claim.digits)} to {_signed(found.high, claim.digits)}"
        if claim.threshold:
            text += f"; counts above {_signed(claim.threshold, claim.digits)}"
        if not claim.is_papers:
            text += " (a control, not the paper's)"
        if claim.paper is not None:
            text += f" (paper {_signed(claim.paper, claim.digits)})"
        lines.append(text)
    return "\n".join(lines) + "\n"


def _number(column: Column, mean: float, std: float) -> str:
    text = f"{mean / column.scale:.{column.digits}f}"
    return text if math.isnan(std) or std == 0 else f"{text} {_PLUS_MINUS} {std / column.scale:.{column.digits}f}"


def _paper(column: Column, variant: Variant) -> str:
    """The paper's figures are kept as it prints them."""
    return f"{variant.paper[column.key]:g}" if column.key in variant.paper else GAP


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", _MINUS)
