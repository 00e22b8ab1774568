"""Table II and Fig. 9: memory and quality of three gradients of alpha, as special operators are added.

arXiv 2502.13359, Sections III-B and IV-E: the mixture of all operators (Eqs. 3, 4), Gumbel samples whose backward pass
needs all of them (Eqs. 5, 7), and samples of one (Eqs. 5, 8). Memory is what an architecture step of part 1 keeps for
its backward pass, all cells at full width. Quality is that of the network found, retrained from scratch.
"""

from pathlib import Path
from statistics import fmean

import torch

from pipeline.config import Config
from pipeline.experiments.drawing import new_figure, save_figure
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, ValuesBySeed, Variant, compare
from pipeline.experiments.memory import saved_bytes
from pipeline.experiments.networks import COST_COLUMNS, PSNR
from pipeline.experiments.searches import (
    ENTROPY,
    GENOTYPE_FILE,
    measure_searched,
    regardless_of_cost,
    search_inputs,
    search_network,
)
from pipeline.figure_style import BLUE, GREEN, INK, VERMILION
from pipeline.part_search import new_supernet, sampled_l_dp
from pipeline.priors import load_prior
from pipeline.search_inputs import part_data, space_of
from search_space import ESTIMATORS

# Named after what is injected into the convolutions and skip, in the order in which the paper lists them.
SETS: dict[str, tuple[str, ...]] = {
    "base": (), "hin": ("hin",), "hin-swin": ("hin", "swin"), "all": ("hin", "swin", "ib")
}  # fmt: skip
_SET_LABELS = {"base": "convolutions", "hin": "+ hin", "hin-swin": "+ swin", "all": "+ ib"}
_PART = 1
_NUM_DRAWS = 24  # steps over which memory is averaged where one operator is sampled
_FULL_WIDTH = 100.0  # logit of gamma
_LABELS = {"mixture": "mixture (Eqs. 3, 4)", "gumbel": "gumbel (Eqs. 5, 7)", "sampled": "sampled (Eqs. 5, 8)"}
_COLOURS = {"mixture": VERMILION, "gumbel": GREEN, "sampled": BLUE}


def is_searched(estimator: str, added: str) -> bool:
    """Tell whether a variant is searched: the sampled estimator with every set, the others with all operators."""
    return estimator == "sampled" or added == "all"


def run(job: CellJob) -> Values:
    """Count the memory of a step; search, retrain and score where the variant asks for it.

    Raises:
        ValueError: `space.candidate_ops` has nothing besides the special operators.
    """
    estimator, _, added = job.variant.partition("-")
    base = [name for name in job.config.space.candidate_ops if name not in SETS["all"]]
    if not base:
        raise ValueError(f"`space.candidate_ops` must name an operator besides {', '.join(SETS['all'])}, got none")
    config = regardless_of_cost(job.config).with_settings(
        {"search.estimator": estimator, "space.candidate_ops": [*base, *SETS[added]]}
    )
    values: Values = {"num_operators": len(config.space.candidate_ops)} | step_memory(job, config)
    return values | search_network(job, config) if is_searched(estimator, added) else values


def measure(job: CellJob) -> Values:
    """Time the network found; a variant that is not searched has none."""
    return measure_searched(job) if (job.folder / GENOTYPE_FILE).exists() else {}


def step_memory(job: CellJob, config: Config) -> Values:
    """Return `memory_mb`, what a step keeps on average, and `peak_memory_mb`, the largest of them."""
    device = torch.device(config.device)
    prior = load_prior(config.prior.weights, device=device)
    few = config.with_settings({"search.num_patches": 2 * config.search.batch_size})
    data = part_data(config, search_inputs(job, few, prior), _PART)
    supernet, generator = new_supernet(_PART, space_of(config, prior.num_channels), config.seed)
    supernet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        supernet.arch.gamma[:, 0] = _FULL_WIDTH

    def forward() -> torch.Tensor:
        return sampled_l_dp(supernet, data, config.search, "architecture", generator=generator, with_gradient=True)

    num_draws = _NUM_DRAWS if config.search.estimator == "sampled" else 1  # the others run everything in every step
    megabytes = [saved_bytes(forward, supernet.parameters())[1] / 1e6 for _ in range(num_draws)]
    return {"memory_mb": fmean(megabytes), "peak_memory_mb": max(megabytes)}


