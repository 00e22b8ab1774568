"""Three part searches at the same time, as Ray actors, to one Genotype.

Called by `pipeline.run`. Each actor runs `part_search.search_part`; the driver alone logs. arXiv 2502.13359, Algorithm
1 (its loop over the parts runs in parallel, E17: every part takes the prior's features as input).
"""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from latency import keep_freed_memory
from ops import OpSpec
from pipeline.cluster import load_op_files, read_op_files
from pipeline.config import Config
from pipeline.data.part_data import (
    CachedFeatures,
    LiveFeatures,
    PartData,
    PatchSet,
    compute_patch_set,
    patch_set_bytes,
    split_images,
)
from pipeline.data.patches import PatchSource, noisy_patches
from pipeline.data.scenes import scenes_of
from pipeline.part_checkpoints import checkpoint_file, fetch_checkpoint, with_checkpoint
from pipeline.part_search import PartSearchResult, search_part
from pipeline.priors import NUM_PARTS, Prior, load_prior
from search_space import CostModel, Genotype, SearchSpace, op_macs, op_num_parameters

EpochLog = Callable[[int, int, dict[str, float]], None]
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 10.0
# What a caller sees of an actor that died, was killed for its memory, or was on a machine that is gone.
_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One searched architecture and what its three searches left."""

    genotype: Genotype
    parts: tuple[PartSearchResult, ...]


@dataclass(frozen=True, kw_only=True)
class SearchInputs:
    """What the three part searches share: a patch set with the prior's features, or what makes them live."""

    patches: PatchSet | None
    images: tuple[list[np.ndarray], list[np.ndarray]]


def space_of(config: Config, num_channels: int) -> SearchSpace:
    """Return the search space of `config` with the prior's channels."""
    return SearchSpace(
        num_channels=num_channels,
        num_resolutions=config.space.num_resolutions,
        num_layers=config.space.num_layers,
        candidate_ops=config.space.candidate_ops,
    )


def cost_models(config: Config, space: SearchSpace, latency_ms: Callable[[OpSpec], float] | None) -> list[CostModel]:
    """Return the costs of the three parts in the unit that `search.cost` names.

    Raises:
        ValueError: `search.cost` is `latency` and there is no table.
    """
    if config.search.cost == "latency" and latency_ms is None:
        raise ValueError("`search.cost` is latency, but there is no latency table")
    prices: dict[str, Callable[[OpSpec], float] | None] = {
        "latency": latency_ms, "parameters": op_num_parameters, "macs": op_macs
    }  # fmt: skip
    price = prices[config.search.cost]
    assert price is not None
    size = config.latency.image_size
    return [CostModel(i, space, price, height=size, width=size) for i in range(NUM_PARTS)]


