"""Carry out the cells of an experiment as Ray tasks; keep every finished one and never repeat it.

Called by `command`. The driver writes a cell's file when its task returns; a kill loses what was in flight and nothing
else. Cells whose numbers depend on the clock run one at a time. On a cluster, all machines have to see the experiment's
folder.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from latency import DeviceInfo
from pipeline.cluster import prepare_worker, read_op_files
from pipeline.config import Config
from pipeline.experiments.cells import FILES_FOLDER, STAGES, CellRecord, cell_name, record_path, write_record
from pipeline.experiments.experiment import ALONE_GPUS, CellJob, Experiment, Inputs
from pipeline.experiments.registry import load_experiment
from pipeline.settings import EXPERIMENT_SIZES


def sized(config: Config, seed: int) -> Config:
    """Return the settings of a cell: the preset with the sizes of `experiment` and the cell's seed.

    Raises:
        ValueError: a size is impossible where it stands.
    """
    cell = config.with_settings({"seed": seed})
    for size, setting in EXPERIMENT_SIZES.items():
        value = getattr(config.experiment, size)
        if value is None:
            continue
        try:
            cell = cell.with_settings({setting: value})
        except ValueError as error:
            raise ValueError(f"`experiment.{size}` stands for `{setting}` and cannot be {value}: {error}") from None
    return cell


def run_cells(
    experiment: Experiment,
    config: Config,
    inputs: Inputs,
    *,
    seeds: Sequence[int],
    folder: Path,
    progress: Callable[[str, int, int], None],
    on_record: Callable[[CellRecord], None],
) -> None:
    """Carry out the cells that the folder lacks; needs an initialised Ray.

    Args:
        experiment: what to carry out.
        config: the preset.
        inputs: images and prices.
        seeds: of the cells of every variant whose package is installed.
        folder: of the experiment.
        progress: called with (stage, cells done, cells).
        on_record: called with every new record, after it is on disk.

    Raises:
        RuntimeError: some cells failed; the message names them and the causes. All others are finished and kept.
    """
    shared = ray.put(inputs)
    op_sources = read_op_files(config.space.op_files)
    for stage in STAGES:
        if stage == "measure" and experiment.measure is None:
            continue
        (folder / stage).mkdir(exist_ok=True)
        cells = [
            (variant.name, seed)
            for seed in seeds
            for variant in experiment.variants
            if variant.is_possible and (variant.is_seeded or seed == seeds[0])
        ]
        missing = [cell for cell in cells if not record_path(folder, stage, *cell).exists()]
        is_alone = stage == "measure" or experiment.run_alone
        num_threads = config.retrain.threads_per_worker if is_alone else 1
        label = f"{experiment.name}: {stage}"
        progress(label, len(cells) - len(missing), len(cells))

        def submit(
            cell: tuple[str, int], stage: str = stage, num_threads: int = num_threads, is_alone: bool = is_alone
        ) -> Any:
            variant, seed = cell
            files = (folder / FILES_FOLDER / cell_name(variant, seed)).absolute()
            num_gpus = 0.0 if config.device == "cpu" else ALONE_GPUS if is_alone else 1.0
            options = {"num_cpus": _num_cpus(num_threads, num_gpus), "num_gpus": num_gpus, "max_retries": 1}
            task = ray.remote(_cell_task).options(**options)
            return task.remote(
                experiment.name, stage, variant, sized(config, seed), str(files), num_threads, op_sources, shared
            )

        def keep(record: CellRecord, label: str = label, cells: Sequence[Any] = cells) -> None:
            write_record(folder, record)
            on_record(record)
            num_done = sum(record_path(folder, record.stage, *cell).exists() for cell in cells)
            progress(label, num_done, len(cells))

        _run_tasks(missing, submit, keep, num_at_once=1 if is_alone else _num_slots(config))


def _run_tasks(
    cells: Sequence[tuple[str, int]],
    submit: Callable[[tuple[str, int]], Any],
    keep: Callable[[CellRecord], None],
    *,
    num_at_once: int,
) -> None:
    """Submit the cells in their order, `num_at_once` at most, and keep each record as it comes."""
    waiting = list(cells)
    running: dict[Any, tuple[str, int]] = {}
    failures: list[str] = []
    try:
        while waiting or running:
            while waiting and len(running) < num_at_once:
                cell = waiting.pop(0)
                running[submit(cell)] = cell
            (done,), _ = ray.wait(list(running), num_returns=1)
            variant, seed = running.pop(done)
            try:
                keep(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause if isinstance(error.cause, Exception) else error
                failures.append(f"{variant}, seed {seed}: {type(cause).__name__}: {cause}")
            except ray.exceptions.RayError as error:  # the process died, twice
                failures.append(f"{variant}, seed {seed}: {type(error).__name__}")
    finally:
        for reference in running:  # on the way out after an error or Ctrl-C
            ray.cancel(reference, force=True)
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(cells)} cells failed, the others are kept: {'; '.join(failures)}")


def _num_cpus(num_threads: int, num_gpus: float) -> float:
    """Return the CPUs to ask for: one machine must have them, and a smaller one takes longer, not for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [machine.get("CPU", 0) for machine in machines if machine.get("GPU", 0) >= num_gpus]
    return min(num_threads, max(fitting, default=0) or 1)  # 1: for a machine that may yet come


def _num_slots(config: Config) -> int:
    """Return how many cells of one thread, and of one GPU where they need it, Ray has room for."""
    return max(1, int(ray.cluster_resources().get("GPU" if config.device == "cuda" else "CPU", 1)))


def _cell_task(
    name: str,
    stage: str,
    variant: str,
    config: Config,
    files: str,
    num_threads: int,
    op_sources: dict[str, str],
    inputs: Inputs,
) -> CellRecord:
    """Run one stage of one cell in a Ray worker."""
    started_at, start = time.time(), time.perf_counter()
    prepare_worker(op_sources)
    torch.set_num_threads(num_threads)
    folder = Path(files)
    folder.mkdir(parents=True, exist_ok=True)
    experiment = load_experiment(name)
    function = experiment.run if stage == "run" else experiment.measure
    assert function is not None
    values = function(CellJob(variant=variant, config=config, folder=folder, inputs=inputs, num_threads=num_threads))
    for key, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"`{key}` must be a finite number, got {value!r}")
    return CellRecord(
        stage=stage, variant=variant, seed=config.seed, values=values, started_at=started_at,
        seconds=time.perf_counter() - start, device=_device(config, num_threads),
    )  # fmt: skip


def _device(config: Config, num_threads: int) -> str:
    device = DeviceInfo.current(torch.device(config.device), num_threads=num_threads)
    return f"{device.device_name}, {num_threads} thread{'s' * (num_threads > 1)}, torch {device.torch_version}"
