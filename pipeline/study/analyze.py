"""From a data set of architectures to tables, figures and a report. Called by `denoise-nas analyze`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ops.files import write_atomically, written_beside
from pipeline.study.estimates import Bootstrap
from pipeline.study.figures import draw_figures
from pipeline.study.guidelines import Answer, answer_guidelines, claim_table
from pipeline.study.paper import paper_table, scale_table
from pipeline.study.report import render_report, summarise
from pipeline.study.selection import (
    DEFAULT_MARGIN_DB,
    Collection,
    architecture_table,
    read_collection,
    selection_counts,
)
from pipeline.study.tables import FAMILIES, comparison_table, macs_table, rate_table

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What `analyze` found and wrote.

    Attributes:
        summary: texts to print: `quantity`, `searched`, `random`, `paper`.
        answers: to the paper's three guidelines.
        tables: by name, as they were written.
        files: the report first.
    """

    summary: pd.DataFrame
    answers: tuple[Answer, ...]
    tables: dict[str, pd.DataFrame]
    files: tuple[Path, ...]


def analyze(
    folder: Path, output: Path, *, margin_db: float | None = DEFAULT_MARGIN_DB, num_resamples: int = 2000,
    seed: int = 0, device_name: str | None = None,
) -> Study:  # fmt: skip
    """Study the preferences of a collection, as Section IV-F of arXiv 2502.13359 does, with intervals and tests.

    Writes `report.html`, `figures/NAME.png`, `figures/NAME.svg`, `tables/NAME.csv` and `tables/NAME.parquet` into
    `output`. Equal data and settings give equal tables. Groups that are missing or small leave gaps, not errors.

    Args:
        folder: data set with `architectures.parquet` and `cells.parquet`.
        output: folder of the results; it is made, and files of an earlier study are replaced.
        margin_db: of the selection by PSNR, see `read_collection`; None keeps every record.
        num_resamples: of the bootstrap, at least 100.
        seed: of the bootstrap.
        device_name: of the machine that searched and timed, for the report.

    Raises:
        FileNotFoundError: a file of the data set is missing.
        ValueError: the data set cannot be read or is empty, a setting is out of range, or `read_collection` refuses.
    """
    bootstrap = Bootstrap(num_resamples=num_resamples, seed=seed)
    collection = read_collection(folder, margin_db=margin_db)
    tables = _tables(collection, bootstrap, device_name)
    answers = answer_guidelines(tables["guidelines"])
    summary = summarise(collection, tables["paper_numbers"], answers)

    for name in ("figures", "tables"):
        (output / name).mkdir(parents=True, exist_ok=True)
    files = _write_tables(tables, output / "tables")
    figures = draw_figures(tables, collection)
    saved = [figure.save(output / "figures") for figure in figures]
    report = render_report(
        tables, [(figure, svg) for figure, (svg, _) in zip(figures, saved, strict=True)], answers,
        collection=collection, summary=summary, num_resamples=num_resamples, source=folder.resolve().name,
    )  # fmt: skip
    path = output / REPORT_FILE
    write_atomically(path, report)
    files = [path, *(path for paths in saved for path in paths), *files]
    return Study(summary=summary, answers=answers, tables=tables, files=tuple(files))


def _tables(collection: Collection, bootstrap: Bootstrap, device_name: str | None) -> dict[str, pd.DataFrame]:
    tables = {
        "selection": selection_counts(collection),
        "architectures": architecture_table(collection),
        "macs_per_part": macs_table(collection),
    }
    for family in FAMILIES:
        counts = family.count(collection)
        tables[family.name] = rate_table(collection, counts, bootstrap)
        tables[f"{family.name}_comparisons"] = comparison_table(
            collection, counts, bootstrap, reference=family.reference
        )
    tables["guidelines"] = claim_table(collection, bootstrap)
    tables["paper_numbers"] = paper_table(tables)
    tables["scale"] = scale_table(collection, device_name=device_name)
    return tables


def _write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    paths = []
    for name, table in tables.items():
        csv, parquet = folder / f"{name}.csv", folder / f"{name}.parquet"
        write_atomically(csv, table.to_csv(index=False))
        with written_beside(parquet) as beside:
            table.to_parquet(beside, index=False)
        paths += [csv, parquet]
    return paths
