"""Can a search see what counts? Rank correlations between proxies and the PSNR after retraining.

Not in the paper, and under all of it: Algorithm 1 prefers architectures by L_dp with the supernet's weights. Random
architectures of near-equal predicted milliseconds are scored with everything that a search can see, then trained from
scratch and from inherited weights, all with the same steps; Kendall's tau says how far the orders agree.
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latency import predict_latency_ms
from pipeline.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from pipeline.config import Config
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.experiments.drawing import new_figure, save_figure
from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, Variant
from pipeline.experiments.networks import PSNR, patch_source, train_and_score
from pipeline.experiments.searches import search_inputs
from pipeline.losses import feature_distance
from pipeline.priors import NUM_PARTS, Prior, load_prior
from pipeline.search import SearchInputs, part_data, space_of
from pipeline.shared_supernet import load_supernet, train_shared_supernet
from pipeline.training import Trainer
from search_space import (
    DenoisingNetwork,
    Genotype,
    PartNetwork,
    PartSupernet,
    SearchSpace,
    build_network,
    genotype_macs,
    genotype_num_parameters,
    genotype_op_specs,
    inherit_weights,
    sample_genotype,
)

NUM_ARCHITECTURES = 30
_NUM_DRAWS = 1500  # of which those nearest to the wanted milliseconds are kept
_SKIP_SHARES = (0.1, 0.3, 0.5, 0.7)  # random networks of one weight of `skip` would all cost about the same
_TUNING_SHARE = 0.1  # of a retraining's steps
_BATCH_SIZE = 16  # of the patches that L_dp is measured on
_NUM_RESAMPLES = 2000

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
TARGETS = {"psnr_db": "trained from scratch", "inherited_psnr_db": "trained from inherited weights"}


def run(job: CellJob) -> Values:
    """Score one architecture with every proxy, and after each of three trainings."""
    config = job.config.with_settings({"retrain.distill_share": 0.0})
    prior = load_prior(config.prior.weights)
    space = space_of(config, prior.num_channels)
    inputs = search_inputs(job, config, prior)
    genotypes, supernets = _shared(job, config, space, inputs)
    genotype = genotypes[int(job.variant)]
    size = config.latency.image_size
    values: Values = {
        "macs": float(sum(genotype_macs(genotype, height=size, width=size))),
        "num_parameters": float(sum(genotype_num_parameters(genotype))),
        "predicted_ms": _predicted_ms(job, genotype, size),
    }
    network = _inherited(genotype, supernets)
    distances = [_distance(network, inputs, index) for index in range(NUM_PARTS)]
    values |= {f"distance_part{index}": distance for index, distance in enumerate(distances)}
    values["distance"] = sum(distances)
    values["assembled_psnr_db"] = _psnr_db(job, config, network)
    for index in range(NUM_PARTS):
        swapped = _Swapped(prior, network.parts[index], index)
        values[f"swapped_psnr_db_part{index}"] = _psnr_db(job, config, swapped)
    values["tuned_psnr_db"] = _tuned_psnr_db(job, config, _inherited(genotype, supernets))
    torch.manual_seed(config.seed)
    values |= _trained(job, config, build_network(genotype), "scratch")
    values["inherited_psnr_db"] = _trained(job, config, _inherited(genotype, supernets), "inherited")["psnr_db"]
    other = config.with_settings({"seed": config.seed + 1000})
    torch.manual_seed(other.seed)
    values["again_psnr_db"] = _trained(job, other, build_network(genotype), "again")["psnr_db"]
    return values


def rank_correlation(values: Mapping[str, Values], proxy: str, target: str) -> float:
    """Return Kendall's tau between a proxy and a target over the architectures, signed so that 1 is the best."""
    keys = sorted(values)
    x, y = (np.array([[values[key][name] for key in keys]]) for name in (proxy, target))
    sign = 1 if proxy not in PROXIES or PROXIES[proxy][1] else -1
    return sign * float(kendall_tau(x, y)[0])


