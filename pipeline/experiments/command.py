"""The command `denoise-nas experiment`: carry out one experiment, or put finished ones on a page.

Called by `pipeline.cli`. Imports that take a second or more stand inside the functions.
"""

import argparse
import json
import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from pipeline.config import Config, load_config
from pipeline.experiments.experiment import Experiment
from pipeline.experiments.registry import EXPERIMENTS, load_experiment
from pipeline.report import ProgressReport
from pipeline.settings import EXPERIMENT_SIZES, check

_logger = logging.getLogger(__name__)


def experiment_command(options: argparse.Namespace, console: Console) -> None:
    """Carry out one of the paper's experiments over several seeds; resumes."""
    if options.report:
        _report(options, console)
        return
    from pipeline.cluster import ray_session
    from pipeline.data.datasets import open_dataset
    from pipeline.data.loading import check_datasets, check_disjoint
    from pipeline.evaluation.noise import noises_of
    from pipeline.experiments.cells import claim_experiment, read_records
    from pipeline.experiments.experiment import Inputs
    from pipeline.experiments.experiment_tracking import ExperimentTracking
    from pipeline.experiments.report import write_results
    from pipeline.experiments.runner import run_cells, sized
    from pipeline.run import claimed, open_run
    from pipeline.tracking import how_to_see

    if options.name is None:
        raise ValueError(f"give the name of an experiment ({', '.join(EXPERIMENTS)}), or --report with folders")
    experiment = load_experiment(options.name)
    if options.seeds < 1:
        raise ValueError(f"`--seeds` must be at least 1, got {options.seeds}")
    config = _config(options, experiment)
    cell_config = sized(config, config.seed)  # refuses impossible sizes
    sets = [open_dataset(source, promote_grey=config.data.promote_grey) for source in config.experiment.data]
    if len({dataset.name for dataset in sets}) < len(sets):
        raise ValueError(f"`experiment.data` must name folders of distinct names, got {list(config.experiment.data)}")
    for dataset in sets:
        noises_of(dataset, config.experiment.noise)
    check_datasets(sets)
    for variant in experiment.variants:
        if not variant.is_possible:
            _logger.warning("the package %s is not installed: row %s is left empty; pip install 'denoise-nas[%s]', and "
                            "the same command fills it", variant.package, variant.name, variant.package)  # fmt: skip
    check_disjoint(config.data.training, config.data.exclude, {"experiment.data": config.experiment.data})
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressReport(console))
        opened = open_run(cell_config, searches=experiment.searches, progress=progress)
        run = replace(opened, config=config)  # images fit the cells; the folder belongs to the preset
        stack.enter_context(claimed(run, "experiment"))
        claim_experiment(run.folder, experiment, config)
        tracking = stack.enter_context(ExperimentTracking(run.folder, config.tracking_uri, experiment, config))
        sender = stack.enter_context(tracking.sender())
        for record in read_records(run.folder):
            sender.add(record)
        inputs = Inputs(
            training_images=run.training_images, validation_images=run.validation_images,
            table=run.latency_table() if experiment.needs_prices else None,
        )  # fmt: skip
        stack.enter_context(ray_session(config.ray))
        run_cells(
            experiment, config, inputs, seeds=range(config.seed, config.seed + options.seeds), folder=run.folder,
            progress=progress, on_record=sender.add,
        )  # fmt: skip
        results = write_results(run.folder)
        sender.finish(lambda: tracking.finish(read_records(run.folder), results))
    console.print(results.markdown, soft_wrap=True)
    console.print(f"everything is in {run.folder}; {how_to_see(config.tracking_uri)}", soft_wrap=True)


def _report(options: argparse.Namespace, console: Console) -> None:
    from pipeline.experiments.report import write_page

    if options.name is not None:
        raise ValueError(f"give either the name of an experiment or --report, got {options.name!r} and --report")
    target = Path(options.output or "experiments.md")
    write_page([Path(folder) for folder in options.report], target)
    console.print(f"{len(options.report)} experiments: {target}", soft_wrap=True)


def _config(options: argparse.Namespace, experiment: Experiment) -> Config:
    """Return the preset with the command's settings; an experiment has a folder of its own."""
    config = load_config(options.config, options.overrides)
    given = {override.partition("=")[0] for override in options.overrides}
    for size, setting in EXPERIMENT_SIZES.items():
        if setting in given and getattr(config.experiment, size) is not None:
            raise ValueError(
                f"`{setting}` has no effect in an experiment with preset {config.name}, whose size is "
                f"`experiment.{size}`; set that"
            )
    for name, required in experiment.required_settings.items():
        expected = f"{required!r} in the experiment {experiment.name}, some of whose searches have no such setting"
        check(getattr(config.search, name) == required, f"search.{name}", expected, getattr(config.search, name))
    if options.output or not any(override.startswith("output=") for override in options.overrides):
        folder = options.output or f"{config.output}-{options.name}"
        config = load_config(options.config, [*options.overrides, f"output={json.dumps(folder)}"])
    return config
