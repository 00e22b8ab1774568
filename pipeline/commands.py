"""What the command line can do: one thin function per command, from parsed options to a printed result.

Called by `pipeline.cli`, which shows the docstrings as help. Imports that take a second or more stand inside the
functions, so that `--help` answers at once.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from latency import LatencyTable
from ops.files import read_text
from pipeline.config import Config, load_config
from pipeline.report import ProgressReport, collection_table, price_table, score_table, study_table, summary_table

_logger = logging.getLogger(__name__)


def run_command(options: argparse.Namespace, console: Console) -> None:
    """Price, search, derive, retrain, evaluate and record one architecture."""
    from pipeline import run as stages
    from pipeline.run_tracking import RunTracking
    from pipeline.summary import write_summary
    from pipeline.tracking import how_to_see

    config = _config(options)
    summary_path = Path(config.output) / "summary.json"
    with _opened(config, console, searches=True) as run, ExitStack() as stack:
        if summary_path.exists():
            summary = _read_summary(summary_path)
            console.print(f"{run.folder} holds this run already, finished; its summary:", soft_wrap=True)
            if RunTracking.has_unsent(run.folder):
                stack.enter_context(RunTracking(run)).finish(summary)
        else:
            tracking = stack.enter_context(RunTracking(run))
            summary = stages.replace_log(run, tracking.log).execute()
            summary["mlflow_run_id"] = tracking.run_id
            write_summary(run.folder, summary)
            tracking.finish(summary)
    console.print(summary_table(summary))
    console.print(f"everything is in {run.folder}; {how_to_see(config.tracking_uri)}", soft_wrap=True)


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(read_text(path))
        summary_table(summary)  # has all that is shown and sent
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; remove it, and the same command writes it again") from error
    return summary


def latency_build_command(options: argparse.Namespace, console: Console) -> None:
    """Price every operator of the search space on this device."""
    with _opened(_config(options), console, work=None) as run:
        table = run.latency_table()
    console.print(price_table(table))
    console.print(f"saved in {run.config.latency.table or run.path('latency.parquet')}", soft_wrap=True)


def search_command(options: argparse.Namespace, console: Console) -> None:
    """Search one architecture; leaves genotype.json."""
    from pipeline.cluster import ray_session

    config = _config(options)
    with _opened(config, console, searches=True) as run:
        table = run.latency_table() if config.search.cost == "latency" else None
        with ray_session(config.ray):
            genotype, parts = run.search(table)
    for index, part in enumerate(parts):
        shares = ", ".join(f"{name} {value:.2f}" for name, value in part.entropies.items())
        console.print(f"part {index}: {len(part.part.cells)} cells; entropy (1 is undecided): {shares}")
    console.print(f"genotype {genotype.genotype_id}: {run.path('genotype.json')}", soft_wrap=True)


def derive_command(options: argparse.Namespace, console: Console) -> None:
    """Derive the most likely genotype (argmax) of a finished search again, at another threshold."""
    from pipeline import run as stages

    genotype = stages.derive_again(stages.open_run(_config(options)), threshold=options.threshold)
    target = Path(options.to)
    if target.exists() and target.read_bytes() != genotype.to_json().encode():
        raise ValueError(f"{target} exists already and is not this genotype; give another `--to`")
    genotype.save(target)
    console.print(f"genotype {genotype.genotype_id} at threshold {options.threshold}: {options.to}", soft_wrap=True)


def retrain_command(options: argparse.Namespace, console: Console) -> None:
    """Retrain the searched architecture, or the one of a genotype file."""
    from pipeline.cluster import ray_session
    from search_space import Genotype

    config = _config(options)
    with _opened(config, console) as run:
        parts = None
        if options.genotype:
            genotype = Genotype.load(options.genotype)
        else:
            genotype, parts = run.finished_search()
        with ray_session(config.ray):
            network = run.retrain(genotype, parts)
        results = run.evaluate(network, None)
    console.print(score_table(f"retrained {genotype.genotype_id}", results["images"]))
    console.print(f"weights: {run.path('model.safetensors')}", soft_wrap=True)


def collect_command(options: argparse.Namespace, console: Console) -> None:
    """Search many architectures and keep a record of each; resumes."""
    from pipeline.cluster import ray_session
    from pipeline.collect import DATASET_FOLDER, claim_collection, collect
    from pipeline.collection_tracking import CollectionTracking
    from pipeline.tracking import how_to_see

    for name in ("sampler", "retrain_steps"):
        if getattr(options, name) is not None:
            options.overrides.append(f"collect.{name}={getattr(options, name)}")
    config = _config(options)
    for name in ("num", "random"):
        if getattr(options, name) < 0:
            raise ValueError(f"`--{name}` must be at least 0, got {getattr(options, name)}")
    with _opened(config, console, work="collection", searches=True) as run, ExitStack() as stack:
        claim_collection(run.folder, config)  # before anything is tracked
        tracking = stack.enter_context(CollectionTracking(run.folder, config.tracking_uri, config))
        sender = stack.enter_context(tracking.sender())
        stack.enter_context(ray_session(config.ray))
        records = collect(run, num_searched=options.num, num_random=options.random, on_record=sender.add)
        tracking.mark_finished()
        has_sent = sender.finish(lambda: tracking.end(records))
    console.print(collection_table(records))
    console.print(f"data set: {run.path(DATASET_FOLDER)}", soft_wrap=True)
    if has_sent:
        console.print(how_to_see(config.tracking_uri, tracking.link), soft_wrap=True)


def track_command(options: argparse.Namespace, console: Console) -> None:
    """Send the records of a collection that MLflow lacks."""
    from pipeline.collect import RECORDS_FOLDER
    from pipeline.collection_tracking import CollectionTracking
    from pipeline.records import read_records
    from pipeline.run import locked

    folder = Path(options.collection)
    records = read_records(folder / RECORDS_FOLDER)
    config = _collection_config(folder, options)
    with locked(folder):
        tracking = CollectionTracking(folder, config.tracking_uri, config)
        num_sent = tracking.catch_up(records)
    console.print(f"{num_sent} of {len(records)} records sent to {config.tracking_uri}", soft_wrap=True)


def analyze_command(options: argparse.Namespace, console: Console) -> None:
    """Study what the architectures of a collection prefer."""
    from pipeline.collect import DATASET_FOLDER, RECORDS_FOLDER
    from pipeline.collection_tracking import track_study
    from pipeline.records import read_records, write_dataset
    from pipeline.study import analyze
    from pipeline.tracking import RUN_ID_FILE, TRACKING_ERRORS

    folder = dataset = Path(options.collection)
    if (folder / RECORDS_FOLDER).is_dir():  # a collection, perhaps an unfinished one
        dataset = folder / DATASET_FOLDER
        write_dataset(dataset, read_records(folder / RECORDS_FOLDER))
    output = Path(options.output) if options.output else folder / "study"
    prices = folder / "latency.parquet"
    device = LatencyTable.load(prices, expected=None).device_info if prices.exists() else None
    study = analyze(
        dataset, output, margin_db=options.margin_db, seed=options.seed,
        device_name=None if device is None else f"{device.device_name}, {device.num_threads} threads",
    )  # fmt: skip
    console.print(study_table(study.summary))
    for answer in study.answers:
        console.print(f"guideline {answer.number}, {answer.verdict}: {answer.guideline}", soft_wrap=True)
        for claim in answer.explanation:
            console.print(f"  {claim}", soft_wrap=True)
    console.print(f"report: {output / 'report.html'}", soft_wrap=True)
    if (folder / RUN_ID_FILE).exists() and (folder / "config.yaml").exists():
        config = _collection_config(folder, options)
        try:
            track_study(folder, config.tracking_uri, config, study.files)
        except TRACKING_ERRORS as error:  # the report is there
            _logger.warning("the report is not in MLflow: %s", error)


def _collection_config(folder: Path, options: argparse.Namespace) -> Config:
    """Return the settings that a collection was made with, and those of this command.

    A folder may come from anybody: where to record is not taken from it.
    """
    source = str(folder / "config.yaml")
    overrides = ["tracking.uri=null", *options.overrides, f"output={json.dumps(str(folder))}"]
    config, recorded = load_config(source, overrides), load_config(source).tracking.uri
    if recorded not in (None, config.tracking_uri):
        _logger.warning("%s names the tracking server or database %r, which is not followed; this command uses %s. "
                        "Give tracking.uri=.. to use another", source, recorded, config.tracking_uri)  # fmt: skip
    return config


def denoise_command(options: argparse.Namespace, console: Console) -> None:
    """Denoise image files of any size with a found network or a prior."""
    from pipeline.data.images import decode_image, to_image, to_tensor, write_image
    from pipeline.data.loading import check_images
    from pipeline.denoise import default_overlap, denoise_image

    output = Path(options.output)
    targets = [output / (Path(name).stem + ".png") for name in options.images]
    taken = [str(path) for path in targets if path.exists()]
    if taken and not options.overwrite:
        raise ValueError(f"{', '.join(taken)} exist already; give --overwrite or another --output")
    if len(set(targets)) != len(targets):
        raise ValueError("two images have the same name; denoise them into different folders")
    model = _load_denoiser(options)
    check_images(options.images, allow_grey=options.promote_grey)
    output.mkdir(parents=True, exist_ok=True)
    with ProgressReport(console) as progress:
        for index, (name, path) in enumerate(zip(options.images, targets, strict=True), start=1):
            image = decode_image(name, allow_grey=options.promote_grey)  # again: all at once may not fit in memory
            denoised = denoise_image(
                model, to_tensor(image), tile_size=options.tile_size,
                tile_overlap=default_overlap(options.tile_size), device=options.device,
            )  # fmt: skip
            if not denoised.isfinite().all():
                raise ValueError(f"the denoiser's output for image {name} is not finite")
            write_image(path, to_image(denoised, like=image))
            progress("denoise", index, len(targets))
    console.print(f"{len(targets)} images in {output}", soft_wrap=True)


def prior_train_command(options: argparse.Namespace, console: Console) -> None:
    """Train a small MIRNet or NAFNet on a folder of clean images; the same command resumes it."""
    import torch

    from pipeline.data.loading import load_images
    from pipeline.device import check_device
    from pipeline.prior_training import new_prior, train_prior
    from pipeline.priors import save_prior

    config = _config(options)
    check_device(config.device, name="device")
    numbers = config.prior_train
    target = Path(options.to)
    if target.suffix != ".safetensors":
        raise ValueError(f"`--to` must name a .safetensors file, got {target}")
    torch.manual_seed(numbers.seed)
    prior = new_prior(numbers)
    with ProgressReport(console) as progress:
        images = load_images(
            options.images, minimum_size=numbers.patch_size, exclude=config.data.exclude,
            promote_grey=config.data.promote_grey, cache=config.data.cache, progress=progress,
        )  # fmt: skip
        train_prior(
            prior, images, numbers, checkpoint_path=target.with_suffix(".checkpoint"),
            device=torch.device(config.device),
            progress=lambda step, loss, seconds: progress("train prior", step, numbers.num_steps),
        )  # fmt: skip
    save_prior(prior, target)
    console.print(f"prior: {target}; the training's checkpoint beside it can be removed", soft_wrap=True)


def baseline_train_command(options: argparse.Namespace, console: Console) -> None:
    """Train a baseline with the data, steps and optimiser of a searched network; the same command resumes it."""
    from pipeline.baseline_training import parse_sizes, train_baseline, trainable_baselines
    from pipeline.device import check_device
    from pipeline.evaluate import evaluate_denoiser, mean_score
    from pipeline.models import load_denoiser
    from pipeline.run_tracking import RunTracking

    if options.name not in trainable_baselines():
        raise ValueError(f"`NAME` must be one of {', '.join(trainable_baselines())}, got {options.name!r}")
    sizes = parse_sizes(options.size)
    config = _config(options)
    check_device(config.device, name="device")  # a baseline is trained here, also with a cluster
    if not options.output and not any(text.startswith("output=") for text in options.overrides):
        config = config.with_settings({"output": f"{config.output}-{options.name}"})
    with (
        _opened(config, console, work="baseline") as run,
        RunTracking(run, kind="baseline", params={"baseline": options.name, "sizes": sizes}) as tracking,
    ):
        weights = train_baseline(run, options.name, sizes, log=tracking.log)
        scores = evaluate_denoiser(
            load_denoiser(weights).to(config.device), run.validation_images, sigma=config.noise.validation_sigma,
            device=config.device, tile_size=config.evaluate.tile_size,
        )  # fmt: skip
        mean = mean_score(scores)
        tracking.log({"psnr_db": mean.psnr_db, "ssim": mean.ssim}, config.retrain.num_epochs)
        tracking.finish()
    console.print(score_table(f"baseline {options.name}", [score.to_dict() for score in [*scores, mean]]))
    console.print(f"weights: {weights}", soft_wrap=True)


def export_command(options: argparse.Namespace, console: Console) -> None:
    """Export a found network, a baseline or a prior as an ONNX file of one image size."""
    from pipeline.onnx_export import export_onnx

    if Path(options.output).suffix != ".onnx":
        raise ValueError(f"`--output` must name an .onnx file, got {options.output}")
    error = export_onnx(_load_denoiser(options), options.output, size=options.size)
    console.print(
        f"{options.output}: input noisy, output denoised, 1x3x{options.size}x{options.size} float32; "
        f"ONNX Runtime differs from torch by {error:.1e} at most", soft_wrap=True,
    )  # fmt: skip


def dnd_command(options: argparse.Namespace, console: Console) -> None:
    """Denoise the Darmstadt set and write the files that its benchmark's server takes; resumes."""
    from pipeline.cluster import load_op_files, read_op_files
    from pipeline.data.dnd import write_submission
    from pipeline.device import check_device
    from pipeline.evaluation.models import open_model

    check_device(options.device)
    load_op_files(read_op_files(tuple(options.op_file)))
    model = open_model(options.model, device=options.device, tile_size=options.tile_size)
    tiles = "" if model.tile_size is None else f"-tile{model.tile_size}"
    with ProgressReport(console) as progress:
        paths = write_submission(
            options.folder, options.output, model.for_noise(None),
            fingerprint=f"{model.fingerprint or model.name}{tiles}",
            progress=lambda done, total: progress("denoise DND", done, total),
        )  # fmt: skip
    console.print(f"{len(paths)} files in {options.output}", soft_wrap=True)


def _load_denoiser(options: argparse.Namespace) -> Any:
    from pipeline.cluster import load_op_files, read_op_files
    from pipeline.device import check_device
    from pipeline.models import load_denoiser

    check_device(options.device)
    load_op_files(read_op_files(tuple(options.op_file)))
    return load_denoiser(options.model).to(options.device)


@contextmanager
def _opened(config: Config, console: Console, *, work: str | None = "run", searches: bool = False) -> Iterator[Any]:
    """Show progress, open the run and keep its folder from other commands."""
    from pipeline.run import claimed, open_run

    with ProgressReport(console) as progress:
        run = open_run(config, searches=searches, progress=progress)
        with claimed(run, work):
            yield run


def _config(options: argparse.Namespace) -> Config:
    overrides = list(options.overrides)
    if getattr(options, "output", None):
        overrides.append(f"output={json.dumps(options.output)}")
    return load_config(options.config, overrides)
