"""What an experiment leaves for people: table, verdict and figures in its folder, and one page of several experiments.

Called by `command`. Everything is made from the files of the cells, so it can be made again.
"""

import datetime
import json
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ops.files import write_atomically
from pipeline.config import Config, list_presets, load_config
from pipeline.experiments.cells import (
    FIGURES_FOLDER,
    CellRecord,
    read_identity,
    read_records,
    values_by_seed,
    wall_seconds,
)
from pipeline.experiments.claims import RULE, Finding, judge, overall
from pipeline.experiments.experiment import Experiment, Summary
from pipeline.experiments.registry import EXPERIMENTS, load_experiment
from pipeline.experiments.table import long_table, markdown_findings, markdown_table
from pipeline.plain import dotted

_HEAD = "# The paper's experiments\n\nMade by `denoise-nas experiment --report` from the files of finished runs.\n\n"
MARKDOWN_FILE, CSV_FILE, JSON_FILE = "table.md", "table.csv", "results.json"


@dataclass(frozen=True, kw_only=True)
class Results:
    """What came out of an experiment.

    Attributes:
        experiment: which.
        seeds: of the complete cells.
        table: see `table.long_table`.
        findings: one per claim.
        figures: pictures in the folder.
        markdown: the section about it, its pictures named as in the folder.
        files: everything that was written.
    """

    experiment: Experiment
    seeds: tuple[int, ...]
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    figures: tuple[Path, ...]
    markdown: str
    files: tuple[Path, ...]


def write_results(folder: Path) -> Results:
    """Write `table.md`, `table.csv`, `results.json`, the figures and what `summarise` makes to an experiment's folder.

    Raises:
        FileNotFoundError: the folder holds no experiment.
        ValueError: it holds no seed with all its cells, or damaged files.
    """
    identity = read_identity(folder)
    experiment = load_experiment(identity["experiment"])
    config = load_config(str(folder / "config.yaml"))
    records = read_records(folder)
    values = values_by_seed(records, experiment)
    if not values:
        raise ValueError(f"{folder} holds no seed of {experiment.name!r} with all its cells; run the experiment first")
    table = long_table(experiment, values)
    findings = [judge(claim, values) for claim in experiment.claims]
    figures: list[Path] = []
    if experiment.draw is not None:
        figures = experiment.draw(values, folder)
    facts = _facts(config, list(values), records)
    summary = None if experiment.summarise is None else experiment.summarise(values)
    pictures = [path.relative_to(folder) for path in figures]
    section = _section(experiment, table, summary, findings, pictures, facts)
    write_atomically(folder / MARKDOWN_FILE, section)
    write_atomically(folder / CSV_FILE, table.to_csv(index=False))
    stored = facts | {
        "experiment": experiment.name,
        "verdict": overall(findings),
        "claims": [_finding(finding) for finding in findings],
        "values": {str(seed): of_seed for seed, of_seed in values.items()},
        "paper": {variant.name: dict(variant.paper) for variant in experiment.variants},
    }
    files = [folder / name for name in (MARKDOWN_FILE, CSV_FILE, JSON_FILE)]
    if summary is not None:
        stored["summary"] = summary.frame.to_dict("records")
        files.append(folder / f"{summary.name}.csv")
        write_atomically(files[-1], summary.frame.to_csv(index=False))
    write_atomically(folder / JSON_FILE, json.dumps(stored, indent=2, allow_nan=False) + "\n")
    return Results(
        experiment=experiment, seeds=tuple(values), table=table, findings=tuple(findings), figures=tuple(figures),
        markdown=section, files=(*files, *figures),
    )  # fmt: skip


def write_page(folders: Sequence[Path], target: Path) -> None:
    """Put the sections of several experiments on one page, in the order of the paper, and their figures beside it.

    Of a page that is there already, the sections of other experiments stay, and what was written above the first one.

    Args:
        folders: of experiments.
        target: Markdown file; figures go to the folder of the same name without `.md`.

    Raises:
        FileNotFoundError: a folder holds no experiment.
        ValueError: one experiment twice, or a target that is no Markdown file.
    """
    if target.suffix != ".md":
        raise ValueError(f"the page must be a Markdown file (.md), got {target}")
    by_name: dict[str, Path] = {}
    for folder in folders:
        name = read_identity(folder)["experiment"]
        if name in by_name:
            raise ValueError(f"{by_name[name]} and {folder} both hold the experiment {name!r}; give one of them")
        by_name[name] = folder
    notes, old_sections = _read_page(target)
    sections = []
    for name in EXPERIMENTS:
        if name not in by_name:
            sections += [old_sections[name]] if name in old_sections else []
            continue
        results = write_results(by_name[name])
        section = results.markdown
        for figure in results.figures:
            pictures = target.with_suffix("") / name
            pictures.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(figure, pictures / figure.name)
            section = section.replace(f"({FIGURES_FOLDER}/{figure.name})", f"({target.stem}/{name}/{figure.name})")
        sections.append(section)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, _HEAD + notes + RULE + "\n\n" + "\n".join(sections))


