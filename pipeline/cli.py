"""The command line: parses arguments, runs one of `pipeline.commands`, reports errors. Installed as `denoise-nas`."""

import argparse
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

from latency import keep_freed_memory
from pipeline import commands
from pipeline.config import list_presets
from pipeline.evaluation.command import evaluate_command
from pipeline.evaluation.names import NAMES_HELP
from pipeline.experiments.command import experiment_command
from pipeline.experiments.registry import EXPERIMENTS
from pipeline.watch import watched

_EPILOG = """examples:
  denoise-nas run --config quick
  denoise-nas run --config quick --output runs/mine data.training=~/photos search.target_ms=4
  denoise-nas denoise runs/quick noisy1.png noisy2.png --output cleaned
"""
# What a user can cause; anything else is our own bug and shows its traceback.
_USER_ERRORS = (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError, MemoryError)
# All that oneDNN, C++ and Python's threads say where memory cannot be had.
_NO_MEMORY = "could not create a primitive", "std::bad_alloc", "can't start new thread"


def command_line() -> int:
    """Run the command of this process's arguments, as `main` does, and have a line for whatever signal ends it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with watched():
        return main()


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0, 2 after a user's error, 130 after Ctrl-C or SIGTERM."""
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
        print(f"denoise-nas: error: {_message(error)}", file=sys.stderr)
        return 2
    return 0


def _message(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    hint = "; there may be too little memory" if any(words in str(error) for words in _NO_MEMORY) else ""
    return f"{error}{hint}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="denoise-nas", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find an image denoiser that is good and fast on your device, by neural architecture search.",
    )  # fmt: skip
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_stages(group)
    _add_collections(group)
    _add_experiments(group)
    _add_models(group)
    return parser


def _add_stages(group: Any) -> None:
    """Add what makes one architecture."""
    run = _add(group, "run", commands.run_command)
    latency = group.add_parser("latency", help="Price operators on this device.")
    build = _add(latency.add_subparsers(required=True, metavar="COMMAND"), "build", commands.latency_build_command)
    prior = group.add_parser("prior", help="Train a prior.")
    train = _add(prior.add_subparsers(required=True, metavar="COMMAND"), "train", commands.prior_train_command)
    search = _add(group, "search", commands.search_command)
    derive = _add(group, "derive", commands.derive_command)
    retrain = _add(group, "retrain", commands.retrain_command)
    for command in (run, build, search, derive, retrain):
        _add_settings(command, preset="quick")
        _add_output(command)
    baseline = group.add_parser("baseline", help="Train a network to compare with.")
    train_baseline = _add(baseline.add_subparsers(required=True, metavar="COMMAND"), "train",
                          commands.baseline_train_command)  # fmt: skip
    train_baseline.add_argument("name", metavar="NAME", help="dncnn, mirnet, nafnet or plain_unet")
    train_baseline.add_argument("--size", action="append", default=[], metavar="KEY=VALUE",
                                help="size of the network, such as num_channels=16, instead of the paper's; "
                                "may be repeated")  # fmt: skip
    _add_settings(train_baseline, preset="quick")
    train_baseline.add_argument("--output", help="folder of the training; default: the configuration's with -NAME")
    _add_settings(train, preset="quick")
    train.add_argument(
        "--images",
        required=True,
        action="append",
        metavar="SET",
        help="folder of clean training images; may be repeated",
    )
    train.add_argument("--to", required=True, help="file for the weights (.safetensors)")
    derive.add_argument("--threshold", type=float, default=0.5, help="keep pathways until they sum to more than this")
    derive.add_argument("--to", default="genotype.json", help="file for the genotype; default genotype.json")
    retrain.add_argument("--genotype", help="genotype.json to train instead of the run's own search")


def _add_collections(group: Any) -> None:
    """Add what makes, keeps and studies many architectures."""
    collect = _add(group, "collect", commands.collect_command)
    _add_settings(collect, preset="collect")
    _add_output(collect)
    collect.add_argument("--num", type=int, default=200, help="searched architectures in total; default 200")
    collect.add_argument("--random", type=int, default=0, help="random architectures as the control; default 0")
    collect.add_argument("--sampler", help="Optuna's sampler of the settings: random (default), tpe or nsga2")
    collect.add_argument("--retrain-steps", type=int, help="steps of a short retraining of each; default 0")
    track = _add(group, "track", commands.track_command)
    track.add_argument("collection", help="folder of a collection")
    analyze = _add(group, "analyze", commands.analyze_command)
    analyze.add_argument("collection", help="folder of a collection, or of its Parquet files")
    analyze.add_argument("--output", help="folder for report, figures and tables; default COLLECTION/study")
    analyze.add_argument("--margin-db", type=float, default=0.5,
                         help="keep architectures within this of the best quarter; default 0.5")  # fmt: skip
    analyze.add_argument("--seed", type=int, default=0, help="of the bootstrap; default 0")
    for command in (track, analyze):
        _add_overrides(command, example="tracking.uri=http://host:5000")


