"""Can a search see what counts? Rank correlations between proxies and the PSNR after retraining.

Not in the paper, and under all of it: Algorithm 1 prefers architectures by L_dp with the supernet's weights. Random
architectures of near-equal predicted milliseconds are scored with everything that a search can see, then trained from
scratch and from inherited weights, all with the same steps. Every seed has supernets and trainings of its own, of the
same architectures: what counts is the mean over seeds. Kendall's tau says how far the orders agree.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.experiments.drawing import new_figure, save_figure
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Summary, Values, ValuesBySeed, Variant
from pipeline.experiments.intervals import Estimate
from pipeline.experiments.networks import PSNR, patch_source, train_and_score, with_l1_alone
from pipeline.experiments.random_architectures import SHARED_SETTINGS, shared_architectures
from pipeline.experiments.rank_correlation import attainable_tau, estimate, kendall_tau, pearson
from pipeline.experiments.searches import search_inputs
from pipeline.figure_style import BLUE, GREY, VERMILION
from pipeline.losses import feature_distance
from pipeline.markdown import markdown_row
from pipeline.priors import NUM_PARTS, Prior, load_prior
from pipeline.search_inputs import SearchInputs, predicted_ms, space_of
from pipeline.shared_supernet import inherited_network
from pipeline.training import Trainer
from search_space import DenoisingNetwork, build_network, genotype_macs, genotype_num_parameters

NUM_ARCHITECTURES = 30
_TUNING_SHARE = 0.1  # of a retraining's steps
_BATCH_SIZE = 16  # of the patches that L_dp is measured on
_MAX_PATCHES = 512  # with their features, 4.5 GB at the paper's scale

# What a search can see, by key; those of False are better when they are smaller.
PROXIES: dict[str, tuple[str, bool]] = {
    **{f"distance_part{i}": (f"L_dp of part {i}", False) for i in range(NUM_PARTS)},
    "distance": ("L_dp, sum of the parts", False),
    "assembled_psnr_db": ("PSNR with inherited weights", True),
    **{f"swapped_psnr_db_part{i}": (f"PSNR of the prior with part {i} in it", True) for i in range(NUM_PARTS)},
    "tuned_psnr_db": ("PSNR after a short tuning", True),
    "macs": ("MACs", True),
    "num_parameters": ("parameters", True),
    "predicted_ms": ("predicted ms", True),
}
# What counts, by name: in words, and the PSNR that is averaged over the seeds.
TARGETS: dict[str, tuple[str, str]] = {
    "scratch": ("trained from scratch", "psnr_db"),
    "inherited": ("trained from inherited weights", "inherited_psnr_db"),
}


def run(job: CellJob) -> Values:
    """Score one architecture with every proxy, and after both trainings."""
    config = _with_cached_features(with_l1_alone(job.config, job.config.experiment.proxy_epochs))
    prior = load_prior(config.prior.weights, device=config.device)
    space = space_of(config, prior.num_channels)
    inputs = search_inputs(job, config, prior)
    genotypes, supernets = shared_architectures(job, config, space, inputs, num=NUM_ARCHITECTURES)
    genotype = genotypes[int(job.variant)]
    size = config.latency.image_size
    values: Values = {
        "macs": float(sum(genotype_macs(genotype, height=size, width=size))),
        "num_parameters": float(sum(genotype_num_parameters(genotype))),
        "predicted_ms": predicted_ms(job.table, genotype, size),
    }
    network = inherited_network(genotype, supernets).to(config.device).eval()
    distances = [_distance(network, inputs, index, config.device) for index in range(NUM_PARTS)]
    values |= {f"distance_part{index}": distance for index, distance in enumerate(distances)}
    values["distance"] = sum(distances)
    values["assembled_psnr_db"] = _psnr_db(job, config, network)
    for index in range(NUM_PARTS):
        swapped = _Swapped(prior, network.parts[index], index)
        values[f"swapped_psnr_db_part{index}"] = _psnr_db(job, config, swapped)
    values["tuned_psnr_db"] = _tuned_psnr_db(job, config, inherited_network(genotype, supernets))
    torch.manual_seed(config.seed)
    values |= _trained(job, config, build_network(genotype), "scratch")
    values["inherited_psnr_db"] = _trained(job, config, inherited_network(genotype, supernets), "inherited")["psnr_db"]
    return values


def _with_cached_features(config: Config) -> Config:
    """Return settings whose patches and features are kept, so that L_dp of all architectures is over the same ones.

    Where a preset computes features live, the patches are no more than `_MAX_PATCHES`.
    """
    if config.search.prior_features == "cached":
        return config
    num_patches = min(config.search.num_patches, _MAX_PATCHES)
    return config.with_settings({"search.prior_features": "cached", "search.num_patches": num_patches})


def agreement(values: ValuesBySeed, proxy: str, target: str) -> Estimate:
    """Return Kendall's tau between a proxy and a target over the architectures, signed so that 1 is the best.

    The proxy is what one seed sees, the target the mean of all; averaged over the seeds.
    """
    sign = 1 if PROXIES[proxy][1] else -1
    psnr = _numbers(values, TARGETS[target][1]).mean(axis=0)
    return estimate([np.stack([x, psnr]) for x in _numbers(values, proxy)], lambda x, y: sign * kendall_tau(x, y))


def advantage(values: ValuesBySeed, proxy: str, other: str, target: str) -> Estimate:
    """Return by how much tau of one proxy exceeds that of another, for the same architectures."""
    sign, other_sign = (1 if PROXIES[name][1] else -1 for name in (proxy, other))
    psnr = _numbers(values, TARGETS[target][1]).mean(axis=0)
    return estimate(
        [np.stack([x, y, psnr]) for x, y in zip(_numbers(values, proxy), _numbers(values, other), strict=True)],
        lambda x, y, psnr: sign * kendall_tau(x, psnr) - other_sign * kendall_tau(y, psnr),
    )


def reliability(values: ValuesBySeed, target: str) -> tuple[Estimate, Estimate] | None:
    """Return Kendall's tau and Pearson's correlation between trainings of two seeds, the mean over all pairs of seeds.

    None with one seed.
    """
    pairs = [np.stack(pair) for pair in combinations(_numbers(values, TARGETS[target][1]), 2)]
    return (estimate(pairs, kendall_tau), estimate(pairs, pearson)) if pairs else None


def summarise(values: ValuesBySeed) -> Summary:
    """Make the table of all rank correlations, with what chance in training leaves attainable."""
    found = {(proxy, target): agreement(values, proxy, target) for proxy in PROXIES for target in TARGETS}
    rows = [{"proxy": proxy, "target": target} | vars(tau) for (proxy, target), tau in found.items()]
    titles = ["what a search can see", *(f"tau, {label}" for label, _ in TARGETS.values())]
    lines = [markdown_row(titles), markdown_row(["---", *["---:"] * len(TARGETS)])]
    for proxy, (label, _) in PROXIES.items():
        lines.append(markdown_row([label, *(_interval_text(found[proxy, target]) for target in TARGETS)]))
    ms, num_steps = _numbers(values, "predicted_ms"), int(_numbers(values, "num_steps").max())
    paragraphs = [
        f"Kendall's tau over {ms.shape[1]} architectures of {ms.min():.2f} to {ms.max():.2f} predicted ms, +1 where "
        f"the proxy orders them as training does: what one seed sees against the mean PSNR of {len(values)} trainings "
        f"of {num_steps} steps, averaged over the seeds, with the 95 % bootstrap interval over the architectures."
    ]
    for target, (label, key) in TARGETS.items():
        reliable = reliability(values, target)
        paragraphs.append(f"*{label.capitalize()}*: {_chance_sentence(_numbers(values, key), reliable)}")
        for name, number in zip(("tau", "Pearson"), reliable or (), strict=False):
            rows.append({"proxy": f"{key} of another seed ({name})", "target": target} | vars(number))
    text = "\n".join(lines) + "\n\n" + "\n\n".join(paragraphs) + "\n"
    return Summary(name="rank_correlations", frame=pd.DataFrame(rows), markdown=text)


def _chance_sentence(psnr: np.ndarray, reliable: tuple[Estimate, Estimate] | None) -> str:
    """Say how much chance there is in a training, by (seeds, A) of them, and how well a proxy could do."""
    if reliable is None:
        return "one seed does not tell how much chance there is in a training."
    tau, r = reliable
    return (
        f"means spread by {np.std(psnr.mean(axis=0), ddof=1):.2f} dB (standard deviation); chance in one training, by "
        f"{_chance(psnr):.2f} dB. Trainings of two seeds correlate with r {_interval_text(r)}, tau "
        f"{_interval_text(tau)}: a proxy that knew what trainings come to on average would reach a tau of about "
        f"{attainable_tau(r.value, num_averaged=len(psnr)):.2f} with the mean of these."
    )


def draw(values: ValuesBySeed, folder: Path) -> list[Path]:
    """Draw tau of every proxy with its interval, a column per target; and what chance in training leaves attainable."""
    figure, ((*axes,),) = new_figure(1, len(TARGETS), inches=(11, 4.5))
    labels = [label for label, _ in PROXIES.values()]
    for axis, (target, (title, _)) in zip(axes, TARGETS.items(), strict=True):
        for row, proxy in enumerate(PROXIES):
            tau = agreement(values, proxy, target)
            axis.plot([tau.low, tau.high], [row, row], color=BLUE, linewidth=2)
            axis.plot([tau.value], [row], "o", color=BLUE)
        axis.axvline(0, color=GREY, linewidth=1)
        if found := reliability(values, target):
            attainable = attainable_tau(found[1].value, num_averaged=len(values))
            axis.axvline(attainable, color=VERMILION, linewidth=1, linestyle="--")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
        axis.invert_yaxis()
        axis.set_xlim(-1, 1)
        axis.set_xlabel("Kendall's tau (dashed: attainable with trainings this reliable)")
        axis.set_title(title)
    return [save_figure(figure, folder, "rank_correlations")]


class _Swapped(nn.Module):
    """The prior with one searched part in place of its own."""

    def __init__(self, prior: Prior, part: nn.Module, index: int) -> None:
        super().__init__()
        self.prior, self.part, self.index = prior, part, index

    def forward(self, noisy: Tensor) -> Tensor:
        multiple = self.prior.size_multiple
        height, width = noisy.shape[-2:]
        padding = (0, -width % multiple, 0, -height % multiple)
        x = nn.functional.pad(noisy, padding, mode="replicate")
        for index in range(NUM_PARTS):
            x = self.part(x) if index == self.index else self.prior.run_part(index, x)
        return noisy + x[..., :height, :width]


@torch.inference_mode()
def _distance(network: DenoisingNetwork, inputs: SearchInputs, index: int, device: str) -> float:
    """Return L_dp (Eq. 11) of one part over all patches of D_archi."""
    assert inputs.patches is not None, "the experiment caches features"
    signals = inputs.patches.signals
    x, target = (torch.from_numpy(signals[index + step][inputs.patches.num_weights :]) for step in (0, 1))
    outputs = torch.cat([network.parts[index](batch.to(device)).cpu() for batch in x.split(_BATCH_SIZE)])
    return feature_distance(outputs, target).item()


def _psnr_db(job: CellJob, config: Config, network: nn.Module) -> float:
    images, sigma = job.inputs.validation_images, config.noise.validation_sigma
    size = config.evaluate.tile_size
    return mean_score(evaluate_denoiser(network, images, sigma=sigma, device=config.device, tile_size=size)).psnr_db


def _tuned_psnr_db(job: CellJob, config: Config, network: DenoisingNetwork) -> float:
    steps = max(1, round(_TUNING_SHARE * config.retrain.num_epochs * config.retrain.steps_per_epoch))
    settings = config.with_settings({"retrain.num_epochs": 1, "retrain.steps_per_epoch": steps}).retrain
    source = patch_source(config, job.inputs.training_images)
    Trainer(network, source, settings, prior=None, seed=config.seed, device=torch.device(config.device)).run_epoch()
    return _psnr_db(job, config, network.eval())


def _trained(job: CellJob, config: Config, network: DenoisingNetwork, name: str) -> Values:
    folder = job.folder / name
    folder.mkdir(exist_ok=True)
    values = train_and_score(replace(job, folder=folder), config, network)
    return {key: values[key] for key in ("psnr_db", "ssim", "num_steps")}


def _numbers(values: ValuesBySeed, key: str) -> np.ndarray:
    """Return one of the numbers of every architecture, (seeds, A)."""
    return np.array([[cell[key] for cell in of_seed.values()] for of_seed in values.values()])


def _chance(psnr: np.ndarray) -> float:
    """Return the standard deviation of (seeds, A) that neither seed nor architecture explains."""
    rest = psnr - psnr.mean(axis=0) - psnr.mean(axis=1, keepdims=True) + psnr.mean()
    return float(np.sqrt((rest**2).sum() / ((psnr.shape[0] - 1) * (psnr.shape[1] - 1))))


def _interval_text(found: Estimate) -> str:
    text = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def _claim(text: str, statistic: Callable[[ValuesBySeed], Estimate | None], *, is_papers: bool = False) -> Claim:
    """Return a claim about a number that has a bootstrap interval over architectures."""
    return Claim(text=text, unit="of tau", is_papers=is_papers, estimate=statistic)


def _reliability_tau(values: ValuesBySeed) -> Estimate | None:
    found = reliability(values, "scratch")
    return None if found is None else found[0]


EXPERIMENT = Experiment(
    name="proxies",
    title="what a search can see, and what counts",
    description=(
        f"{NUM_ARCHITECTURES} random architectures of near-equal predicted milliseconds, the same for all seeds, with "
        "weights inherited from supernets trained once per seed. Each is trained from scratch and from inherited "
        f"weights, with the same steps; a short tuning has {_TUNING_SHARE:.0%} of them. The paper has no such table; "
        "that L_dp orders architectures is what its search stands on."
    ),
    variants=tuple(Variant(name=f"{i:02}", label=f"architecture {i:02}") for i in range(NUM_ARCHITECTURES)),
    columns=(
        Column(key="predicted_ms", title="predicted, ms"),
        Column(key="macs", title="MACs, G", scale=1e9, digits=3),
        Column(key="distance", title="L_dp, sum", digits=3),
        Column(key="assembled_psnr_db", title="PSNR inherited, dB"),
        Column(key="tuned_psnr_db", title="PSNR tuned, dB"),
        PSNR,
        Column(key="inherited_psnr_db", title="PSNR trained from inherited, dB"),
    ),
    claims=(
        _claim("L_dp, summed, orders architectures as training from scratch does",
               lambda values: agreement(values, "distance", "scratch"), is_papers=True),
        _claim("L_dp, summed, orders architectures as training from inherited weights does",
               lambda values: agreement(values, "distance", "inherited")),
        _claim("L_dp, summed, orders them better than the number of parameters does",
               lambda values: advantage(values, "distance", "num_parameters", "scratch")),
        _claim("PSNR after a short tuning orders them better than L_dp, summed, does",
               lambda values: advantage(values, "tuned_psnr_db", "distance", "scratch")),
        _claim("one training from scratch orders architectures as that of another seed does", _reliability_tau),
    ),
    run=run,
    needs_prices=True,
    collect_settings=SHARED_SETTINGS,
    summarise=summarise,
    draw=draw,
)  # fmt: skip
