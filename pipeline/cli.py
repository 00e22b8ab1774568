"""The command line: one thin function per command. Installed as `denoise-nas`."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from latency import LatencyTable, keep_freed_memory
from pipeline.config import Config, list_presets, load_config
from pipeline.report import ProgressReport, collection_table, price_table, score_table, study_table, summary_table

_EPILOG = """examples:
  denoise-nas run --config quick
  denoise-nas run --config quick --output runs/mine data.training=~/photos search.target_ms=4
  denoise-nas denoise runs/quick noisy1.png noisy2.png --output cleaned
"""
# What a user can cause; anything else is our own bug and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 after a user's error, 130 after Ctrl-C."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") for text in rest) or not hasattr(options, "overrides"):
        options = parser.parse_args(arguments)  # reports what is wrong
    else:
        options.overrides += rest  # argparse takes the settings before or after the options, not both
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(name)s: %(message)s")
    if not options.verbose:
        logging.getLogger("alembic").setLevel(logging.ERROR)
    keep_freed_memory()
    console = Console(markup=False)  # paths may hold brackets
    try:
        options.command(options, console)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except _USER_ERRORS as error:
        if options.verbose:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"denoise-nas: error: {message}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages
    from pipeline.cluster import ray_session
    from pipeline.summary import record_run, write_summary

    config = _config(options)
    summary_path = Path(config.output) / "summary.json"
    with ExitStack() as stack:
        progress = stack.enter_context(ProgressReport(console))
        run = stages.open_run(config, progress=progress)
        stack.enter_context(stages.locked(run.folder))
        if summary_path.exists():
            console.print(f"{run.folder} holds this run already, finished; its summary:", soft_wrap=True)
            summary = json.loads(summary_path.read_text())
        else:
            tracker = stack.enter_context(_tracker(config, run.folder))
            tracker.log_params(_params(config))
            stack.enter_context(ray_session(config.ray))
            summary = stages.replace_log(run, tracker.log_metrics).execute()
            summary["mlflow_run_id"] = tracker.run_id
            record_run(run, tracker, summary)
            write_summary(run.folder, summary)
    console.print(summary_table(summary))
    console.print(f"everything is in {run.folder}; see it with: mlflow ui --backend-store-uri {_tracking_uri(config)}",
                  soft_wrap=True)  # fmt: skip


def _latency_build(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages

    with ProgressReport(console) as progress:
        run = stages.open_run(_config(options), progress=progress)
        with stages.locked(run.folder):
            table = run.latency_table()
    console.print(price_table(table))
    console.print(f"saved in {run.config.latency.table or run.path('latency.parquet')}", soft_wrap=True)


def _search(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages
    from pipeline.cluster import ray_session

    config = _config(options)
    with ExitStack() as stack:
        run = stages.open_run(config, progress=stack.enter_context(ProgressReport(console)))
        stack.enter_context(stages.locked(run.folder))
        table = run.latency_table() if config.search.cost == "latency" else None
        stack.enter_context(ray_session(config.ray))
        genotype, parts = run.search(table)
    for index, part in enumerate(parts):
        shares = ", ".join(f"{name} {value:.2f}" for name, value in part.entropies.items())
        console.print(f"part {index}: {len(part.part.cells)} cells; entropy (1 is undecided): {shares}")
    console.print(f"genotype {genotype.genotype_id}: {run.path('genotype.json')}", soft_wrap=True)


def _derive(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages

    genotype = stages.derive_again(stages.open_run(_config(options)), threshold=options.threshold)
    genotype.save(options.to)
    console.print(f"genotype {genotype.genotype_id} at threshold {options.threshold}: {options.to}", soft_wrap=True)


def _retrain(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages
    from pipeline.cluster import ray_session
    from search_space import Genotype

    config = _config(options)
    with ExitStack() as stack:
        run = stages.open_run(config, progress=stack.enter_context(ProgressReport(console)))
        stack.enter_context(stages.locked(run.folder))
        parts = None
        if options.genotype:
            genotype = Genotype.load(options.genotype)
        else:
            genotype, parts = run.finished_search()
        stack.enter_context(ray_session(config.ray))
        network = run.retrain(genotype, parts)
        results = run.evaluate(network, None)
    console.print(score_table(f"retrained {genotype.genotype_id}", results["images"]))
    console.print(f"weights: {run.path('model.safetensors')}", soft_wrap=True)


def _collect(options: argparse.Namespace, console: Console) -> None:
    from pipeline import run as stages
    from pipeline.cluster import ray_session
    from pipeline.collect import DATASET_FOLDER, collect, open_collection
    from pipeline.collection_tracking import BackgroundSender, CollectionTracking

    config = _config(options)
    if options.sampler:
        config = config.with_settings({"collect.sampler": options.sampler})
    if options.retrain_steps is not None:
        config = config.with_settings({"collect.retrain_steps": options.retrain_steps})
    for name in ("num", "random"):
        if getattr(options, name) < 0:
            raise ValueError(f"`--{name}` must be at least 0, got {getattr(options, name)}")
    with ExitStack() as stack:
        run = stages.open_run(config, progress=stack.enter_context(ProgressReport(console)))
        stack.enter_context(stages.locked(run.folder))
        open_collection(run.folder, config)  # before anything is tracked
        tracking = CollectionTracking(run.folder, _tracking_uri(config), config)
        sender = stack.enter_context(BackgroundSender(tracking))
        stack.enter_context(ray_session(config.ray))
        records = collect(run, num_searched=options.num, num_random=options.random, on_record=sender.add)
        sender.finish(records)
    console.print(collection_table(records))
    console.print(
        f"data set: {run.path(DATASET_FOLDER)}\nmlflow ui --backend-store-uri {_tracking_uri(config)}\n"
        f"then http://127.0.0.1:5000{tracking.link}", soft_wrap=True,
    )  # fmt: skip


def _track(options: argparse.Namespace, console: Console) -> None:
    from pipeline.collect import RECORDS_FOLDER
    from pipeline.collection_tracking import CollectionTracking
    from pipeline.records import read_records
    from pipeline.run import locked

    folder = Path(options.collection)
    records = _recorded(folder, read_records, RECORDS_FOLDER)
    config = load_config(str(folder / "config.yaml"), list(options.overrides) + [f"output={json.dumps(str(folder))}"])
    with locked(folder):
        tracking = CollectionTracking(folder, _tracking_uri(config), config)
        num_sent = tracking.send(records)
        tracking.end(records)
    console.print(f"{num_sent} of {len(records)} records sent to {_tracking_uri(config)}", soft_wrap=True)


def _analyze(options: argparse.Namespace, console: Console) -> None:
    from pipeline.collect import DATASET_FOLDER
    from pipeline.collection_tracking import track_study
    from pipeline.study import analyze

    folder = Path(options.collection)
    dataset = folder / DATASET_FOLDER if (folder / DATASET_FOLDER).is_dir() else folder
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
    if (folder / "mlflow_run_id").exists() and (folder / "config.yaml").exists():
        config = load_config(str(folder / "config.yaml"), list(options.overrides))
        config = config.with_settings({"output": str(folder)})
        track_study(folder, _tracking_uri(config), config, study.files)
    console.print(f"report: {output / 'report.html'}", soft_wrap=True)


def _recorded(folder: Path, read_records: Callable[[Path], list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
    if not (folder / name).is_dir():
        raise FileNotFoundError(f"{folder} holds no collection: there is no folder {name!r} in it")
    return read_records(folder / name)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    from pipeline.data.images import VALIDATION_PHOTOGRAPHS, load_folder, photographs
    from pipeline.evaluate import evaluate_denoiser, mean_score

    if not 0 <= options.sigma_255 <= 255:
        raise ValueError(f"`--sigma-255` must lie in [0, 255], got {options.sigma_255}")
    images = load_folder(options.data) if options.data else photographs(VALIDATION_PHOTOGRAPHS)
    model = _load_denoiser(options)
    scores = evaluate_denoiser(
        model, images, sigma=options.sigma_255 / 255, device=options.device, tile_size=options.tile_size
    )
    rows = [score.to_dict() for score in [*scores, mean_score(scores)]]
    console.print(score_table(f"{options.model} at sigma {options.sigma_255:g}", rows))


def _denoise(options: argparse.Namespace, console: Console) -> None:
    from pipeline.data.images import read_image, to_image, to_tensor, write_image
    from pipeline.denoise import denoise_image

    output = Path(options.output)
    targets = [output / (Path(name).stem + ".png") for name in options.images]
    taken = [str(path) for path in targets if path.exists()]
    if taken and not options.overwrite:
        raise ValueError(f"{', '.join(taken)} exist already; give --overwrite or another --output")
    if len(set(targets)) != len(targets):
        raise ValueError("two images have the same name; denoise them into different folders")
    images = [read_image(name) for name in options.images]
    model = _load_denoiser(options)
    output.mkdir(parents=True, exist_ok=True)
    with ProgressReport(console) as progress:
        for index, (image, path) in enumerate(zip(images, targets, strict=True), start=1):
            denoised = denoise_image(model, to_tensor(image), tile_size=options.tile_size, device=options.device)
            write_image(path, to_image(denoised))
            progress("denoise", index, len(targets))
    console.print(f"{len(targets)} images in {output}", soft_wrap=True)


def _prior_train(options: argparse.Namespace, console: Console) -> None:
    import torch

    from pipeline.data.images import load_folder
    from pipeline.prior_training import train_prior
    from pipeline.priors import MIRNet, save_prior

    config = _config(options)
    numbers = config.prior_train
    images = load_folder(options.images, minimum_size=numbers.patch_size)
    for name in config.data.exclude:
        if images.pop(name, None) is None:
            raise ValueError(f"`data.exclude` names {name!r}, which is not in {options.images}")
    target = Path(options.to)
    if target.suffix != ".safetensors":
        raise ValueError(f"`--to` must name a .safetensors file, got {target}")
    torch.manual_seed(numbers.seed)
    prior = MIRNet(num_channels=numbers.num_channels, num_blocks=numbers.num_blocks)
    with ProgressReport(console) as progress:
        train_prior(
            prior, list(images.values()), numbers, checkpoint_path=target.with_suffix(".checkpoint"),
            device=torch.device(config.device),
            progress=lambda step, loss, seconds: progress("train prior", step, numbers.num_steps),
        )  # fmt: skip
    save_prior(prior, target)
    console.print(f"prior: {target}; the training's checkpoint beside it can be removed", soft_wrap=True)


def _load_denoiser(options: argparse.Namespace) -> Any:
    from pipeline.cluster import load_op_files, read_op_files
    from pipeline.models import load_denoiser

    load_op_files(read_op_files(tuple(options.op_file)))
    return load_denoiser(options.model).to(options.device)


def _config(options: argparse.Namespace) -> Config:
    overrides = list(options.overrides)
    if getattr(options, "output", None):
        overrides.append(f"output={json.dumps(options.output)}")
    return load_config(options.config, overrides)


def _params(config: Config) -> dict[str, Any]:
    settings = config.to_dict()
    for key in ("ray", "tracking", "prior_train", "output", "name"):
        del settings[key]
    return settings | {"config_hash": config.config_hash}


def _tracking_uri(config: Config) -> str:
    if config.tracking.uri:
        return config.tracking.uri
    return f"sqlite:///{(Path(config.output).absolute().parent / 'mlflow.db')}"


def _tracker(config: Config, folder: Path) -> Any:
    from pipeline.tracking import Tracker

    remembered = folder / "mlflow_run_id"
    tracker = Tracker.open(
        _tracking_uri(config), config.tracking.experiment, f"{config.name} seed {config.seed}", kind="architecture",
        tags={"preset": config.name, "config_hash": config.config_hash},
        run_id=remembered.read_text().strip() if remembered.exists() else None,
    )  # fmt: skip
    remembered.write_text(tracker.run_id + "\n")
    return tracker


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="denoise-nas", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find an image denoiser that is good and fast on your device, by neural architecture search.",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    presets = ", ".join(list_presets())

    def add(
        group: Any, name: str, command: Callable, text: str, *, configured: bool = True, preset: str = "quick"
    ) -> argparse.ArgumentParser:
        sub = group.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
        if configured:
            sub.add_argument("--config", default=preset, help=f"preset ({presets}) or YAML file; default {preset}")
            sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="setting, such as search.num_epochs=3")
        return sub

    def add_output(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--output", help="folder of the run; default: the configuration's")

    add_output(add(commands, "run", _run, "Price, search, derive, retrain, evaluate and record one architecture."))
    latency = commands.add_parser("latency", help="Price operators on this device.")
    build = latency.add_subparsers(required=True, metavar="COMMAND")
    add_output(add(build, "build", _latency_build, "Price every operator of the search space on this device."))
    prior = commands.add_parser("prior", help="Train a prior.")
    train = add(prior.add_subparsers(required=True, metavar="COMMAND"), "train", _prior_train,
                "Train a small MIRNet on a folder of clean images; the same command resumes it.")  # fmt: skip
    train.add_argument("--images", required=True, help="folder of clean training images")
    train.add_argument("--to", required=True, help="file for the weights (.safetensors)")
    add_output(add(commands, "search", _search, "Search one architecture; leaves genotype.json."))
    derive = add(commands, "derive", _derive, "Derive a genotype again from a finished search, at another threshold.")
    add_output(derive)
    derive.add_argument("--threshold", type=float, default=0.5, help="keep pathways until they sum to more than this")
    derive.add_argument("--to", default="genotype.json", help="file for the genotype; default genotype.json")
    retrain = add(commands, "retrain", _retrain, "Retrain the searched architecture, or the one of a genotype file.")
    add_output(retrain)
    retrain.add_argument("--genotype", help="genotype.json to train instead of the run's own search")
    collect = add(commands, "collect", _collect, "Search many architectures and keep a record of each; resumes.",
                  preset="collect")  # fmt: skip
    add_output(collect)
    collect.add_argument("--num", type=int, default=200, help="searched architectures in total; default 200")
    collect.add_argument("--random", type=int, default=0, help="random architectures as the control; default 0")
    collect.add_argument("--sampler", help="Optuna's sampler of the settings: random (default), tpe or nsga2")
    collect.add_argument("--retrain-steps", type=int, help="steps of a short retraining of each; default 0")
    track = add(commands, "track", _track, "Send the records of a collection that MLflow lacks.", configured=False)
    track.add_argument("collection", help="folder of a collection")
    track.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="setting, such as tracking.uri=http://host:5000"
    )
    analyze = add(commands, "analyze", _analyze, "Study what the architectures of a collection prefer.",
                  configured=False)  # fmt: skip
    analyze.add_argument("collection", help="folder of a collection, or of its Parquet files")
    analyze.add_argument("--output", help="folder for report, figures and tables; default COLLECTION/study")
    analyze.add_argument("--margin-db", type=float, default=0.5,
                         help="keep architectures within this of the best quarter; default 0.5")  # fmt: skip
    analyze.add_argument("--seed", type=int, default=0, help="of the bootstrap; default 0")
    analyze.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="setting, such as tracking.uri=http://host:5000"
    )
    for name, command, text in (
        ("evaluate", _evaluate, "Score a found network or a prior on images with added noise."),
        ("denoise", _denoise, "Denoise image files of any size with a found network or a prior."),
    ):
        sub = add(commands, name, command, text, configured=False)
        sub.add_argument("model", help="folder of a run, model.safetensors, name of a shipped prior, or a checkpoint")
        sub.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
        sub.add_argument("--op-file", action="append", default=[], metavar="FILE",
                         help="Python file that registers operators of the network; may be repeated")  # fmt: skip
        sub.add_argument(
            "--tile-size", type=int, help="work in tiles of this size, for images that do not fit in memory"
        )
        if name == "evaluate":
            sub.add_argument("--data", help="folder of clean images; default: the validation photographs")
            sub.add_argument("--sigma-255", type=float, default=25.0, help="noise in grey levels; default 25")
        else:
            sub.add_argument("images", nargs="+", help="image files")
            sub.add_argument("--output", required=True, help="folder for the results, written as PNG")
            sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


if __name__ == "__main__":
    sys.exit(main())
