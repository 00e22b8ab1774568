"""Table VI: each level of the search space decided at random, the others searched.

arXiv 2502.13359, Section IV-E: "the architecture weights at this level are randomly initialized", read as: decided at
random from the start and not trained, so that the other levels are searched around it. A network with all four levels
at random is the control that the paper lacks.
"""

import torch

from pipeline.experiments.experiment import CellJob, Claim, Experiment, Values, Variant, compare
from pipeline.experiments.networks import COST_COLUMNS, PSNR
from pipeline.experiments.searches import ENTROPY, measure_searched, regardless_of_cost, retrain, search_network
from pipeline.priors import NUM_PARTS, load_prior
from pipeline.search_inputs import space_of
from search_space import LEVELS, ArchParameters, Genotype, derive, randomise_levels

_RANDOM_LEVELS: dict[str, tuple[str, ...]] = {
    "resolution": ("beta",), "dense": ("delta",), "operator": ("alpha",), "width": ("gamma",), "searched": ()
}  # fmt: skip
ALL_RANDOM = "random"


def run(job: CellJob) -> Values:
    """Search what the variant leaves to search, retrain and score."""
    config = regardless_of_cost(job.config)
    if job.variant != ALL_RANDOM:
        return search_network(job, config, random_levels=_RANDOM_LEVELS[job.variant])
    space = space_of(config, load_prior(config.prior.weights).num_channels)
    generator = torch.Generator().manual_seed(config.seed)
    parts = []
    for _ in range(NUM_PARTS):
        arch = ArchParameters(space, generator=generator)
        randomise_levels(arch, LEVELS, generator=generator)
        parts.append(derive(arch, threshold=config.search.threshold))
    return retrain(job, config, Genotype.of(space, parts))


def _helps(name: str, what: str, paper: float) -> Claim:
    return Claim(text=f"searching {what} helps", estimate=compare("psnr_db", "searched", name), unit="dB", paper=paper)


def _matters_less(name: str, what: str, paper: float) -> Claim:
    return Claim(text=f"resolutions matter more than {what}", estimate=compare("psnr_db", name, "resolution"),
                 unit="dB", paper=paper)  # fmt: skip


EXPERIMENT = Experiment(
    name="levels",
    title="each level of the search space at random (Table VI)",
    description=(
        "One level is decided at random and held, the others are searched (lambda 0), and the network is retrained "
        "from scratch; same seeds, patches and steps. The last row is a network drawn at random on all four levels. "
        "The networks differ in cost as well: see the milliseconds."
    ),
    variants=(
        Variant(name="resolution", label="resolutions at random", paper={"psnr_db": 39.47, "num_parameters": 7.60}),
        Variant(name="dense", label="dense connections at random", paper={"psnr_db": 39.70, "num_parameters": 8.33}),
        Variant(name="operator", label="operators at random", paper={"psnr_db": 39.81, "num_parameters": 8.26}),
        Variant(name="width", label="widths at random", paper={"psnr_db": 39.90, "num_parameters": 8.89}),
        Variant(name="searched", label="all searched", paper={"psnr_db": 40.12, "num_parameters": 8.01}),
        Variant(name=ALL_RANDOM, label="all at random (control)"),
    ),
    columns=(PSNR, *COST_COLUMNS, ENTROPY),
    claims=(
        _helps("resolution", "resolutions", 0.65),
        _helps("dense", "dense connections", 0.42),
        _helps("operator", "operators", 0.31),
        _helps("width", "widths", 0.22),
        _matters_less("dense", "dense connections", 0.23),
        _matters_less("operator", "operators", 0.34),
        _matters_less("width", "widths", 0.43),
        Claim(text="a searched network is better than one drawn at random",
              estimate=compare("psnr_db", "searched", ALL_RANDOM), unit="dB", is_papers=False),
    ),
    run=run,
    measure=measure_searched,
)  # fmt: skip