def _add_experiments(group: Any) -> None:
    """Add what repeats the paper's tables and figures."""
    experiment = _add(group, "experiment", experiment_command)
    listed = "; ".join(f"{name}: {about}" for name, about in EXPERIMENTS.items())
    experiment.add_argument("name", nargs="?", metavar="NAME", help=listed)
    _add_settings(experiment, preset="quick")
    experiment.add_argument("--output", help="folder of the experiment, default the configuration's with -NAME; "
                            "with --report the page, default experiments.md")  # fmt: skip
    experiment.add_argument("--seeds", type=int, default=3, help="cells per variant; default 3")
    experiment.add_argument("--report", nargs="+", metavar="FOLDER", help="put finished experiments on one page")


def _add_models(group: Any) -> None:
    """Add what uses a finished denoiser."""
    kinds = "folder of a run or baseline, model.safetensors, genotype.json, name of a shipped prior, or a checkpoint"
    evaluate = _add(group, "evaluate", evaluate_command)
    evaluate.add_argument("models", nargs="+", metavar="MODEL",
                          help=f"{kinds}; an ONNX file; noisy (the input itself); bm3d")  # fmt: skip
    evaluate.add_argument("--data", nargs="+", metavar="SET", help="folders of clean images or "
                          "of pairs (kinds: docs/data.md); default: photographs, the validation images")  # fmt: skip
    evaluate.add_argument("--noise", nargs="+", metavar="NAME", help=f"{NAMES_HELP}; "
                          "default: pairs for sets of pairs, awgn:25 for others")  # fmt: skip
    evaluate.add_argument("--sigma-255", type=float, metavar="SIGMA", help="short for --noise awgn:SIGMA")
    evaluate.add_argument("--output", metavar="DIR", help="folder for evaluation.csv, evaluation.md and images.csv; "
                          "finished rows in it are kept; default: the table is only shown")  # fmt: skip
    evaluate.add_argument("--tracking-uri", metavar="URI", help="MLflow server or database for what --output keeps; "
                          "default MLFLOW_TRACKING_URI, or mlflow.db beside DIR")  # fmt: skip
    denoise = _add(group, "denoise", commands.denoise_command)
    denoise.add_argument("model", help=kinds)
    dnd = _add(group, "dnd", commands.dnd_command)
    dnd.add_argument("model", help=kinds)
    dnd.add_argument("folder", help="folder of DND, with info.mat and images_srgb in it")
    dnd.add_argument("--output", required=True, metavar="DIR", help="folder for 0001.mat to 0050.mat")
    export = _add(group, "export", commands.export_command)
    export.add_argument("model", help=kinds)
    export.add_argument("--output", required=True, metavar="FILE", help="file for the model (.onnx)")
    export.add_argument("--size", type=int, default=256, help="height and width of its images; default 256")
    export.set_defaults(device="cpu")
    for command in (evaluate, denoise, dnd, export):
        command.add_argument("--op-file", action="append", default=[], metavar="FILE",
                             help="Python file that registers operators of the network; may be repeated")  # fmt: skip
    for command in (evaluate, denoise, dnd):
        command.add_argument("--device", default="cpu", help="cpu or cuda; default cpu")
        command.add_argument(
            "--tile-size", type=int, help="work in tiles of this size, for images that do not fit in memory"
        )
    for command in (evaluate, denoise):
        command.add_argument(
            "--promote-grey", action="store_true",
            help="let grey images in, repeated over the three channels; what denoise writes is grey again",
        )  # fmt: skip
    denoise.add_argument("images", nargs="+", help="image files")
    denoise.add_argument("--output", required=True, help="folder for the results, PNG with the bits of the input")
    denoise.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _add(group: Any, name: str, command: Callable) -> argparse.ArgumentParser:
    sub = group.add_parser(name, help=command.__doc__, description=command.__doc__)
    sub.set_defaults(command=command)
    sub.add_argument("--verbose", action="store_true", help="log more, and show tracebacks")
    return sub


def _add_settings(sub: argparse.ArgumentParser, *, preset: str) -> None:
    presets = ", ".join(list_presets())
    sub.add_argument("--config", default=preset, help=f"preset ({presets}) or YAML file; default {preset}")
    _add_overrides(sub, example="search.num_epochs=3")


def _add_overrides(sub: argparse.ArgumentParser, *, example: str) -> None:
    sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=f"setting, such as {example}")


def _add_output(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--output", help="folder of the run; default: the configuration's")


if __name__ == "__main__":
    sys.exit(command_line())
