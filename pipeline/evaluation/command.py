"""The command `denoise-nas evaluate`: models on sets of images with named noises, in one table.

Called by `pipeline.cli`. Imports that take a second or more stand inside the functions.
"""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.report import ProgressReport

if TYPE_CHECKING:
    from pipeline.data.datasets import Dataset
    from pipeline.evaluation.noise import TestNoise
    from pipeline.evaluation.tracking import EvaluationTracking

_DEFAULT_NOISE = "awgn:25"


def evaluate_command(options: argparse.Namespace, console: Console) -> None:
    """Score denoisers on sets of images: one table of quality and cost; resumes."""
    from pipeline.cluster import load_op_files, read_op_files
    from pipeline.data.datasets import open_dataset
    from pipeline.data.loading import check_datasets
    from pipeline.device import check_device
    from pipeline.evaluation.measuring import fingerprint, measure_row
    from pipeline.evaluation.models import open_model
    from pipeline.evaluation.table import Table, markdown
    from pipeline.run import locked
    from pipeline.settings import PHOTOGRAPHS

    check_device(options.device)
    _check_distinct("MODEL", options.models)
    load_op_files(read_op_files(tuple(options.op_file)))
    datasets = [open_dataset(source, promote_grey=options.promote_grey) for source in options.data or [PHOTOGRAPHS]]
    _check_distinct("--data", [dataset.name for dataset in datasets])
    jobs = _plan(datasets, _noise_names(options))
    check_datasets(datasets)
    if options.tile_size is not None and options.tile_size < 1:
        raise ValueError(f"`--tile-size` must be at least 1, got {options.tile_size}")
    models = [open_model(name, device=options.device, tile_size=options.tile_size) for name in options.models]

    folder = Path(options.output) if options.output else None
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(locked(folder))
        table = Table(folder)
        tracking = None if folder is None else stack.enter_context(_tracking(folder, options.tracking_uri))
        progress = stack.enter_context(ProgressReport(console))
        for model in models:
            for dataset, noise in jobs:
                label = f"{model.name} on {dataset.name}, {noise.name}"
                if table.find((model.name, dataset.name, noise.name), fingerprint(model, dataset)):
                    console.print(f"{label}: in {folder} already", soft_wrap=True)
                    continue
                row, images = measure_row(model, dataset, noise, progress=partial(progress, label))
                table.add(row, images)
        page = markdown(table.rows)
        if tracking is not None:
            tracking.send(table.rows, page)
    console.print(page, soft_wrap=True)
    if folder is not None:
        console.print(f"table, images and page are in {folder}", soft_wrap=True)


def _noise_names(options: argparse.Namespace) -> list[str]:
    """Return the noises asked for; none means the set's own, or white noise."""
    if options.sigma_255 is None:
        return options.noise or []
    if options.noise:
        raise ValueError("give either `--noise` or `--sigma-255`, which is short for `--noise awgn:SIGMA`")
    if not 0 <= options.sigma_255 <= 255:
        raise ValueError(f"`--sigma-255` must lie in [0, 255], got {options.sigma_255}")
    return [f"awgn:{options.sigma_255:g}"]


def _plan(datasets: Sequence["Dataset"], names: Sequence[str]) -> list[tuple["Dataset", "TestNoise"]]:
    """Return every set with every noise; without names, pairs with their own noise and the others with white noise."""
    from pipeline.evaluation.noise import PAIRS, parse_noise

    _check_distinct("--noise", names)
    jobs = []
    for dataset in datasets:
        for name in names or [PAIRS if dataset.is_paired else _DEFAULT_NOISE]:
            noise = parse_noise(name)
            noise.check(dataset)
            jobs.append((dataset, noise))
    return jobs


def _tracking(folder: Path, uri: str | None) -> "EvaluationTracking":
    from pipeline.evaluation.tracking import EvaluationTracking

    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"
    return EvaluationTracking(folder, uri)


def _check_distinct(name: str, values: Sequence[str]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"`{name}` must be distinct, got {', '.join(values)}")
