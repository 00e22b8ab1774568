"""Search one network inside a cell, in plain torch, one part after the other; called by the experiments.

Searches of an experiment are compared at equal steps, with the same patches, features and initial weights. What they
find is retrained from scratch, as in the paper: the weights that a search leaves depend on how it trains them, which
would decide a comparison of architectures.
"""

import math
from collections.abc import Sequence
from statistics import fmean

import torch

from pipeline.config import Config
from pipeline.experiments.experiment import CellJob, Column, Values
from pipeline.experiments.networks import time_network, train_and_score
from pipeline.part_search import result_of, search_part
from pipeline.priors import NUM_PARTS, Prior, load_prior
from pipeline.search_inputs import (
    SearchInputs,
    cost_models,
    part_budgets,
    part_data,
    prepare_inputs,
    search_key,
    space_of,
)
from search_space import LEVELS, Genotype, build_network

GENOTYPE_FILE = "genotype.json"
PART_FILES = "part[0-9].pt"  # checkpoints of the part searches
# Of `search`: how the searches compute that ours is compared with. They have no such settings.
OF_OTHER_SEARCHES = {"arch_samples": 1, "precision": "float32"}
ENTROPY = Column(key="entropy_alpha", title="entropy of alpha")


def regardless_of_cost(config: Config) -> Config:
    """Return the settings of the paper's search for the best network: lambda 0, no budget, the argmax of alpha."""
    return config.with_settings(
        {
            "search.complexity_weight": 0.0, "search.target_ms": None, "search.derive_samples": 0,
            "search.cost": "parameters",  # counted without a table, and weighed with 0
        }
    )  # fmt: skip


def search_inputs(job: CellJob, config: Config, prior: Prior) -> SearchInputs:
    """Return patches with the prior's features; equal for equal seeds."""
    return prepare_inputs(config, prior, job.inputs.training_images)


def search_network(job: CellJob, config: Config, *, random_levels: Sequence[str] = ()) -> Values:
    """Search the three parts, retrain the network from scratch and score it; leaves the genotype in the cell's folder.

    Returns:
        The numbers of `train_and_score`, and the mean entropy of every searched level over the parts.
    """
    genotype, entropies = find_network(job, config, random_levels=random_levels)
    return retrain(job, config, genotype) | entropies


def find_network(job: CellJob, config: Config, *, random_levels: Sequence[str] = ()) -> tuple[Genotype, Values]:
    """Search the three parts; return what they make and the mean entropy of every searched level over the parts."""
    device = torch.device(config.device)
    prior = load_prior(config.prior.weights, device=device)
    space = space_of(config, prior.num_channels)
    inputs = search_inputs(job, config, prior)
    costs = cost_models(config, space, None if job.inputs.table is None else job.inputs.table.__getitem__)
    budgets = part_budgets(config, costs)
    results = [
        result_of(
            search_part(
                index, space, part_data(config, inputs, index), costs[index], config.search,
                budget=budgets[index], random_levels=random_levels, seed=config.seed, device=device,
                checkpoint_path=job.folder / f"part{index}.pt", checkpoint_key=f"{job.variant} {search_key(config)}",
            )
        )
        for index in range(NUM_PARTS)
    ]  # fmt: skip
    entropies = {
        f"entropy_{level}": fmean(result.entropies[level] for result in results)
        for level in LEVELS
        if level not in random_levels and all(math.isfinite(result.entropies[level]) for result in results)
    }
    return Genotype.of(space, [result.part for result in results]), entropies


def retrain(job: CellJob, config: Config, genotype: Genotype) -> Values:
    """Train the network of `genotype` from scratch and score it; leaves the genotype in the cell's folder."""
    genotype.save(job.folder / GENOTYPE_FILE)
    torch.manual_seed(config.seed)
    return train_and_score(job, config, build_network(genotype))


def measure_searched(job: CellJob) -> Values:
    """Time the network that the cell found; weights do not matter."""
    return time_network(job.config, build_network(Genotype.load(job.folder / GENOTYPE_FILE)))