def kendall_tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return tau-b of every row of `x` and `y`, both (R, N); 0 where one of them is constant."""
    signs_x, signs_y = (np.sign(rows[:, :, None] - rows[:, None, :]) for rows in (x, y))
    norm = np.sqrt((signs_x**2).sum((1, 2)) * (signs_y**2).sum((1, 2)))
    return np.divide((signs_x * signs_y).sum((1, 2)), norm, out=np.zeros(len(x)), where=norm > 0)


def intervals(
    values: Mapping[int, Mapping[str, Values]], proxy: str, target: str, *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean tau over seeds and its 95 % bootstrap interval, architectures drawn again within each seed."""
    generator = np.random.default_rng(seed)
    resampled = np.zeros(_NUM_RESAMPLES)
    for of_seed in values.values():
        keys = sorted(of_seed)
        x, y = (np.array([of_seed[key][name] for key in keys]) for name in (proxy, target))
        draws = generator.integers(0, len(keys), (_NUM_RESAMPLES, len(keys)))
        resampled += kendall_tau(x[draws], y[draws])
    sign = 1 if proxy not in PROXIES or PROXIES[proxy][1] else -1
    mean = float(np.mean([rank_correlation(of_seed, proxy, target) for of_seed in values.values()]))
    low, high = np.quantile(sign * resampled / len(values), (0.025, 0.975))
    return mean, float(low), float(high)


def draw(values: Mapping[int, Mapping[str, Values]], folder: Path) -> list[Path]:
    """Draw tau of every proxy with its interval, one column per target; the ceiling is tau between two trainings."""
    figure, ((*axes,),) = new_figure(1, len(TARGETS), inches=(11, 4.5))
    ceiling = intervals(values, "again_psnr_db", "psnr_db")[0]
    labels = [label for label, _ in PROXIES.values()]
    for axis, (target, title) in zip(axes, TARGETS.items(), strict=True):
        for row, proxy in enumerate(PROXIES):
            mean, low, high = intervals(values, proxy, target)
            axis.plot([low, high], [row, row], color="tab:blue", linewidth=2)
            axis.plot([mean], [row], "o", color="tab:blue")
        axis.axvline(0, color="0.6", linewidth=1)
        axis.axvline(ceiling, color="tab:orange", linewidth=1, linestyle="--")
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
        axis.invert_yaxis()
        axis.set_xlim(-1, 1)
        axis.set_xlabel("Kendall's tau (orange: two trainings from scratch)")
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


def _shared(
    job: CellJob, config: Config, space: SearchSpace, inputs: SearchInputs
) -> tuple[list[Genotype], list[PartSupernet]]:
    """Return what all cells of a seed share, made by the first of them and kept beside their folders."""
    folder = job.folder.parent
    drawn, trained = folder / f"architectures-{config.seed}.json", folder / f"supernets-{config.seed}.pt"
    with _locked(folder / f"shared-{config.seed}.lock"):
        if not drawn.exists():
            genotypes = _near_equal(job, config, space)
            write_atomically(drawn, json.dumps([genotype.to_dict() for genotype in genotypes]))
        if not trained.exists():
            collect = config.collect
            weights = [
                train_shared_supernet(
                    index, space, part_data(config, inputs, index), num_steps=collect.shared_steps,
                    batch_size=collect.shared_batch_size, learning_rate=collect.shared_learning_rate, seed=config.seed,
                    device=torch.device("cpu"),
                )
                for index in range(NUM_PARTS)
            ]  # fmt: skip
            save_checkpoint(trained, {"parts": weights})
    supernets = []
    for index, part_weights in enumerate(load_checkpoint(trained)["parts"]):
        supernet = PartSupernet(index, space, generator=torch.Generator())
        load_supernet(supernet, part_weights)
        supernets.append(supernet.requires_grad_(False))
    return [Genotype.from_dict(record) for record in json.loads(drawn.read_text())], supernets


def _near_equal(job: CellJob, config: Config, space: SearchSpace) -> list[Genotype]:
    """Draw random architectures and keep those nearest to the budget, or to the median where there is none."""
    generator = torch.Generator().manual_seed(config.seed)
    others = {name: 1.0 for name in space.candidate_ops if name != "skip"}
    found: dict[str, tuple[float, Genotype]] = {}
    for number in range(_NUM_DRAWS):
        share = _SKIP_SHARES[number % len(_SKIP_SHARES)]
        weights = others | {"skip": share / (1 - share) * len(others)} if "skip" in space.candidate_ops else others
        genotype = sample_genotype(space, generator=generator, op_weights=weights)
        found[genotype.genotype_id] = (_predicted_ms(job, genotype, config.latency.image_size), genotype)
    target = config.search.target_ms or float(np.median([ms for ms, _ in found.values()]))
    nearest = sorted(found.values(), key=lambda pair: abs(pair[0] - target))[:NUM_ARCHITECTURES]
    return [genotype for _, genotype in nearest]


