"""Table III: architecture searches compared: ours, CLEARER, HiNAS, and random search.

arXiv 2502.13359, Section IV-C. Every search draws the same number of batches from the same patches; what it finds is
retrained from scratch with the same seeds, patches and steps.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.baselines import build_baseline, load_baseline, save_baseline
from pipeline.config import Config
from pipeline.experiments.clean_patches import clean_patches
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, Variant, compare
from pipeline.experiments.networks import COST_COLUMNS, PSNR, time_network, train_and_score, with_l1_alone
from pipeline.experiments.searches import (
    GENOTYPE_FILE,
    OF_OTHER_SEARCHES,
    PART_FILES,
    find_network,
    measure_searched,
    regardless_of_cost,
    retrain,
)
from pipeline.peers import ClearerSpace, ClearerSupernet, DartsSettings, HinasSpace, HinasSupernet, search_darts
from pipeline.priors import load_prior
from pipeline.search_inputs import space_of
from pipeline.settings import SearchConfig
from pipeline.training import Trainer
from search_space import Genotype, build_network, sample_genotype

SEARCHED, RANDOM = "searched", "random"
NETWORK_FILE = "network.safetensors"
CLEARER_SPACE = ClearerSpace(num_channels=(8, 16, 32, 64))
HINAS_SPACE = HinasSpace()
# Random search tries so many networks. Each has an equal share of the batches that a search may draw, and some of
# these rank it.
NUM_TRIED = 4
RANKING_SHARE = 0.2

_PEERS: dict[str, tuple[Callable[[], Any], DartsSettings]] = {
    "clearer": (lambda: ClearerSupernet(CLEARER_SPACE), ClearerSupernet.settings),
    "hinas": (lambda: HinasSupernet(HINAS_SPACE), HinasSupernet.settings),
}


def run(job: CellJob) -> Values:
    """Search as the variant does, retrain from scratch and score; `search_seconds` is the search alone."""
    config = with_l1_alone(regardless_of_cost(job.config), job.config.experiment.nas_epochs)
    for path in job.folder.glob(PART_FILES):  # of a cell that was interrupted: what it had searched was not timed
        path.unlink()
    start = time.perf_counter()
    if job.variant in (SEARCHED, RANDOM):
        genotype = find_network(job, config)[0] if job.variant == SEARCHED else _random_search(job, config)
        seconds = time.perf_counter() - start
        return retrain(job, config, genotype) | {"search_seconds": seconds}
    build, settings = _PEERS[job.variant]
    found = search_darts(
        build, clean_patches(job, config), replace(settings, batch_size=config.search.batch_size), seed=config.seed,
        device=torch.device(config.device), num_batches=num_batches(config.search),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    torch.manual_seed(config.seed)
    network = build_baseline(job.variant, genotype=found)
    save_baseline(network, job.folder / NETWORK_FILE)
    return train_and_score(job, config, network) | {"search_seconds": seconds}


def measure(job: CellJob) -> Values:
    """Time the network that the cell found; weights do not matter."""
    if (job.folder / GENOTYPE_FILE).exists():
        return measure_searched(job)
    return time_network(job.config, load_baseline(job.folder / NETWORK_FILE))


def num_batches(search: SearchConfig) -> int:
    """Return how many batches every search draws: as many as a part search of ours has steps of either kind."""
    return search.steps_per_epoch * (2 * search.num_epochs - search.num_warmup_epochs)


def _random_search(job: CellJob, config: Config) -> Genotype:
    """Train random networks shortly on D_w and return the one with the least L1 on D_archi."""
    patches = clean_patches(job, config)
    space = space_of(config, load_prior(config.prior.weights).num_channels)
    generator = torch.Generator().manual_seed(config.seed)
    share = num_batches(config.search) // NUM_TRIED
    num_ranking = max(1, round(RANKING_SHARE * share))
    ranking = [patches["architecture"].sample(config.search.batch_size, generator) for _ in range(num_ranking)]
    settings = config.with_settings(
        {
            "retrain.num_epochs": 1, "retrain.steps_per_epoch": max(1, share - num_ranking),
            "retrain.batch_size": config.search.batch_size, "retrain.patch_size": config.search.patch_size,
            "retrain.distill_share": 0.0,
        }
    ).retrain  # fmt: skip
    best: tuple[float, Genotype] | None = None
    for _ in range(NUM_TRIED):
        genotype = sample_genotype(space, generator=generator, threshold=config.search.threshold)
        torch.manual_seed(config.seed)
        network: nn.Module = build_network(genotype)
        device = torch.device(config.device)
        Trainer(network, patches["weights"], settings, prior=None, seed=config.seed, device=device).run_epoch()
        network.eval()
        with torch.inference_mode():
            error = sum((network(noisy.to(device)) - clean.to(device)).abs().mean().item() for noisy, clean in ranking)
        if best is None or error < best[0]:
            best = (error, genotype)
    assert best is not None
    return best[1]


SECONDS = Column(key="search_seconds", title="search, s", digits=0, paper_title="paper, h")

EXPERIMENT = Experiment(
    name="nas",
    title="architecture searches (Table III)",
    description=(
        "Searches that draw equally many batches from the same patches, whatever time they take: ours (three parts "
        "against the prior, lambda 0; the batches are those of each part), CLEARER's and HiNAS's spaces re-made at our "
        "scale with first-order DARTS, and random search in our space. That has a share of the batches for each of "
        f"{NUM_TRIED} random networks: {1 - RANKING_SHARE:.0%} of it train the network, the rest ranks it. Networks "
        "are retrained from scratch with L1 alone; same seeds, patches and steps. They differ in cost: see the "
        "milliseconds. The paper's rows are trained on SIDD; its 48 hours are those of each of three parts."
    ),
    variants=(
        Variant(name=SEARCHED, label="ours",
                paper={"psnr_db": 40.12, "num_parameters": 8.01, "macs": 98.51, "search_seconds": 48}),
        Variant(name="clearer", label="CLEARER",
                paper={"psnr_db": 38.70, "num_parameters": 9.17, "macs": 92.30, "search_seconds": 20}),
        Variant(name="hinas", label="HiNAS",
                paper={"psnr_db": 38.56, "num_parameters": 1.53, "macs": 100.20, "search_seconds": 34}),
        Variant(name=RANDOM, label="random search"),
    ),
    columns=(PSNR, *COST_COLUMNS, SECONDS),
    claims=(
        Claim(text="our search finds a better network than CLEARER", estimate=compare("psnr_db", SEARCHED, "clearer"),
              unit="dB", paper=1.42),
        Claim(text="our search finds a better network than HiNAS", estimate=compare("psnr_db", SEARCHED, "hinas"),
              unit="dB", paper=1.56),
        Claim(text="our search finds a better network than random search",
              estimate=compare("psnr_db", SEARCHED, RANDOM), unit="dB", is_papers=False),
    ),
    run=run,
    run_alone=True,
    required_settings=OF_OTHER_SEARCHES,
    measure=measure,
)  # fmt: skip