def prepare_inputs(
    config: Config,
    prior: Prior,
    images: Mapping[str, np.ndarray],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SearchInputs:
    """Split the images and, where `search.prior_features` is `cached`, run the prior once over a fixed patch set."""
    search = config.search
    halves = split_training_images(config, images)
    if search.prior_features == "live":
        return SearchInputs(patches=None, images=halves)
    patches = compute_patch_set(
        prior,
        patch_sources(config, halves),
        num_patches=search.num_patches,
        architecture_share=config.data.architecture_share,
        batch_size=search.batch_size,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
    )
    return SearchInputs(patches=patches, images=halves)


def features_megabytes(config: Config, num_channels: int) -> float:
    """Return the estimated size of the cached features in MB."""
    return patch_set_bytes(config.search.num_patches, config.search.patch_size, num_channels) / 1e6


def search(
    config: Config,
    space: SearchSpace,
    costs: list[CostModel],
    inputs: SearchInputs,
    *,
    checkpoint_folder: Path | None,
    log: EpochLog | None = None,
) -> SearchResult:
    """Search the three parts concurrently and put their architectures together.

    Needs an initialised Ray. Goes on from the checkpoints in `checkpoint_folder` where they exist: so does, with a
    warning, a part whose process or machine dies, at most `ray.max_failures` times. Checkpoints of parts on nodes that
    may not share this one's disk travel there and back.

    Args:
        config: settings; `search.target_ms` is divided among the parts as their uniform architectures' costs are.
        space: the search space.
        costs: of the three parts.
        inputs: shared training data.
        checkpoint_folder: one file per part; None keeps nothing.
        log: called with (part index, epoch, metrics) on the driver.

    Raises:
        RuntimeError: a part search failed, or its process died too often; the message names the part and the cause.
    """
    jobs = part_jobs(config, space, costs, checkpoint_folder=checkpoint_folder)
    actors = start_part_actors(config)
    shared = ray.put(inputs)
    pending: dict[Any, int] = {}
    results: dict[int, PartSearchResult] = {}
    num_deaths = [0] * NUM_PARTS
    places: dict[int, _Place] = {}

    def begin(index: int) -> None:
        places[index] = _Place(actors[index], index, config)
        pending[actors[index].run.remote(with_checkpoint(jobs[index]), shared)] = index

    def take_news(index: int) -> None:
        with _deaths_of(index):
            if not places[index].is_found():
                return
            if rows := ray.get(actors[index].poll.remote()):
                fetch_checkpoint(jobs[index], actors[index])
        for epoch, metrics in rows:
            if log is not None:
                log(index, epoch, metrics)

    try:
        for index in range(NUM_PARTS):
            begin(index)
        while pending:
            done, _ = ray.wait(list(pending), num_returns=len(pending), timeout=_POLL_SECONDS)
            for run in done:
                index = pending.pop(run)
                try:
                    results[index] = get_part(run, index)  # a part that failed ends the search at once
                    take_news(index)
                    ray.kill(actors[index])  # another part may wait for its place
                except PartDiedError as error:
                    num_deaths[index] += 1
                    if num_deaths[index] > config.ray.max_failures:
                        raise
                    _logger.warning("%s; started again (%d of %d)", error, num_deaths[index], config.ray.max_failures)
                    ray.kill(actors[index])  # it may live on behind a lost connection
                    time.sleep(num_deaths[index])  # seconds until a machine that is gone is known to be
                    actors[index] = start_part_actor(config, index)
                    begin(index)
            for index in pending.values():
                with suppress(PartDiedError):  # what it was asked to run fails too
                    take_news(index)
    finally:
        for actor in actors:
            ray.kill(actor)
    parts = tuple(results[index] for index in range(NUM_PARTS))
    return SearchResult(genotype=Genotype.of(space, [result.part for result in parts]), parts=parts)


class PartDiedError(RuntimeError):
    """The process that searched a part died, or its machine."""


class _Place:
    """Where the process of a part runs, once Ray has room for it; says who waits long, and who found which machine."""

    def __init__(self, actor: Any, part_index: int, config: Config) -> None:
        self._host = actor.host.remote()
        self._part_index = part_index
        self._needs = f"{config.ray.cpus_per_part:g} processors and {config.ray.gpus_per_part:g} GPUs"
        self._patience = time.monotonic() + _PATIENCE_SECONDS
        self._is_found = False

    def is_found(self) -> bool:
        """Tell whether the process runs."""
        if not self._is_found:
            self._is_found = bool(ray.wait([self._host], timeout=0)[0])
            if self._is_found:
                _logger.info("part %d is searched on %s", self._part_index, ray.get(self._host))
            elif time.monotonic() > self._patience:
                self._patience = float("inf")
                _logger.warning("part %d waits for a place with %s", self._part_index, self._needs)
        return self._is_found


@dataclass(frozen=True, kw_only=True)
class PartJob:
    """What one part search needs besides its data.

    Attributes:
        config: settings of the whole search.
        space: the search space.
        costs: what the complexity regulariser counts in this part.
        target: budget of this part in the unit of `costs`, or None.
        checkpoint_path: of this part, on the driver's node; None keeps nothing, for searches of seconds.
        home: Ray's id of the driver's node. On another one the checkpoint is kept in a temporary file, for the driver
            to fetch.
        checkpoint: what `checkpoint_path` holds, for other nodes; empty where there is none yet.
    """

    config: Config
    space: SearchSpace
    costs: CostModel
    target: float | None
    checkpoint_path: str | None
    home: str
    checkpoint: bytes = b""


def part_jobs(
    config: Config, space: SearchSpace, costs: list[CostModel], *, checkpoint_folder: Path | None
) -> list[PartJob]:
    """Return the jobs of the three parts; checkpoints are kept where a folder is given."""
    folder = None if checkpoint_folder is None else checkpoint_folder.absolute()
    return [
        PartJob(
            config=config, space=space, costs=cost, target=target, home=ray.get_runtime_context().get_node_id(),
            checkpoint_path=None if folder is None else str(folder / f"part{index}.pt"),
        )
        for index, (cost, target) in enumerate(zip(costs, part_targets(config, space, costs), strict=True))
    ]  # fmt: skip


def start_part_actor(config: Config, part_index: int, **options: Any) -> Any:
    """Start a process for the searches of one part; needs an initialised Ray.

    Args:
        config: resources and operator files.
        part_index: 0, 1 or 2.
        options: more of Ray's options, such as a scheduling strategy.

    Returns:
        An actor whose `run` takes a `PartJob` and a reference to `SearchInputs`, and returns a `PartSearchResult`.
    """
    resources = {"num_cpus": config.ray.cpus_per_part, "num_gpus": config.ray.gpus_per_part}
    actor = PartActor.options(**resources, **options)  # type: ignore[attr-defined]
    return actor.remote(part_index, read_op_files(config.space.op_files))


def start_part_actors(config: Config, scheduling: Sequence[Any] = ()) -> list[Any]:
    """Start one process per part, see `start_part_actor`; `scheduling` holds Ray's strategy of each, or nothing."""
    options = [{"scheduling_strategy": strategy} for strategy in scheduling] or [{}] * NUM_PARTS
    return [start_part_actor(config, index, **more) for index, more in enumerate(options)]


def part_targets(config: Config, space: SearchSpace, costs: list[CostModel]) -> list[float | None]:
    """Divide `search.target_ms` among the parts: fixed stems and tails first, the rest in proportion to the cells.

    Raises:
        ValueError: the budget is below what stems and tails alone cost.
    """
    if config.search.target_ms is None:
        return [None] * NUM_PARTS
    frames = [cost.minimum_frame_cost for cost in costs]
    rest = config.search.target_ms - sum(frames)
    if rest <= 0:
        raise ValueError(
            f"`search.target_ms` {config.search.target_ms} is below the {sum(frames):.2f} ms that stems and tails cost"
        )
    return [frame + rest / NUM_PARTS for frame in frames]


def get_part(reference: Any, part_index: int) -> PartSearchResult:
    """Wait for a part search.

    Raises:
        RuntimeError: it failed; the message names the part and the cause.
        PartDiedError: its process died.
    """
    with _deaths_of(part_index):
        return ray.get(reference)


@contextmanager
def _deaths_of(part_index: int) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise RuntimeError(f"the search of part {part_index} failed: {type(cause).__name__}: {cause}") from error
    except _DEATHS as error:
        why = ", its memory was full" if isinstance(error, ray.exceptions.OutOfMemoryError) else ""
        raise PartDiedError(
            f"the process that searched part {part_index} died{why}; the same command goes on from its last epoch"
        ) from error


def split_training_images(
    config: Config, images: Mapping[str, np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Divide the training images, by name, into those for weights and those for the architecture."""
    return split_images(
        list(images.values()), config.data.architecture_share, patch_size=config.search.patch_size,
        scenes=scenes_of(images),
    )  # fmt: skip


def patch_sources(config: Config, halves: tuple[list[np.ndarray], list[np.ndarray]]) -> dict[Any, PatchSource]:
    """Return the sources of patches of D_w and D_archi, from the images of each."""
    return {
        split: noisy_patches(images, config.noise, patch_size=config.search.patch_size)
        for split, images in zip(("weights", "architecture"), halves, strict=True)
    }


@ray.remote(max_concurrency=2)  # type: ignore[call-overload]  # an option of actors, which the stub overlooks
class PartActor:
    """Searches of one part in a process of their own, one after the other; `poll` answers while `run` works.

    A search depends on nothing that an earlier one leaves: it seeds all its random numbers itself.
    """

    def __init__(self, part_index: int, op_sources: dict[str, str]) -> None:
        keep_freed_memory()
        load_op_files(op_sources)
        self.part_index = part_index
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.checkpoint: bytes | None = None

    def run(
        self, job: PartJob, inputs: SearchInputs, initial_weights: Sequence[dict[str, Tensor]] | None = None
    ) -> PartSearchResult:
        """Search the part; `initial_weights` are those of three supernets to begin from."""
        config = job.config
        torch.set_num_threads(config.search.threads_per_part)
        device = torch.device(config.device)
        self.rows = []
        with checkpoint_file(job, is_home=ray.get_runtime_context().get_node_id() == job.home) as path:

            def log(epoch: int, metrics: dict[str, float]) -> None:
                self.rows.append((epoch, metrics))
                if path is not None and str(path) != job.checkpoint_path:
                    self.checkpoint = path.read_bytes()

            return search_part(
                self.part_index,
                job.space,
                part_data(config, inputs, self.part_index),
                job.costs,
                config.search,
                target_cost=job.target,
                seed=config.seed,
                device=device,
                initial_weights=None if initial_weights is None else initial_weights[self.part_index],
                checkpoint_path=path,
                checkpoint_key=search_key(config),
                log=log,
            )

    def poll(self) -> list[tuple[int, dict[str, float]]]:
        """Return the epochs logged since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def take_checkpoint(self) -> bytes | None:
        """Return the newest checkpoint of a search that is not at home, unless it was taken already."""
        content, self.checkpoint = self.checkpoint, None
        return content

    def host(self) -> str:
        """Return the name and address of this node."""
        return f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"

    def cpu_seconds(self) -> float:
        """Return the processor time of this process."""
        return time.process_time()


def part_data(config: Config, inputs: SearchInputs, part_index: int) -> PartData:
    """Return the training data of one part, on the device of `config`."""
    device = torch.device(config.device)
    if inputs.patches is not None:
        return CachedFeatures(inputs.patches, part_index, device)
    prior = load_prior(config.prior.weights, device=device)
    return LiveFeatures(prior, patch_sources(config, inputs.images), part_index)


def search_key(config: Config) -> str:
    """Return what a search checkpoint must agree on: every setting that the search depends on."""
    settings = config.lasting_settings()
    keys = ("seed", "device", "data", "noise", "space", "prior", "search")
    return json.dumps({key: settings[key] for key in keys} | {"size": config.latency.image_size}, sort_keys=True)
