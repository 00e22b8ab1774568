import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.peers import (
    HinasGenotype,
    HinasNetwork,
    HinasSpace,
    HinasSupernet,
)
from pipeline.peers.hinas_space import EDGES_PER_NODE, NUM_INPUTS, OPS

CPU = torch.device("cpu")
SPACE = HinasSpace(num_channels=4, num_layers=3, num_levels=3, num_nodes=2)
TINY = HinasSpace(num_channels=4, num_layers=2, num_levels=2, num_nodes=1)


def all_paths() -> list[tuple[int, ...]]:
    """Return every sequence of levels, one per layer."""
    paths: list[tuple[int, ...]] = [()]
    for options in SPACE.levels:
        paths = [(*p, level) for p in paths for level in options if abs(level - (p[-1] if p else 0)) <= 1]
    return paths


def seeded(seed: int) -> HinasGenotype:
    """Draw an architecture."""
    draw = random.Random(seed)

    def edges(node: int) -> tuple[tuple[int, str], ...]:
        sources = sorted(draw.sample(range(NUM_INPUTS + node), EDGES_PER_NODE))
        return tuple((source, draw.choice(OPS[:-1])) for source in sources)

    cells = tuple(tuple(map(edges, range(SPACE.num_nodes))) for _ in range(SPACE.num_layers))
    return HinasGenotype(num_channels=SPACE.num_channels, levels=draw.choice(all_paths()), cells=cells)


@pytest.fixture
def supernet(randomise: Any) -> HinasSupernet:
    supernet = HinasSupernet(SPACE)
    randomise(supernet)
    return supernet


def one_hot(genotype: HinasGenotype) -> dict[str, Tensor]:
    """The weights that leave only the choices of `genotype`: edges that it lacks are `none`."""
    alpha = torch.zeros(SPACE.num_layers, len(SPACE.edges), len(OPS))
    beta = torch.zeros(SPACE.num_layers, SPACE.num_levels, 3)
    final = torch.zeros(1, SPACE.num_levels)
    alpha[..., OPS.index("none")] = 1
    previous = 0
    for layer, (level, nodes) in enumerate(zip(genotype.levels, genotype.cells, strict=True)):
        beta[layer, level, previous - level + 1] = 1
        previous = level
        for node, edges in enumerate(nodes):
            for source, op in edges:
                row = alpha[layer, SPACE.edges.index((node, source))]
                row.zero_()
                row[OPS.index(op)] = 1
    final[0, previous] = 1
    return {"alpha": alpha, "beta": beta, "final": final}


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_derived_network_is_the_supernet_under_one_hot_choices(
    supernet: HinasSupernet, seed: int, is_training: bool, generator: torch.Generator
) -> None:
    genotype = seeded(seed)
    network = HinasNetwork(genotype).train(is_training)
    weights = supernet.skeleton.state_dict()
    network.skeleton.load_state_dict({name: weights[name] for name in network.skeleton.state_dict()})
    noisy = torch.rand(2, 3, 13, 18, generator=generator)
    expected = supernet.train(is_training)(noisy, one_hot(genotype))
    torch.testing.assert_close(network(noisy), expected, rtol=1e-5, atol=1e-5)


def test_derive_finds_what_the_logits_say(supernet: HinasSupernet) -> None:
    for seed in range(4):
        genotype = seeded(seed)
        weights = one_hot(genotype)
        with torch.no_grad():
            for name, logits in supernet.arch.items():
                logits.copy_(8 * weights[name])
        assert supernet.derive() == genotype


def test_the_path_is_the_likeliest_whole_one(supernet: HinasSupernet) -> None:
    """Against every path, its steps relative to chance; going back greedily from the likeliest end finds others."""
    generator = torch.Generator().manual_seed(0)
    num_greedy = 0
    for _ in range(20):
        with torch.no_grad():
            for logits in supernet.arch.values():
                logits.normal_(generator=generator)
        p = {name: values.detach() for name, values in supernet.probabilities().items()}
        relative = p["beta"] * supernet.has_source.sum(dim=-1, keepdim=True)

        def score(path: tuple[int, ...]) -> float:
            before = (0, *path)
            steps = [relative[i, level, before[i] - level + 1] for i, level in enumerate(path)]  # noqa: B023
            return float(torch.stack([*steps, p["final"][0, path[-1]]]).prod())  # noqa: B023

        found = supernet.derive().levels
        assert found == max(all_paths(), key=score)
        num_greedy += found[-1] == int(p["final"].argmax())
    assert num_greedy < 20


