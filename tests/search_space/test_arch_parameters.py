import math
from collections.abc import Callable

import pytest
import torch

from search_space import DIRECTIONS, ESTIMATORS, WIDTHS, ArchParameters, CellPosition, Choices, SearchSpace


def draw(arch: ArchParameters, *, seed: int = 0, estimator: str = "sampled", with_gradient: bool = True) -> Choices:
    generator = torch.Generator().manual_seed(seed)
    return arch.sample(estimator=estimator, temperature=1.0, generator=generator, with_gradient=with_gradient)


def test_there_are_logits_for_every_choice_of_every_cell(space: SearchSpace, generator: torch.Generator) -> None:
    arch = ArchParameters(space, generator=generator)
    shapes = {name: tuple(logits.shape) for name, logits in arch.named_parameters()}
    assert shapes == {"alpha": (12, 8), "beta": (12, 3), "gamma": (12, 5), "delta": (12, 6)}


def test_probabilities_are_a_softmax_over_the_pathways_that_exist(
    space: SearchSpace, make_arch: Callable[..., ArchParameters]
) -> None:
    arch = make_arch(space)
    p = arch.probabilities()
    for n, cell in enumerate(space.cells):
        assert p["alpha"][n].sum().item() == pytest.approx(1)
        assert p["gamma"][n].sum().item() == pytest.approx(1)
        for i, direction in enumerate(DIRECTIONS):
            assert (p["beta"][n, i] > 0).item() == (direction in space.directions(cell))
        for layer in range(space.num_layers):
            assert (p["delta"][n, layer] > 0).item() == (layer in space.dense_layers(cell))
        assert p["beta"][n].sum().item() == pytest.approx(1)
        assert p["delta"][n].sum().item() == pytest.approx(1 if space.dense_layers(cell) else 0)
    n = space.cells.index(CellPosition(1, 4))
    torch.testing.assert_close(p["beta"][n], arch.beta[n].softmax(dim=0))  # all three exist
    torch.testing.assert_close(p["delta"][n, 2:4], arch.delta[n, 2:4].softmax(dim=0))


def test_uniform_probabilities_are_those_of_equal_logits(
    space: SearchSpace, make_arch: Callable[..., ArchParameters]
) -> None:
    arch = make_arch(space)
    uniform = arch.uniform_probabilities()
    with torch.no_grad():
        for logits in arch.parameters():
            logits.fill_(0.7)
    for name, p in arch.probabilities().items():
        torch.testing.assert_close(uniform[name], p)


def test_masked_logits_get_no_gradient_and_none_is_nan(
    space: SearchSpace, make_arch: Callable[..., ArchParameters]
) -> None:
    arch = make_arch(space)
    torch.stack([(p * torch.arange(p.shape[1])).sum() for p in arch.probabilities().values()]).sum().backward()
    for logits in arch.parameters():
        assert logits.grad.isfinite().all()
    assert (arch.beta.grad[~arch.has_direction] == 0).all()
    assert (arch.delta.grad[~arch.has_layer] == 0).all()
    assert (arch.delta.grad[arch.has_layer] != 0).sum() > 10


def test_entropies_are_shares_of_the_maximum(space: SearchSpace, make_arch: Callable[..., ArchParameters]) -> None:
    undecided, decided = make_arch(space, spread=0.0).entropies(), make_arch(space, spread=1e5).entropies()
    half = make_arch(space, spread=2.0).entropies()
    for name in ("alpha", "beta", "gamma", "delta"):
        assert undecided[name] == pytest.approx(1, abs=1e-5)
        assert decided[name] == pytest.approx(0, abs=1e-5)
        assert 0.1 < half[name] < 0.95


def test_a_level_without_a_choice_has_no_entropy(make_arch: Callable[..., ArchParameters]) -> None:
    arch = make_arch(SearchSpace(num_channels=16, num_resolutions=1, num_layers=1, candidate_ops=("skip",)))
    entropies = arch.entropies()
    assert all(math.isnan(entropies[name]) for name in ("alpha", "beta", "delta"))
    assert not math.isnan(entropies["gamma"])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_architecture_step_has_gradients_and_a_weight_step_none(
    space: SearchSpace, make_arch: Callable[..., ArchParameters], estimator: str
) -> None:
    arch = make_arch(space)
    choices = draw(arch, estimator=estimator)
    for tensor in (choices.ops.factors, choices.width_factors, choices.resolution_weights, choices.dense_weights):
        assert tensor.requires_grad
    constant = draw(arch, estimator=estimator, with_gradient=False)
    assert constant.width_factors is None
    assert constant.ops.factors is None or not constant.ops.factors.requires_grad
    assert not constant.resolution_weights.requires_grad
    assert not constant.dense_weights.requires_grad
    active = choices.ops.active
    if estimator == "gumbel":  # the sampled operator alone
        active = tuple((index,) for index in choices.ops.factors.argmax(dim=-1).tolist())
    assert (constant.ops.active, constant.widths) == (active, choices.widths)  # the same draw


def test_width_factors_are_one_at_the_sampled_width(
    space: SearchSpace, make_arch: Callable[..., ArchParameters]
) -> None:
    choices = draw(make_arch(space))
    one_hot = torch.nn.functional.one_hot(torch.tensor(choices.widths), len(WIDTHS)).float()
    torch.testing.assert_close(choices.width_factors.detach(), one_hot)


def test_equal_seeds_give_equal_logits_and_choices(space: SearchSpace) -> None:
    first, second, other = (ArchParameters(space, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.alpha, second.alpha)
    assert not torch.equal(first.alpha, other.alpha)
    assert draw(first).ops.active == draw(second).ops.active
    assert draw(first).widths == draw(second).widths
    assert draw(first).ops.active != draw(first, seed=1).ops.active


def test_the_state_holds_the_logits_and_nothing_else(space: SearchSpace, generator: torch.Generator) -> None:
    assert set(ArchParameters(space, generator=generator).state_dict()) == {"alpha", "beta", "gamma", "delta"}
