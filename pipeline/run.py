"""One architecture from photographs to a retrained denoiser: the stages of a run, in order.

Called by the command line. Every stage leaves its result in the run's folder, so an interrupted run goes on where it
was when the same command is given again.
"""

import fcntl
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latency import DeviceInfo, LatencyTable, TimingRule, build_table, measure_network_ms
from ops.files import read_text, remove_partial_files, write_atomically, written_beside
from pipeline.checkpoint import load_checkpoint, load_metadata, restoring, save_checkpoint, save_weights
from pipeline.cluster import cluster_address, load_op_files, ray_session, read_op_files
from pipeline.config import Config, load_config
from pipeline.data.images import TRAINING_PHOTOGRAPHS, VALIDATION_PHOTOGRAPHS
from pipeline.data.loading import UnusableImagesError, check_disjoint, load_images
from pipeline.device import check_device
from pipeline.evaluate import ImageScore, evaluate_denoiser, mean_score
from pipeline.part_search import PartSearchResult
from pipeline.pictures import ComparisonRow, comparison_figure
from pipeline.priors import NUM_PARTS, Prior, load_prior
from pipeline.search_inputs import (
    SearchInputs,
    cost_models,
    features_megabytes,
    predicted_ms,
    prepare_inputs,
    search_key,
    space_of,
    split_training_images,
)
from search_space import (
    DenoisingNetwork,
    Genotype,
    SearchSpace,
    build_network,
    derive_probabilities,
    network_macs,
    num_parameters,
    space_op_specs,
)

Progress = Callable[[str, int, int], None]
MetricLog = Callable[[dict[str, float], int], None]
WORK_FILE = "work"  # what a run's folder is for: `run`, `baseline`, `collection` or `experiment`
# What tells it where an earlier version made the folder.
_MARKS = {"run": "summary.json"} | {work: f"{work}.json" for work in ("baseline", "collection", "experiment")}
_MAX_PICTURES = 16  # in a comparison: the 1280 blocks of SIDD would make a picture of 450 MB


def _no_progress(label: str, done: int, total: int) -> None:
    pass