def test_an_undecided_search_prefers_no_path(supernet: HinasSupernet) -> None:
    with torch.no_grad():
        for logits in supernet.arch.values():
            logits.zero_()
        supernet.arch["final"][0, 0] = 1e-3
    assert supernet.derive().levels[-1] == 0


def test_none_is_never_derived(supernet: HinasSupernet) -> None:
    with torch.no_grad():
        supernet.arch["alpha"].zero_()
        supernet.arch["alpha"][..., OPS.index("none")] = 9
        supernet.arch["alpha"][..., OPS.index("sep5")] = 1
    assert {op for nodes in supernet.derive().cells for edges in nodes for _, op in edges} == {"sep5"}


def test_probabilities_leave_out_what_does_not_exist(supernet: HinasSupernet) -> None:
    p = supernet.probabilities()
    assert torch.equal(p["beta"][0, 0], torch.tensor([0.0, 1.0, 0.0]))  # the stem is level 0
    assert torch.equal(p["beta"][0, 1], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(p["beta"][0, 2], torch.zeros(3))
    assert (p["beta"][2, 1] > 0).all()
    torch.testing.assert_close(p["beta"][1:].sum(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("size", [(37, 31), (5, 3), (1, 1)])
def test_images_of_any_size_keep_it(size: tuple[int, int], generator: torch.Generator) -> None:
    denoised = HinasNetwork(seeded(0)).eval()(torch.rand(1, 3, *size, generator=generator))
    assert denoised.shape == (1, 3, *size)
    assert denoised.isfinite().all()


def test_gradients_reach_every_choice_and_every_weight(supernet: HinasSupernet, generator: torch.Generator) -> None:
    noisy, clean = torch.rand(2, 2, 3, 16, 16, generator=generator)
    supernet.loss(noisy, clean).backward()
    assert (supernet.arch["alpha"].grad != 0).all()
    assert (supernet.arch["final"].grad != 0).all()
    has_choice = supernet.has_source & (supernet.has_source.sum(dim=-1, keepdim=True) > 1)
    assert torch.equal(supernet.arch["beta"].grad != 0, has_choice)
    assert all(parameter.grad is not None for parameter in supernet.parameters())


def test_search_is_reproducible_by_seed(search_twice: Callable[..., Any]) -> None:
    first, again, other = search_twice(lambda: HinasSupernet(TINY))
    assert first == again != other


def test_genotype_survives_json() -> None:
    genotype = seeded(3)
    assert HinasGenotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype


CELL = (((0, "skip"), (1, "conv3")),)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HinasGenotype(num_channels=4, levels=(0, 2), cells=(CELL, CELL)), "change by one at most"),
        (lambda: HinasGenotype(num_channels=4, levels=(2,), cells=(CELL,)), "`levels` must start at 0 or 1"),
        (lambda: HinasGenotype(num_channels=4, levels=(0, 1), cells=(CELL,)), "must be one per layer, 2, got 1"),
        (
            lambda: HinasGenotype(num_channels=4, levels=(0,), cells=((),)),
            r"one number of nodes, at least 1, got \[0\]",
        ),
        (lambda: HinasGenotype(num_channels=4, levels=(0, 1), cells=(CELL, CELL * 2)), r"of nodes, .*, got \[1, 2\]"),
        (lambda: HinasGenotype(num_channels=4, levels=(0,), cells=((((2, "skip"),),),)), r"node 0 .*\(2, 'skip'\)"),
        (lambda: HinasGenotype(num_channels=4, levels=(0,), cells=((((0, "none"),),),)), r"node 0 .*\(0, 'none'\)"),
        (lambda: HinasSpace(num_channels=5), "`num_channels` must be even and at least 2, got 5"),
        (lambda: HinasSpace(num_nodes=0), "`num_nodes` must be at least 1, got 0"),
    ],
)
def test_impossible_records_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
