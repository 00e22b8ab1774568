"""Experiments that search networks, a cell at a time with the tiny preset; `prior` with its actors is in
`test_experiment_command`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from latency import DeviceInfo, LatencyTable, Timing
from pipeline import part_search
from pipeline.baselines import build_baseline
from pipeline.data.part_data import CachedFeatures
from pipeline.data.patches import PatchSource
from pipeline.experiments import CellJob, load_experiment, nas
from pipeline.experiments.clean_patches import FixedPatches, clean_patches
from pipeline.experiments.estimators import is_searched, step_memory
from pipeline.experiments.networks import train
from pipeline.experiments.searches import GENOTYPE_FILE, find_network, search_inputs
from pipeline.experiments.whole_search import WholeSearch, WholeSupernet
from pipeline.peers import ClearerSpace, ClearerSupernet
from pipeline.priors import load_prior
from pipeline.search_inputs import cost_models, space_of
from pipeline.training import Trainer
from search_space import (
    DenoisingNetwork,
    Genotype,
    PartSupernet,
    SearchSpace,
    build_network,
    sample_genotype,
    space_op_specs,
)

SMALL = ("search.num_epochs=2", "search.num_patches=8", "retrain.num_epochs=1", "retrain.steps_per_epoch=2")
TRAINED = {"psnr_db", "ssim", "num_parameters", "macs", "num_steps"}


@pytest.mark.parametrize("variant", ["resolution", "operator", "searched", "random"])
def test_levels(make_job: Callable[..., CellJob], variant: str) -> None:
    experiment = load_experiment("levels")
    job = make_job(variant, *SMALL)
    values = experiment.run(job)
    assert values.keys() >= TRAINED
    assert ("entropy_alpha" in values) == (variant in ("resolution", "searched"))
    assert ("entropy_beta" in values) == (variant in ("operator", "searched"))
    assert experiment.measure(job)["measured_ms"] > 0
    assert experiment.run(make_job(variant, *SMALL)) == values


def prices(space: SearchSpace, size: int) -> LatencyTable:
    """Return invented prices: a pixel and a channel cost as much everywhere."""
    timings = {
        spec: Timing(median_ms=1e-6 * spec.height * spec.width * spec.in_channels, iqr_ms=0.0, num_repeats=1)
        for spec in space_op_specs(space, height=size, width=size)
    }
    return LatencyTable(DeviceInfo.current(torch.device("cpu"), num_threads=1), timings)


def test_a_network_keeps_to_the_budget_of_the_preset(make_job: Callable[..., CellJob]) -> None:
    job = make_job("searched", *SMALL, "search.cost=latency", "search.derive_samples=16", "search.target_ms=null")
    space = space_of(job.config, 16)
    table = prices(space, job.config.latency.image_size)
    job = replace(job, inputs=replace(job.inputs, table=table))
    costs = cost_models(job.config, space, table.__getitem__)

    def found_ms(target_ms: float | None) -> float:
        for checkpoint in job.folder.glob("part*.pt"):
            checkpoint.unlink()
        genotype, _ = find_network(job, job.config.with_settings({"search.target_ms": target_ms}))
        return sum(cost.of(part) for cost, part in zip(costs, genotype.parts, strict=True))

    budget = 1.5 * sum(cost.minimum_frame_cost for cost in costs)
    assert found_ms(budget) <= budget < found_ms(None)


@pytest.mark.parametrize("variant", ["none", "parameters", "latency"])
def test_cost(make_job: Callable[..., CellJob], variant: str) -> None:
    experiment = load_experiment("cost")
    job = make_job(variant, *SMALL)
    table = prices(space_of(job.config, 16), job.config.latency.image_size)
    values = experiment.run(replace(job, inputs=replace(job.inputs, table=table)))
    assert values.keys() >= TRAINED | {"predicted_ms", "entropy_alpha"}
    genotype = Genotype.load(job.folder / GENOTYPE_FILE)
    assert values["num_parameters"] > 0 and genotype.num_channels == 16


def test_cost_needs_a_strength(make_job: Callable[..., CellJob]) -> None:
    with pytest.raises(ValueError, match="`search.complexity_weight` must be above 0 to compare regularisers, got 0"):
        load_experiment("cost").run(make_job("macs", "search.complexity_weight=0"))


@pytest.mark.parametrize("variant", ["mixture-base", "gumbel-hin", "sampled-hin"])
def test_estimators(make_job: Callable[..., CellJob], variant: str) -> None:
    experiment = load_experiment("estimators")
    job = make_job(variant, *SMALL)
    values = experiment.run(job)
    estimator, _, added = variant.partition("-")
    assert values["num_operators"] == (3 if added == "base" else 4)
    assert 0 < values["memory_mb"] <= values["peak_memory_mb"]
    assert (values.keys() >= TRAINED) == is_searched(estimator, added)
    assert bool(experiment.measure(job)) == is_searched(estimator, added)


def test_the_memory_of_sampled_operators_is_the_least(make_job: Callable[..., CellJob]) -> None:
    megabytes = {}
    for estimator in ("mixture", "gumbel", "sampled"):
        job = make_job(estimator, *SMALL)
        megabytes[estimator] = step_memory(job, job.config.with_settings({"search.estimator": estimator}))["memory_mb"]
    assert megabytes["gumbel"] == pytest.approx(megabytes["mixture"], rel=0.01)
    assert megabytes["sampled"] < 0.8 * megabytes["mixture"]


def test_the_figure_of_estimators_is_drawn(tmp_path: Path) -> None:
    experiment = load_experiment("estimators")
    values = {
        seed: {variant.name: {"memory_mb": 1.0 + i, "psnr_db": 30.0 + seed} for i, variant in
               enumerate(experiment.variants)}
        for seed in (0, 1)
    }  # fmt: skip
    (path,) = experiment.draw(values, tmp_path)
    assert path == tmp_path / "figures" / "memory_and_quality.png"
    assert path.stat().st_size > 10_000


def test_an_estimator_needs_an_operator_besides_the_special_ones(make_job: Callable[..., CellJob]) -> None:
    with pytest.raises(ValueError, match="must name an operator besides hin, swin, ib, got none"):
        load_experiment("estimators").run(make_job("sampled-base", "space.candidate_ops=[hin, ib]"))


def test_the_whole_begins_as_its_parts_do(tiny_space: SearchSpace) -> None:
    whole = WholeSupernet(tiny_space, seed=3)
    for part_index, part in enumerate(whole.supernets()):
        torch.manual_seed(3 * 3 + part_index)  # as `search_part` does
        alone = PartSupernet(part_index, tiny_space, generator=torch.Generator().manual_seed(3 * 3 + part_index))
        assert all(torch.equal(p, q) for p, q in zip(part.parameters(), alone.parameters(), strict=True))


def test_the_whole_learns_from_the_patches_of_the_parts(make_job: Callable[..., CellJob]) -> None:
    job = make_job("whole", "search.num_patches=24")
    config = job.config
    patches = search_inputs(job, config, load_prior("mirnet16")).patches
    assert patches is not None
    weights, architecture = clean_patches(job, config).values()
    assert torch.equal(torch.cat([weights.noisy, architecture.noisy]), torch.from_numpy(patches.signals[0]))
    assert weights.noisy.shape == weights.clean.shape == (patches.num_weights, 3, 16, 16)
    assert (weights.noisy - weights.clean).std().item() == pytest.approx(25 / 255, rel=0.05)  # the noise
    drawn, _ = weights.sample(64, torch.Generator().manual_seed(0))
    assert all((patch == weights.noisy).all(dim=(1, 2, 3)).any() for patch in drawn)


def test_patches_are_fresh_where_those_of_the_parts_are(make_job: Callable[..., CellJob]) -> None:
    job = make_job("whole", "search.prior_features=live")
    assert all(isinstance(patches, PatchSource) for patches in clean_patches(job, job.config).values())


def test_a_search_of_the_whole_lowers_the_loss_and_decides(make_job: Callable[..., CellJob]) -> None:
    job = make_job("whole", "search.num_patches=48", "search.num_epochs=4", "search.weight_learning_rate=3e-3")
    space = space_of(job.config, 16)
    whole = WholeSupernet(space, seed=0)
    search = WholeSearch(whole, clean_patches(job, job.config), job.config.search, seed=0)
    arch = {name: p.clone() for part in whole.supernets() for name, p in part.arch.named_parameters()}

    def loss() -> float:
        with torch.no_grad():
            return sum(search.loss("weights", with_gradient=False).item() for _ in range(8))

    before = loss()
    genotype = search.run()
    assert loss() < 0.8 * before
    assert genotype.space.num_channels == 16
    assert all(not torch.equal(arch[name], p) for name, p in whole.supernets()[2].arch.named_parameters())


@pytest.mark.parametrize("variant", ["searched", "clearer", "hinas", "random"])
def test_nas(make_job: Callable[..., CellJob], variant: str) -> None:
    experiment = load_experiment("nas")
    found = []
    for _ in range(2):
        job = make_job(variant, *SMALL, "experiment.nas_epochs=2")
        found.append(experiment.run(job))
        assert found[-1].pop("search_seconds") > 0
        assert found[-1]["num_steps"] == 4  # its own number of epochs, of two steps each
        assert experiment.measure(job)["measured_ms"] > 0
    assert found[0].keys() == TRAINED
    assert found[0] == found[1]


@pytest.mark.parametrize("variant", ["searched", "clearer", "hinas", "random"])
def test_every_search_draws_as_many_batches_of_the_same_patches(
    make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    """Random search draws the batches for ranking once and shows them to every network."""
    job = make_job(variant, "search.num_epochs=2", "search.num_patches=32", "search.warmup_share=0.5")
    batch_size = job.config.search.batch_size
    drawn = []

    def counted(source: type) -> None:
        sample = source.sample

        def sample_and_count(self: object, *request: object) -> object:
            drawn.append(sample(self, *request))
            return drawn[-1]

        monkeypatch.setattr(source, "sample", sample_and_count)

    counted(CachedFeatures)
    counted(FixedPatches)
    monkeypatch.setattr(nas, "retrain", lambda *_: {})
    monkeypatch.setattr(nas, "train_and_score", lambda *_: {})
    load_experiment("nas").run(job)
    assert {len(noisy) for noisy, _ in drawn} == {batch_size}
    num_drawn = len(drawn) / 3 if variant == "searched" else len(drawn)
    if variant == "random":
        share = nas.num_batches(job.config.search) // nas.NUM_TRIED
        num_drawn += (nas.NUM_TRIED - 1) * round(nas.RANKING_SHARE * share)
    assert num_drawn == nas.num_batches(job.config.search) == 12


def test_random_search_keeps_what_the_threshold_of_the_search_allows(
    make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Genotype] = []

    def recorded(genotype: Genotype) -> DenoisingNetwork:
        drawn.append(genotype)
        return build_network(genotype)

    monkeypatch.setattr(nas, "build_network", recorded)
    load_experiment("nas").run(make_job("random", *SMALL, "experiment.nas_epochs=2", "search.threshold=0.8"))
    cells = [cell for genotype in drawn[: nas.NUM_TRIED] for part in genotype.parts for cell in part.cells]
    assert {len(cell.resolution_pathways) for cell in cells} == {1, 2}


def test_a_search_is_timed_whole_where_its_cell_was_interrupted(
    make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job("searched", *SMALL)
    found = load_experiment("nas").run(job)
    (job.folder / "training.pt").unlink()
    epochs = []
    run_epoch = part_search._PartSearch.run_epoch

    def counted(self: part_search._PartSearch, epoch: int) -> dict[str, float]:
        epochs.append(epoch)
        return run_epoch(self, epoch)

    monkeypatch.setattr(part_search._PartSearch, "run_epoch", counted)
    again = load_experiment("nas").run(job)  # a checkpoint of every part is there
    assert epochs == [0, 1] * 3
    assert again["psnr_db"] == found["psnr_db"]


@pytest.mark.parametrize("kind", ["ours", "peer"])
def test_the_training_of_another_network_is_begun_anew(
    make_job: Callable[..., CellJob], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    job = make_job("searched", "retrain.num_epochs=2", "retrain.steps_per_epoch=1", "retrain.distill_share=0")
    generator = torch.Generator().manual_seed(0)

    def found() -> nn.Module:
        if kind == "ours":
            return build_network(sample_genotype(space_of(job.config, 16), generator=generator))
        supernet = ClearerSupernet(ClearerSpace(num_channels=(4, 8)))
        nn.init.normal_(supernet.arch["alpha"], generator=generator)
        return build_baseline("clearer", genotype=supernet.derive())

    trained = []
    run_epoch = Trainer.run_epoch

    def counted(self: Trainer) -> dict[str, float]:
        trained.append(self.network)
        return run_epoch(self)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    first, other = found(), found()
    train(job, job.config, first)
    train(job, job.config, first)  # is finished
    assert trained == [first, first]
    train(job, job.config, other)
    assert trained == [first, first, other, other]
