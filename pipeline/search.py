"""Three part searches at the same time, as Ray actors, to one Genotype.

Called by `pipeline.run` for one search, and by `pipeline.trial` with processes of its own. Each actor runs
`part_search.search_part`; the caller alone logs. arXiv 2502.13359, Algorithm 1 (its loop over the parts runs in
parallel, E17: every part takes the prior's features as input).
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from pipeline.config import Config
from pipeline.part_actors import DEATHS, PartActors, PartDiedError, PartJob, naming_part, part_jobs
from pipeline.part_checkpoints import keep_checkpoint, with_checkpoint
from pipeline.part_search import PartSearchResult
from pipeline.search_inputs import SearchInputs
from search_space import CostModel, Genotype, SearchSpace

EpochLog = Callable[[int, int, dict[str, float]], None]
_LOOK_SECONDS = 0.5  # between looks at parts that have no place yet
_PATIENCE_SECONDS = 10.0  # until a part that waits for a place is told of
_RESERVED_SECONDS = 60.0  # until a place that was reserved is given up
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """One searched architecture and what its three searches left."""

    genotype: Genotype
    parts: tuple[PartSearchResult, ...]


def search(
    config: Config,
    space: SearchSpace,
    costs: list[CostModel],
    inputs: SearchInputs,
    *,
    checkpoint_folder: Path | None,
    log: EpochLog | None = None,
) -> SearchResult:
    """Search the three parts concurrently, in processes that live as long; needs an initialised Ray.

    Args:
        config: settings; `part_budgets` divides `search.target_ms` among the parts.
        space: the search space.
        costs: of the three parts.
        inputs: shared training data.
        checkpoint_folder: one file per part, as in `search_parts`; None keeps nothing.
        log: as in `search_parts`.

    Raises:
        OSError, FloatingPointError, RuntimeError: as in `search_parts`.
    """
    jobs = part_jobs(config, space, costs, checkpoint_folder=checkpoint_folder)
    actors = PartActors(config)
    try:
        return search_parts(jobs, ray.put(inputs), actors, log=log)
    finally:
        actors.end()


def search_parts(
    jobs: Sequence[PartJob],
    inputs: "ray.ObjectRef[SearchInputs]",
    actors: PartActors,
    *,
    initial_weights: "ray.ObjectRef[list[dict[str, Tensor]]] | None" = None,
    log: EpochLog | None = None,
) -> SearchResult:
    """Search the three parts concurrently in `actors` and put their architectures together.

    Goes on from the checkpoints of `jobs` where they exist: so does, with a warning, a part whose process or machine
    dies, at most `ray.max_failures` times. Checkpoints of parts on nodes that may not share the disk of the command's
    node travel there and back.

    Args:
        jobs: of the three parts.
        inputs: shared training data.
        actors: one process per part.
        initial_weights: of three supernets to begin from; random by default.
        log: called with (part index, epoch, metrics) in this process; after a death, with some epochs once more.

    Raises:
        OSError: a checkpoint cannot be written.
        FloatingPointError: too many steps of a part had no finite loss.
        RuntimeError: a part search failed, or its process died too often; the message names the part and the cause.
    """
    config = jobs[0].config
    running: dict[int, Any] = {}  # what their processes tell, by part
    results: dict[int, PartSearchResult] = {}
    num_deaths = [0] * len(jobs)
    places: dict[int, _Place] = {}

    def begin(index: int) -> None:
        places[index] = _Place(actors, index, config)
        running[index] = actors[index].run.remote(with_checkpoint(jobs[index]), inputs, initial_weights)

    def take_news(index: int) -> None:
        with naming_part(index):
            told = ray.get(next(running[index]))
            if told.checkpoint:
                keep_checkpoint(jobs[index], told.checkpoint)
        if isinstance(told.news, PartSearchResult):
            results[index] = told.news
            del running[index]
            actors.release(index)
        elif log is not None:
            log(index, told.news.epoch, told.news.metrics)

    for index in range(len(jobs)):
        begin(index)
    while running:
        for index in running:
            places[index].look()
        ready, _ = ray.wait(list(running.values()), timeout=_LOOK_SECONDS)
        for index in [index for index, news in running.items() if news in ready]:
            try:
                take_news(index)  # a part that failed ends the search at once
            except PartDiedError as error:
                num_deaths[index] += 1
                if num_deaths[index] > config.ray.max_failures:
                    raise
                _logger.warning("%s; started again (%d of %d)", error, num_deaths[index], config.ray.max_failures)
                time.sleep(num_deaths[index])  # seconds until a machine that is gone is known to be
                actors.start_again(index)
                begin(index)
    parts = tuple(results[index] for index in range(len(jobs)))
    return SearchResult(genotype=Genotype.of(jobs[0].space, [result.part for result in parts]), parts=parts)


class _Place:
    """Where the process of a part runs, once Ray has room for it; says who waits long, and who found which machine."""

    def __init__(self, actors: PartActors, part_index: int, config: Config) -> None:
        self._actor = actors[part_index]
        self._host = self._actor.host.remote()
        self._part_index = part_index
        self._needs = f"{config.ray.cpus_per_part:g} processors and {config.ray.gpus_per_part:g} GPUs"
        self._is_reserved = actors.are_reserved
        self._patience = time.monotonic() + (_RESERVED_SECONDS if self._is_reserved else _PATIENCE_SECONDS)
        self._is_found = False

    def look(self) -> None:
        """Find out whether the process runs."""
        if self._is_found:
            return
        self._is_found = bool(ray.wait([self._host], timeout=0)[0])
        if self._is_found:
            with suppress(*DEATHS):  # what it was asked to run fails too
                _logger.info("part %d is searched on %s", self._part_index, ray.get(self._host))
        elif time.monotonic() > self._patience:
            self._patience = float("inf")
            _logger.warning("part %d waits for a place with %s", self._part_index, self._needs)
            if self._is_reserved:  # the machine is gone, and the others may be full of such as wait for each other
                ray.kill(self._actor)