def _read_page(target: Path) -> tuple[str, dict[str, str]]:
    """Return what a page has between its first lines and the rule, and its sections by the name of the experiment."""
    text = target.read_text() if target.exists() else ""
    top, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    by_name = {section.removeprefix("## ").partition(":")[0]: section.rstrip() + "\n" for section in sections}
    return top.removeprefix(_HEAD).partition(RULE)[0] if top.startswith(_HEAD) else "", by_name


def _settings(config: Config) -> list[str]:
    """Return what differs from the preset, as it is typed, without where results go."""
    if config.name not in list_presets():
        return []
    preset = dict(dotted(load_config(config.name).to_dict()))
    return [
        f"{key}={json.dumps(value)}"
        for key, value in dotted(config.to_dict())
        if value != preset.get(key) and key.partition(".")[0] not in ("output", "tracking", "ray")
    ]


def _facts(config: Config, seeds: list[int], records: Sequence[CellRecord]) -> dict[str, Any]:
    """Return what a number has to be known with: preset, seeds, device, date, wall time."""
    finished = max(record.started_at + record.seconds for record in records)
    return {
        "preset": config.name,
        "settings": _settings(config),
        "config_hash": config.config_hash,
        "sizes": config.to_dict()["experiment"],
        "seeds": seeds,
        "devices": sorted({record.device for record in records}),
        "date": datetime.datetime.fromtimestamp(finished, tz=datetime.UTC).date().isoformat(),
        "image_size": {"macs": config.evaluate.image_size, "measured_ms": config.latency.image_size},
        "timing_threads": config.latency.num_threads,
        "wall_seconds": round(wall_seconds(records), 1),
    }


def _section(
    experiment: Experiment,
    table: pd.DataFrame,
    summary: Summary | None,
    findings: list[Finding],
    figures: list[Path],
    facts: dict[str, Any],
) -> str:
    pictures = [f"![{experiment.title}: {path.stem}]({path.as_posix()})\n" for path in figures]
    command = ["denoise-nas", "experiment", experiment.name, "--config", facts["preset"],
               "--seeds", str(len(facts["seeds"])), *facts["settings"]]  # fmt: skip
    made = (
        f"`{shlex.join(command)}`; "
        f"{'; '.join(facts['devices'])}; {facts['date']}; {facts['wall_seconds'] / 60:.1f} min at work."
    )
    return "\n".join(
        [
            f"## {experiment.name}: {experiment.title}\n",
            experiment.description + "\n",
            markdown_table(experiment, table),
            _legend(experiment, facts) + "\n",
            *([] if summary is None else [summary.markdown]),
            markdown_findings(findings),
            *pictures,
            made + "\n",
        ]
    )


def _legend(experiment: Experiment, facts: dict[str, Any]) -> str:
    """Say what spread, multiply-adds and milliseconds in the table are."""
    seeds = ", ".join(map(str, facts["seeds"]))
    sentence = f"Mean \N{PLUS-MINUS SIGN} sample standard deviation over the seeds {seeds}."
    if len(facts["seeds"]) == 1:
        sentence = f"One seed, {seeds}: no spread."
    sizes, keys = facts["image_size"], {column.key for column in experiment.columns}
    if not {"macs", "measured_ms"} <= keys:
        return sentence
    threads = f"{facts['timing_threads']} thread{'s' * (facts['timing_threads'] > 1)}"
    return (
        f"{sentence} MACs at {sizes['macs']} x {sizes['macs']} pixels, measured ms at {sizes['measured_ms']} x "
        f"{sizes['measured_ms']} with {threads}."
    )


def _finding(finding: Finding) -> dict[str, Any]:
    """Return plain values; what is not known, such as the ends of an interval, becomes null."""
    claim, found = finding.claim, finding.estimate
    numbers = (None, None, None) if found is None else (found.value, found.low, found.high)
    mean, low, high = (None if number is None or math.isinf(number) else number for number in numbers)
    return {
        "text": claim.text, "unit": claim.unit, "verdict": finding.verdict, "mean": mean, "low": low, "high": high,
        "threshold": claim.threshold, "paper": claim.paper,
    }  # fmt: skip