def _no_log(metrics: dict[str, float], step: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Run:
    """Configuration, folder and inputs of one run; every method is a stage that reads and leaves files.

    Attributes:
        config: settings.
        folder: everything the run leaves.
        space: the search space.
        prior: the pretrained denoiser.
        training_images: clean images by name.
        validation_images: clean images by name, disjoint from training.
        progress: called with (stage, done, total).
        log: called with (metrics, step).
    """

    config: Config
    folder: Path
    space: SearchSpace
    prior: Prior
    training_images: dict[str, np.ndarray]
    validation_images: dict[str, np.ndarray]
    progress: Progress = _no_progress
    log: MetricLog = _no_log

    def path(self, name: str) -> Path:
        """Return the path of a file of the run."""
        return self.folder / name

    def latency_table(self) -> LatencyTable:
        """Price every operator of the space on this device, or load the table that did.

        Where `latency.device_name` names another device, its table is loaded, whichever machine this is.

        Raises:
            FileNotFoundError: there is no table of the named device.
            ValueError: the table on disk belongs to another device or library version.
        """
        config = self.config.latency
        path = Path(config.table) if config.table else self.path("latency.parquet")
        device = torch.device(config.device)
        expected = DeviceInfo.current(device, num_threads=config.num_threads)
        specs = space_op_specs(self.space, height=config.image_size, width=config.image_size)
        if config.device_name is not None:
            named = LatencyTable.load(path, expected=None)
            if named.device_info.device_name != config.device_name:
                raise ValueError(
                    f"{path} is of {named.device_info.device_name!r}, `latency.device_name` is {config.device_name!r}"
                )
            named.require(specs)
            return named
        table = LatencyTable.load(path, expected=expected) if path.exists() else None
        if table is None or not table.covers(specs):
            table = build_table(
                specs,
                device=device,
                num_threads=config.num_threads,
                rule=TimingRule(
                    warmup_runs=config.warmup_runs,
                    min_repeats=config.min_repeats,
                    max_repeats=config.max_repeats,
                    max_seconds=config.max_seconds,
                ),
                table=table,
                save_path=path,
                progress=lambda done, total, name: self.progress("price operators", done, total),
            )
        table.require(specs)
        return table

    def search_inputs(self) -> SearchInputs:
        """Return what part searches share, with the prior's features where they are cached.

        Raises:
            ValueError: they would not fit into the object store of a local Ray.
        """
        megabytes, room = features_megabytes(self.config, self.space.num_channels), self.config.ray.object_store_mb
        is_cached, is_local = self.config.search.prior_features == "cached", cluster_address(self.config.ray) is None
        if is_cached and is_local and megabytes > 0.8 * room:
            raise ValueError(
                f"cached prior features need about {megabytes:.0f} MB, `ray.object_store_mb` is {room}; raise it, or "
                "set `search.prior_features` to live"
            )
        return prepare_inputs(
            self.config,
            self.prior,
            self.training_images,
            progress=lambda done, total: self.progress(f"prior features, {megabytes:.0f} MB", done, total),
        )

    def search(self, table: LatencyTable | None) -> tuple[Genotype, tuple[PartSearchResult, ...]]:
        """Search the three parts concurrently; needs an initialised Ray. A finished search is read from disk.

        Raises:
            ValueError: the folder holds a search of other settings, or a retrained network of no search.
        """
        from pipeline.search import search  # Ray takes a second to import

        key = search_key(self.config)
        if self.path("search.pt").exists():
            return self._load_search(key)
        if self.path("model.safetensors").exists():
            raise ValueError(f"{self.folder} holds a network that was retrained without a search; choose another "
                             "`output`")  # fmt: skip
        costs = cost_models(self.config, self.space, None if table is None else table.__getitem__)
        inputs = self.search_inputs()
        epochs_done = [0] * NUM_PARTS

        def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
            epochs_done[part_index] = epoch
            self.log({f"part{part_index}/{name}": value for name, value in metrics.items()}, epoch)
            self.progress("search three parts", sum(epochs_done), NUM_PARTS * self.config.search.num_epochs)

        result = search(self.config, self.space, costs, inputs, checkpoint_folder=self.path("checkpoints"), log=log)
        result.genotype.save(self.path("genotype.json"))
        save_checkpoint(
            self.path("search.pt"),
            {
                "key": key,
                "genotype": result.genotype.to_json(),
                "parts": [
                    {
                        "weights": p.weights,
                        "probabilities": p.probabilities,
                        "entropies": p.entropies,
                        "num_bad_steps": p.num_bad_steps,
                    }
                    for p in result.parts
                ],
            },
        )
        return result.genotype, result.parts

    def finished_search(self) -> tuple[Genotype, tuple[PartSearchResult, ...]]:
        """Return the search that the folder holds.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self.path("search.pt").exists():
            raise FileNotFoundError(f"{self.folder} holds no finished search; run `denoise-nas search` first")
        return self._load_search(search_key(self.config))

    def _load_search(self, key: str) -> tuple[Genotype, tuple[PartSearchResult, ...]]:
        state = load_checkpoint(self.path("search.pt"))
        if state.get("key") != key:
            raise ValueError(f"{self.path('search.pt')} was made with other settings; choose another `output`")
        with restoring(self.path("search.pt")):
            genotype = Genotype.from_dict(json.loads(state["genotype"]))
            parts = tuple(
                PartSearchResult(part=part, **entry) for part, entry in zip(genotype.parts, state["parts"], strict=True)
            )
        return genotype, parts

    def retrain(self, genotype: Genotype, parts: tuple[PartSearchResult, ...] | None) -> DenoisingNetwork:
        """Train the network of `genotype` with Ray Train; needs an initialised Ray.

        Raises:
            ValueError: `retrain.start` is inherited and there are no searched weights, or the folder holds the weights
                of another genotype.
        """
        from pipeline.retrain import retrain  # Ray Train takes seconds to import

        path = self.path("model.safetensors")
        if path.exists() and (held := load_metadata(path).get("genotype_id")) != genotype.genotype_id:
            raise ValueError(
                f"{self.folder} holds the retrained genotype {held}, this is {genotype.genotype_id}; choose another "
                "`output`"
            )
        inherited = None
        if self.config.retrain.start == "inherited":
            if parts is None:
                raise ValueError(
                    "`retrain.start` is inherited, but there is no search to inherit weights from; "
                    "set retrain.start=scratch"
                )
            inherited = [part.weights for part in parts]

        def log(epoch: int, metrics: dict[str, float]) -> None:
            self.log({f"retrain/{name}": value for name, value in metrics.items()}, epoch)
            self.progress("retrain", epoch, self.config.retrain.num_epochs)

        weights = retrain(
            self.config,
            genotype,
            list(self.training_images.values()),
            inherited=inherited,
            folder=self.path("train"),
            log=log,
        )
        genotype.save(self.path("genotype.json"))
        save_weights(path, weights, metadata={"genotype_id": genotype.genotype_id})
        network = build_network(genotype)
        network.load_state_dict(weights)
        return network

    def evaluate(self, network: DenoisingNetwork, table: LatencyTable | None) -> dict[str, Any]:
        """Score network and prior on the validation images; draw a comparison of some.

        Returns:
            `psnr_db` and `ssim` of noisy input, prior and network, `num_parameters`, `macs`, latencies in ms, and the
            scores of every image.
        """
        config = self.config
        device = _own_device(config)
        network = network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

        def scores_of(model: torch.nn.Module) -> list[ImageScore]:
            return evaluate_denoiser(
                model, self.validation_images, sigma=config.noise.validation_sigma, device=device,
                tile_size=config.evaluate.tile_size, keep_images=True,
            )  # fmt: skip

        own, prior = scores_of(network), scores_of(self.prior.to(device))
        step = math.ceil(len(own) / _MAX_PICTURES)
        rows = [
            ComparisonRow(
                name=score.name, noisy=_image(score.noisy), denoised=_image(score.denoised),
                clean=np.ascontiguousarray(self.validation_images[score.name][..., :3]),
                prior=_image(reference.denoised),
            )
            for score, reference in zip(own[::step], prior[::step], strict=True)
        ]  # fmt: skip
        is_real = config.noise.model == "pairs"
        sigma = "real noise" if is_real else f"sigma {config.noise.validation_level_255:g}"
        with written_beside(self.path("comparison.png")) as beside:
            comparison_figure(rows, beside, title=f"{network.genotype.genotype_id}, {sigma}")
        mean, prior_mean = mean_score(own), mean_score(prior)
        size, priced_size = config.evaluate.image_size, config.latency.image_size
        return {
            "psnr_db": {"noisy": mean.noisy_psnr_db, "prior": prior_mean.psnr_db, "denoised": mean.psnr_db},
            "ssim": {"noisy": mean.noisy_ssim, "prior": prior_mean.ssim, "denoised": mean.ssim},
            "num_parameters": num_parameters(network),
            "macs": network_macs(network, height=size, width=size),
            "macs_image_size": size,
            "predicted_latency_ms": None if table is None else predicted_ms(table, network.genotype, priced_size),
            "predicted_device": None if table is None else table.device_info.device_name,
            "measured_latency_ms": self._measure(network, priced_size),
            "latency_image_size": priced_size,
            "prior_latency_ms": self._measure(self.prior, priced_size),
            "prior_num_parameters": num_parameters(self.prior),
            "prior_macs": network_macs(self.prior, height=size, width=size),
            "images": [score.to_dict() for score in own],
        }

    def _measure(self, network: torch.nn.Module, size: int) -> float:
        latency = self.config.latency
        return measure_network_ms(
            network, height=size, width=size, device=torch.device(latency.device), num_threads=latency.num_threads
        )

    def execute(self) -> dict[str, Any]:
        """Carry out all stages and return the summary, without the tracker's run id.

        Ray is there for pricing, searching and retraining only: its threads take memory and time from what is measured.

        Raises:
            ValueError: there is no room for the workers of the retraining.
        """
        from pipeline.retrain import place_of_workers  # Ray Train takes seconds to import

        seconds: dict[str, float] = {}

        @contextmanager
        def timed(stage: str) -> Iterator[None]:
            start = time.perf_counter()
            yield
            seconds[stage] = round(time.perf_counter() - start, 2)

        with ray_session(self.config.ray):
            place_of_workers(self.config)  # refuses at once what would be refused after the search
            with timed("latency"):
                table = self.latency_table()
            with timed("search"):
                genotype, parts = self.search(table)
            with timed("retrain"):
                network = self.retrain(genotype, parts)
        with timed("evaluate"):
            results = self.evaluate(network, table)
            _draw(genotype, results, self.path("genotype.svg"))
        seconds["total"] = round(sum(seconds.values()), 2)
        return {
            "genotype_id": genotype.genotype_id,
            "seed": self.config.seed,
            "config_hash": self.config.config_hash,
            **results,
            "start": self.config.retrain.start,
            "entropies": [part.entropies for part in parts],
            "num_bad_steps": [part.num_bad_steps for part in parts],
            "seconds": seconds,
        }


def open_run(
    config: Config, *, searches: bool = False, progress: Progress = _no_progress, log: MetricLog = _no_log
) -> Run:
    """Check everything that a run needs before any work starts; its folder is made by `claimed`.

    Args:
        config: settings.
        searches: parts will be searched, so that the training images must be divisible into two halves.
        progress: called with (label, steps done, steps).
        log: called with metrics and a step.

    Raises:
        FileNotFoundError: a data folder, prior or operator file is missing.
        ValueError: unreadable images or impossible settings.
    """
    load_op_files(read_op_files(config.space.op_files))
    if cluster_address(config.ray) is None:
        check_device(config.device, name="device")
    elif config.device == "cuda" and config.ray.gpus_per_part == 0:
        raise ValueError("`ray.gpus_per_part` must be above 0 on a cluster when `device` is cuda: Ray may place a part "
                         "that asks for none on a machine without one")  # fmt: skip
    check_device(config.latency.device, name="latency.device")
    prior = load_prior(config.prior.weights, device=_own_device(config))
    _check_patch_sizes(config, prior)
    space = space_of(config, prior.num_channels)
    training, validation = _load_both(config, progress)
    if searches:
        split_training_images(config, training)  # refuses what cannot be divided
    return Run(
        config=config, folder=Path(config.output), space=space, prior=prior, training_images=training,
        validation_images=validation, progress=progress, log=log,
    )  # fmt: skip


def _check_patch_sizes(config: Config, prior: Prior) -> None:
    """Refuse patches that the parts of the prior do not take."""
    sizes = {"search.patch_size": config.search.patch_size}
    if config.retrain.distill_share > 0:
        sizes["retrain.patch_size"] = config.retrain.patch_size
    for name, size in sizes.items():
        if size % prior.size_multiple:
            raise ValueError(
                f"`{name}` must be a multiple of {prior.size_multiple} for the parts of the prior "
                f"{config.prior.weights}, got {size}"
            )


def _load_both(config: Config, progress: Progress) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return training and validation images by name; what cannot be used of both is named at once."""
    load = partial(
        load_images, paired=config.noise.model == "pairs", promote_grey=config.data.promote_grey,
        cache=config.data.cache, progress=progress,
    )  # fmt: skip
    check_disjoint(config.data.training, config.data.exclude, {"data.validation": config.data.validation})
    patch_size = max(config.search.patch_size, config.retrain.patch_size)
    wanted = (
        partial(load, config.data.training, photographs=TRAINING_PHOTOGRAPHS, minimum_size=patch_size,
                exclude=config.data.exclude),
        partial(load, config.data.validation, photographs=VALIDATION_PHOTOGRAPHS, minimum_size=16),
    )  # fmt: skip
    found, problems = [], []
    for load_set in wanted:
        try:
            found.append(load_set())
        except UnusableImagesError as error:
            problems.append(str(error))
    if problems:
        raise UnusableImagesError("\n".join(problems))
    training, validation = found
    return training, validation


def _own_device(config: Config) -> torch.device:
    """Return where this process computes: on `device`, or on the CPU of a cluster's head that has no GPU itself."""
    return torch.device(config.device if torch.cuda.is_available() else "cpu")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process from working in `folder` at the same time, and tidy what killed ones left half written.

    The kernel holds the lock for this process: it is gone with it, however it ends.

    Raises:
        ValueError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is working in {folder}; wait for it or choose another `output`"
            ) from None
        remove_partial_files(folder)
        yield


