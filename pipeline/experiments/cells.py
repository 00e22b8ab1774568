"""The files that an experiment goes on from: one per finished cell, and what the folder belongs to.

Written by `runner` on the driver, read by `report`. A file is written beside and then renamed.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.files import read_text, write_atomically
from pipeline.config import Config
from pipeline.experiments.experiment import Experiment, Values
from pipeline.plain import hash_of

SCHEMA_VERSION = 1
IDENTITY_FILE = "experiment.json"
FIGURES_FOLDER = "figures"
FILES_FOLDER = "files"  # holds a folder per cell
STAGES = ("run", "measure")


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What one task left.

    Attributes:
        stage: `run` or `measure`.
        variant: of the cell.
        seed: of the cell.
        values: its numbers.
        started_at: in seconds since 1970.
        seconds: wall time of the task.
        device: what it ran on, in words.
    """

    stage: str
    variant: str
    seed: int
    values: Values
    started_at: float
    seconds: float
    device: str

    @property
    def name(self) -> str:
        """What files of the cell are called."""
        return cell_name(self.variant, self.seed)


def cell_name(variant: str, seed: int) -> str:
    """Return what files of a cell are called."""
    return f"{variant}-seed{seed}"


def claim_experiment(folder: Path, experiment: Experiment, config: Config) -> None:
    """Check that the folder holds this experiment or none, and mark it as this one.

    Raises:
        ValueError: another experiment, or other settings.
    """
    settings = [config.config_hash, config.to_dict()["experiment"]]
    if experiment.collect_settings:  # the hash leaves `collect` out
        settings.append({name: getattr(config.collect, name) for name in experiment.collect_settings})
    if experiment.run_alone:  # its seconds depend on them; the hash leaves them out
        settings.append({"threads_per_worker": config.retrain.threads_per_worker})
    identity = {
        "schema_version": SCHEMA_VERSION,
        "experiment": experiment.name,
        "hash": hash_of(settings),
    }
    path = folder / IDENTITY_FILE
    if not path.exists():
        write_atomically(path, json.dumps(identity) + "\n")
    found = read_identity(folder)
    if found != identity:
        raise ValueError(
            f"{folder} holds the experiment {found.get('experiment')!r} with settings {found.get('hash')}, this is "
            f"{experiment.name!r} with {identity['hash']}; choose another `--output`"
        )


def read_identity(folder: Path) -> dict[str, Any]:
    """Return which experiment the folder holds.

    Raises:
        FileNotFoundError: none.
        ValueError: the file is damaged.
    """
    path = folder / IDENTITY_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no experiment: it has no file {IDENTITY_FILE}")
    found = _read_json(path)
    if "experiment" not in found:
        raise ValueError(f"{path} is damaged: it names no experiment")
    return found


def record_path(folder: Path, stage: str, variant: str, seed: int) -> Path:
    """Return where the record of a cell lies."""
    return folder / stage / f"{cell_name(variant, seed)}.json"


def write_record(folder: Path, record: CellRecord) -> None:
    """Write a record; a partial file never has its name."""
    path = record_path(folder, record.stage, record.variant, record.seed)
    write_atomically(path, json.dumps(vars(record), indent=2, allow_nan=False) + "\n")


def read_records(folder: Path) -> list[CellRecord]:
    """Read the records of an experiment, in order of stage, variant and seed.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    records = []
    for stage in STAGES:
        for path in sorted((folder / stage).glob("*.json")):
            content = _read_json(path)
            try:
                record = CellRecord(**content)
                numbers = [record.started_at, record.seconds, *record.values.values()]
                if type(record.seed) is not int or not all(map(math.isfinite, numbers)):
                    raise ValueError("its seed must be an integer, its values finite")
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise ValueError(f"{path} is no record of a cell: {error}") from error
            if record.stage != stage or record.name != path.stem:
                raise ValueError(f"{path} holds the record of another cell: {record.stage} {record.name}")
            records.append(record)
    return records


def values_by_seed(records: Sequence[CellRecord], experiment: Experiment) -> dict[int, dict[str, Values]]:
    """Return the numbers by seed and variant, of the seeds with all cells, but for those that need a package."""
    stages = {"run"} if experiment.measure is None else set(STAGES)
    optional = {variant.name for variant in experiment.variants if variant.package is not None}
    found: dict[tuple[int, str], dict[str, Values]] = {}
    for record in records:
        found.setdefault((record.seed, record.variant), {})[record.stage] = record.values
    seeds = sorted({record.seed for record in records})
    complete: dict[int, dict[str, Values]] = {}
    for seed in seeds:
        cells = {
            variant.name: found.get((seed if variant.is_seeded else seeds[0], variant.name), {})
            for variant in experiment.variants
        }
        if all(name in optional or set(cell) >= stages for name, cell in cells.items()):
            complete[seed] = {name: {k: v for values in cell.values() for k, v in values.items()}
                              for name, cell in cells.items()}  # fmt: skip
    return complete


def wall_seconds(records: Sequence[CellRecord]) -> float:
    """Return how long at least one cell was at work: overlapping cells count once, pauses do not."""
    total, end = 0.0, -math.inf
    for record in sorted(records, key=lambda record: record.started_at):
        stop = record.started_at + record.seconds
        total += max(0.0, stop - max(end, record.started_at))
        end = max(end, stop)
    return total


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return found
