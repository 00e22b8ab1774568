"""Table VII: three parts searched against the prior at the same time, or the whole network without it.

arXiv 2502.13359, Section IV-E. Both searches have the same space, patches, initial weights and number of steps. With
the prior, each part is searched by a process of its own, all three at the same time; without it one process searches
all.
"""

import time
from collections.abc import Callable
from statistics import fmean

import ray
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.experiments.clean_patches import clean_patches
from pipeline.experiments.experiment import ALONE_GPUS, CellJob, Claim, Column, Experiment, Values, Variant, compare
from pipeline.experiments.memory import saved_bytes
from pipeline.experiments.networks import COST_COLUMNS, PSNR
from pipeline.experiments.searches import (
    OF_OTHER_SEARCHES,
    measure_searched,
    regardless_of_cost,
    retrain,
    search_inputs,
)
from pipeline.experiments.whole_search import WholeSearch, WholeSupernet
from pipeline.part_search import new_supernet, sampled_l_dp
from pipeline.priors import NUM_PARTS, load_prior
from pipeline.search import search
from pipeline.search_inputs import SearchInputs, cost_models, part_data, space_of
from search_space import Genotype, SearchSpace

_NUM_DRAWS = 24  # architecture steps over which memory is averaged


def run(job: CellJob) -> Values:
    """Search with or without the prior, then retrain from scratch and score; needs an initialised Ray.

    Returns:
        The numbers of `train_and_score`; `search_seconds`, wall time from images to a genotype without the start of
        processes; `memory_mb`, kept for the backward pass by the largest process.
    """
    config = regardless_of_cost(job.config)
    torch.manual_seed(config.seed)
    genotype, values = _with_prior(job, config) if job.variant == "parts" else _without(job, config)
    return values | retrain(job, config, genotype)


def _with_prior(job: CellJob, config: Config) -> tuple[Genotype, Values]:
    free = ray.cluster_resources().get("GPU", 0) - ALONE_GPUS
    if config.device == "cuda" and config.ray.gpus_per_part > free:  # it would wait for ever
        raise ValueError(
            f"`ray.gpus_per_part` must be at most {free:g}, what the cell itself leaves of all GPUs, got "
            f"{config.ray.gpus_per_part:g}"
        )
    device = torch.device(config.device)
    prior = load_prior(config.prior.weights, device=device)
    space = space_of(config, prior.num_channels)
    costs = cost_models(config, space, None)
    start = time.perf_counter()
    inputs = search_inputs(job, config, prior)
    seconds = time.perf_counter() - start  # of the prior's features, which every part waits for
    by_part = [0.0] * NUM_PARTS

    def log(part_index: int, epoch: int, metrics: dict[str, float]) -> None:
        by_part[part_index] = metrics["seconds"]

    result = search(config, space, costs, inputs, checkpoint_folder=None, log=log)
    memory = [_part_memory(config, space, inputs, part_index) for part_index in range(NUM_PARTS)]
    return result.genotype, {
        "search_seconds": seconds + max(by_part),
        "features_seconds": seconds,
        "memory_mb": max(memory),
        "memory_all_mb": sum(memory),
    }


def _without(job: CellJob, config: Config) -> tuple[Genotype, Values]:
    space = space_of(config, load_prior(config.prior.weights).num_channels)
    device = torch.device(config.device)
    search_config = config.search
    start = time.perf_counter()
    patches = clean_patches(job, config)
    supernet = WholeSupernet(space, seed=config.seed)
    supernet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    genotype = WholeSearch(supernet, patches, search_config, seed=config.seed).run()
    seconds = time.perf_counter() - start
    untrained = WholeSupernet(space, seed=config.seed)  # all choices equally likely, as in `_part_memory`
    untrained.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    fresh = WholeSearch(untrained, patches, search_config, seed=config.seed)
    memory = _mean_memory(lambda: fresh.loss("architecture", with_gradient=True), list(untrained.parameters()))
    return genotype, {"search_seconds": seconds, "memory_mb": memory, "memory_all_mb": memory}


def _part_memory(config: Config, space: SearchSpace, inputs: SearchInputs, part_index: int) -> float:
    supernet, generator = new_supernet(part_index, space, config.seed)
    supernet.to(torch.device(config.device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = part_data(config, inputs, part_index)

    def forward() -> Tensor:
        return sampled_l_dp(supernet, data, config.search, "architecture", generator=generator, with_gradient=True)

    return _mean_memory(forward, list(supernet.parameters()))


def _mean_memory(forward: Callable[[], Tensor], parameters: list[Tensor]) -> float:
    """Return the MB that a step keeps, averaged over sampled choices."""
    return fmean(saved_bytes(forward, parameters)[1] / 1e6 for _ in range(_NUM_DRAWS))


EXPERIMENT = Experiment(
    name="prior",
    title="three parts against the prior, or one search of the whole without it (Table VII)",
    description=(
        "Three searches at the same time, one process and one thread each, whose parts imitate those of the prior; "
        "and one search of the three supernets in a row, one process with all threads, whose output is compared with "
        "clean images (L1). Lambda 0, same patches, initial weights and number of steps; networks are retrained from "
        "scratch. Memory is what an architecture step keeps for its backward pass in the largest process, the mean "
        "over samples; time includes computing the prior's features and leaves out the start of processes. The paper "
        "gives GB per GPU and hours, 3 x 4 GPUs against 4."
    ),
    variants=(
        Variant(name="whole", label="whole network, without prior",
                paper={"memory_mb": 9.46, "search_seconds": 237, "psnr_db": 39.86}),
        Variant(name="parts", label="three parts with prior",
                paper={"memory_mb": 3.24, "search_seconds": 48, "psnr_db": 40.12}),
    ),
    columns=(
        Column(key="memory_mb", title="memory, MB", digits=1, paper_title="paper, GB"),
        Column(key="memory_all_mb", title="of all processes, MB", digits=1),
        Column(key="search_seconds", title="search, s", digits=1, paper_title="paper, h"),
        PSNR, *COST_COLUMNS,
    ),
    claims=(
        Claim(text="with the prior, a process needs less memory",
              estimate=compare("memory_mb", "whole", "parts", relative=True), unit="of that with the prior",
              threshold=0.01, paper=1.92),
        Claim(text="with the prior, the search is faster",
              estimate=compare("search_seconds", "whole", "parts", relative=True), unit="of the time with the prior",
              threshold=0.01, paper=3.94),
        Claim(text="with the prior, the network found is better", estimate=compare("psnr_db", "parts", "whole"),
              unit="dB", paper=0.26),
    ),
    run=run,
    run_alone=True,
    required_settings=OF_OTHER_SEARCHES,
    measure=measure_searched,
)  # fmt: skip
