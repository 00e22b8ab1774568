"""What a person sees: progress of long work, and tables at the end. Called by the commands and `pipeline.summary`."""

import math
import sys
import time
from statistics import median
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from latency import LatencyTable

_LINE_SECONDS = 15.0  # between lines where there is no terminal to draw a bar on


class ProgressReport:
    """A bar per stage on a terminal; a line now and then elsewhere. Call it with (stage, done, total)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, Any] = {}
        self._last_line: dict[str, float] = {}
        self._bars = Progress(
            TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `stage` are done."""
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        if stage not in self._last_line or done == total or now - self._last_line[stage] > _LINE_SECONDS:
            self._last_line[stage] = now
            print(f"{stage}: {done}/{total}", file=sys.stdout, flush=True)


def summary_table(summary: dict[str, Any]) -> Table:
    """Show the summary of a run: quality beside noisy input and prior, size, speed."""
    table = Table(title=f"architecture {summary['genotype_id']} (seed {summary['seed']})", title_justify="left")
    for column in ("", "noisy", "prior", "found network"):
        table.add_column(column, justify="left" if not column else "right")
    psnr, ssim = summary["psnr_db"], summary["ssim"]
    table.add_row("PSNR, dB", *(decibels(psnr[key]) for key in ("noisy", "prior", "denoised")))
    table.add_row("SSIM", *(f"{ssim[key]:.4f}" for key in ("noisy", "prior", "denoised")))
    size = summary["latency_image_size"]
    table.add_row(
        f"measured ms at {size}x{size}", "", f"{summary['prior_latency_ms']:.1f}",
        f"{summary['measured_latency_ms']:.1f}",
    )  # fmt: skip
    if summary["predicted_latency_ms"] is not None:
        table.add_row("predicted ms", "", "", f"{summary['predicted_latency_ms']:.1f}")
    table.add_row("parameters, k", "", f"{summary['prior_num_parameters'] / 1e3:.1f}",
                  f"{summary['num_parameters'] / 1e3:.1f}")  # fmt: skip
    size = summary["macs_image_size"]
    table.add_row(f"GMACs at {size}x{size}", "", f"{summary['prior_macs'] / 1e9:.2f}", f"{summary['macs'] / 1e9:.2f}")
    seconds = summary["seconds"]
    table.caption = "seconds: " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items())
    table.caption_justify = "left"
    return table


def decibels(psnr_db: float | None) -> str:
    """Return a PSNR in words: what is infinite is null in files."""
    return f"{math.inf if psnr_db is None else psnr_db:.2f}"


def price_table(prices: LatencyTable) -> Table:
    """Show how many operator calls were priced, and the cheapest, median and dearest, per operator and image size."""
    groups: dict[tuple[str, int, int], list[float]] = {}
    for spec in prices:
        groups.setdefault((spec.name, spec.height, spec.width), []).append(prices[spec])
    title = f"{len(prices)} operator calls priced on {prices.device_info.device_name}"
    table = Table(title=title, title_justify="left")
    for column in ("operator", "size", "calls", "min ms", "median ms", "max ms"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for name, height, width in sorted(groups, key=lambda key: (key[0], -key[1])):
        values = groups[name, height, width]
        table.add_row(
            name, f"{height}x{width}", str(len(values)),
            *(f"{value:.3f}" for value in (min(values), median(values), max(values))),
        )  # fmt: skip
    return table


def score_table(title: str, scores: list[dict[str, Any]]) -> Table:
    """Show the scores of images, one row each."""
    table = Table(title=title, title_justify="left")
    for column in ("image", "noisy dB", "PSNR, dB", "noisy SSIM", "SSIM", "seconds"):
        table.add_column(column, justify="left" if column == "image" else "right")
    for score in scores:
        table.add_row(
            score["name"], f"{score['noisy_psnr_db']:.2f}", f"{score['psnr_db']:.2f}", f"{score['noisy_ssim']:.4f}",
            f"{score['ssim']:.4f}", f"{score['seconds']:.2f}",
        )  # fmt: skip
    return table


def collection_table(records: list[dict[str, Any]]) -> Table:
    """Show how many architectures there are of each kind, and between which numbers they lie."""
    groups = {
        "searched, lambda 0": [r for r in records if r["origin"] == "searched" and not r["complexity_weight"]],
        "searched, lambda > 0": [r for r in records if r["origin"] == "searched" and r["complexity_weight"]],
        "random": [r for r in records if r["origin"] == "random"],
    }
    table = Table(title=f"{len(records)} architectures", title_justify="left")
    for column in ("", "recorded", "distinct", "proxy PSNR, dB", "predicted ms", "GMACs"):
        table.add_column(column, justify="left" if not column else "right")
    for name, group in groups.items():
        if not group:
            continue
        spans = []
        for key, scale, digits in (("proxy_psnr_db", 1, 2), ("predicted_ms", 1, 1), ("macs", 1e9, 2)):
            values = [record[key] / scale for record in group]
            spans.append(f"{min(values):.{digits}f} .. {median(values):.{digits}f} .. {max(values):.{digits}f}")
        table.add_row(name, str(len(group)), str(len({record["genotype_id"] for record in group})), *spans)
    table.caption = "lowest .. median .. highest"
    table.caption_justify = "left"
    return table


def study_table(summary: Any) -> Table:
    """Show the headline numbers of a study, a pandas DataFrame of texts."""
    table = Table(title="preferences", title_justify="left")
    for index, column in enumerate(summary.columns):
        table.add_column(str(column), justify="right" if index else "left")
    for row in summary.itertuples(index=False, name=None):
        table.add_row(*(str(value) for value in row))
    return table