def draw(values: ValuesBySeed, folder: Path) -> list[Path]:
    """Draw Fig. 9: quality and memory as operators are added, memory of the three gradients with all operators."""
    figure, ((left, right),) = new_figure(1, 2, inches=(8.6, 3.4))

    def mean(variant: str, key: str) -> float:
        return fmean(of_seed[variant][key] for of_seed in values.values())

    positions = range(len(SETS))
    for offset, estimator in ((-0.18, "mixture"), (0.18, "sampled")):
        heights = [mean(f"{estimator}-{added}", "memory_mb") for added in SETS]
        left.bar([x + offset for x in positions], heights, width=0.34, color=_COLOURS[estimator], alpha=0.35,
                 label=f"memory, {estimator}")  # fmt: skip
    left.set_xticks(list(positions), [_SET_LABELS[added] for added in SETS])
    left.set_ylabel("kept for the backward pass, MB")
    quality = left.twinx()
    for of_seed in values.values():
        quality.plot(positions, [of_seed[f"sampled-{added}"]["psnr_db"] for added in SETS], "o", color=INK, alpha=0.4)
    quality.plot(positions, [mean(f"sampled-{added}", "psnr_db") for added in SETS], "-", color=INK,
                 label="PSNR, sampled; a dot per seed")  # fmt: skip
    quality.set_ylabel("PSNR, dB")
    figure.legend(loc="outside lower left", ncols=3, frameon=False)
    left.set_title("(a) as special operators are added")
    bars = [mean(f"{estimator}-all", "memory_mb") for estimator in ESTIMATORS]
    right.bar(range(len(ESTIMATORS)), bars, width=0.6, color=[_COLOURS[estimator] for estimator in ESTIMATORS])
    right.set_xticks(range(len(ESTIMATORS)), [_LABELS[estimator].replace(" (", "\n(") for estimator in ESTIMATORS])
    right.set_ylabel("kept for the backward pass, MB")
    right.set_title("(b) all operators")
    return [save_figure(figure, folder, "memory_and_quality")]


EXPERIMENT = Experiment(
    name="estimators",
    title="memory and quality of three gradients of alpha (Table II, Fig. 9)",
    description=(
        "What an architecture step keeps for its backward pass, with convolutions and skip on offer, and with hin, "
        "swin and ib added one after the other (all cells at full width; the mean over samples where operators are "
        "sampled, and the largest). Networks are searched (lambda 0) with the sampled gradient and every set, and "
        "with all three and all operators, then retrained from scratch; same seeds, patches and steps. Gumbel samples"
        " as in the literature run one operator only; the literal Eq. (7) needs them all and is what is measured."
    ),
    variants=tuple(
        Variant(name=f"{estimator}-{added}", label=f"{_LABELS[estimator]}, {_SET_LABELS[added]}")
        for estimator in ESTIMATORS for added in SETS
    ),
    columns=(
        Column(key="num_operators", title="operators", digits=0),
        Column(key="memory_mb", title="memory, MB", digits=1),
        Column(key="peak_memory_mb", title="largest, MB", digits=1),
        PSNR, *COST_COLUMNS, ENTROPY,
    ),
    claims=(
        Claim(text="the mixture's memory grows as special operators are added",
              estimate=compare("memory_mb", "mixture-all", "mixture-base", relative=True), unit="of that without them",
              threshold=0.1),
        Claim(text="Gumbel samples need less memory than the mixture",
              estimate=compare("memory_mb", "mixture-all", "gumbel-all", relative=True), unit="of the latter",
              threshold=0.01),
        Claim(text="samples of one operator need less memory than Gumbel samples",
              estimate=compare("memory_mb", "gumbel-all", "sampled-all", relative=True), unit="of the latter",
              threshold=0.01),
        Claim(text="networks get better as special operators are added",
              estimate=compare("psnr_db", "sampled-all", "sampled-base"), unit="dB"),
    ),
    run=run,
    measure=measure,
    draw=draw,
)  # fmt: skip