def _predicted_ms(job: CellJob, genotype: Genotype, size: int) -> float:
    assert job.inputs.table is not None, "the experiment asks for prices"
    specs = genotype_op_specs(genotype, height=size, width=size)
    return predict_latency_ms(job.inputs.table, [spec for part in specs for spec in part])


def _inherited(genotype: Genotype, supernets: Sequence[PartSupernet]) -> DenoisingNetwork:
    network = build_network(genotype)
    for part, supernet in zip(network.parts, supernets, strict=True):
        assert isinstance(part, PartNetwork)
        inherit_weights(part, supernet)
    return network.requires_grad_(True)


@torch.inference_mode()
def _distance(network: DenoisingNetwork, inputs: SearchInputs, index: int) -> float:
    """Return L_dp (Eq. 11) of one part over all patches of D_archi."""
    assert inputs.patches is not None, "the experiment caches features"
    signals = inputs.patches.signals
    x, target = (torch.from_numpy(signals[index + step][inputs.patches.num_weights :]) for step in (0, 1))
    outputs = torch.cat([network.parts[index](batch) for batch in x.split(_BATCH_SIZE)])
    return feature_distance(outputs, target).item()


def _psnr_db(job: CellJob, config: Config, network: nn.Module) -> float:
    images, sigma = job.inputs.validation_images, config.noise.validation_sigma
    return mean_score(evaluate_denoiser(network, images, sigma=sigma, device="cpu")).psnr_db


def _tuned_psnr_db(job: CellJob, config: Config, network: DenoisingNetwork) -> float:
    steps = max(1, round(_TUNING_SHARE * config.retrain.num_epochs * config.retrain.steps_per_epoch))
    settings = config.with_settings({"retrain.num_epochs": 1, "retrain.steps_per_epoch": steps}).retrain
    source = patch_source(config, job.inputs.training_images)
    Trainer(network, source, settings, prior=None, seed=config.seed, device=torch.device("cpu")).run_epoch()
    return _psnr_db(job, config, network.eval())


def _trained(job: CellJob, config: Config, network: DenoisingNetwork, name: str) -> Values:
    folder = job.folder / name
    folder.mkdir(exist_ok=True)
    values = train_and_score(replace(job, folder=folder), config, network)
    return {key: values[key] for key in ("psnr_db", "ssim", "num_steps")}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one cell at a time in; a process that dies lets go."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _tau(proxy: str, target: str) -> Callable[[Mapping[str, Values]], float]:
    return lambda values: rank_correlation(values, proxy, target)


EXPERIMENT = Experiment(
    name="proxies",
    title="what a search can see, and what counts",
    description=(
        f"{NUM_ARCHITECTURES} random architectures of near-equal predicted milliseconds, with weights inherited from "
        "supernets trained once per seed; each is trained from scratch, from inherited weights, and from scratch "
        "again with another seed, all with the same steps. Every line below is Kendall's tau over the architectures, "
        "signed so that +1 means the proxy orders them as the training does; its interval is over seeds, the figure's "
        "is a bootstrap over architectures. The last line is the ceiling: two trainings of the same architectures. "
        "The paper has no such table; that L_dp, summed over the parts, orders architectures is what its search "
        "stands on."
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
        Column(key="again_psnr_db", title="PSNR, other seed, dB"),
    ),
    claims=(
        *(
            Claim(text=f"{label} orders architectures as {title}", margin=_tau(proxy, target), unit="tau",
                  is_papers=proxy == "distance" and target == "psnr_db")
            for target, title in TARGETS.items()
            for proxy, (label, _) in PROXIES.items()
        ),
        Claim(text="one training from scratch orders architectures as another", margin=_tau("again_psnr_db", "psnr_db"),
              unit="tau", is_papers=False),
    ),
    run=run,
    needs_prices=True,
    draw=draw,
)  # fmt: skip