@contextmanager
def claimed(run: Run, work: str | None = "run") -> Iterator[None]:
    """Keep other processes from the run's folder, and mark it as this run's.

    Args:
        run: settings and folder.
        work: what the folder is for, see `WORK_FILE`; None: for what may be part of any work.

    Raises:
        ValueError: another process works there, or it holds a run of other settings, or other work.
    """
    with locked(run.folder):
        stored = run.path("config.yaml")
        if not stored.exists():
            run.config.save(stored)
        found, own = load_config(str(stored)).config_hash, run.config.config_hash
        if found != own:
            raise ValueError(
                f"{run.folder} holds a run of other settings (config_hash {found}, this is {own}); choose another "
                "`output` or remove the folder"
            )
        if work is not None:
            held = _work_in(run.folder)
            if held not in (None, work):
                raise ValueError(f"{run.folder} is of the kind {held!r}, this is {work!r}; choose another `output`")
            if held is None:
                write_atomically(run.path(WORK_FILE), f"{work}\n")
        yield


def _work_in(folder: Path) -> str | None:
    path = folder / WORK_FILE
    if path.exists():
        return read_text(path).strip()
    return next((work for work, mark in _MARKS.items() if (folder / mark).exists()), None)


def derive_again(run: Run, *, threshold: float) -> Genotype:
    """Derive from the probabilities of the run's finished search at another threshold.

    Raises:
        FileNotFoundError: no finished search.
        ValueError: `threshold` outside [0, 1).
    """
    _, results = run.finished_search()
    parts = []
    for result in results:
        probabilities = {name: torch.tensor(rows) for name, rows in result.probabilities.items()}
        parts.append(derive_probabilities(probabilities, run.space, threshold=threshold))
    return Genotype.of(run.space, parts)


def replace_log(run: Run, log: MetricLog) -> Run:
    """Return the run with another receiver of metrics."""
    return replace(run, log=log)


def _image(image: np.ndarray | None) -> np.ndarray:
    assert image is not None, "scores were asked for with their images"
    return image


def _draw(genotype: Genotype, results: dict[str, Any], path: Path) -> None:
    from search_space.draw import draw_genotype

    caption = (
        f"{results['num_parameters'] / 1e3:.1f} k parameters, {results['macs'] / 1e9:.2f} GMACs at "
        f"{results['macs_image_size']} x {results['macs_image_size']}, {results['measured_latency_ms']:.1f} ms at "
        f"{results['latency_image_size']} x {results['latency_image_size']}"
    )
    with written_beside(path) as beside:
        draw_genotype(genotype, beside, caption=caption)
