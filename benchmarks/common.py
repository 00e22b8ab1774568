"""What every benchmark shares: where results go and what they are stamped with."""

import datetime
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from latency import DeviceInfo

RESULTS = Path(__file__).parent / "results"


def write_result(
    name: str, result: dict[str, Any], *, seeds: list[int], num_threads: int, device: torch.device | None = None
) -> Path:
    """Write `result` with seeds, device and date to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    stamp = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "seeds": seeds,
        "device": DeviceInfo.current(device or torch.device("cpu"), num_threads=num_threads).to_dict(),
    }
    path.write_text(json.dumps(stamp | result, indent=2) + "\n")
    return path


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table, first column to the left, numbers to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
