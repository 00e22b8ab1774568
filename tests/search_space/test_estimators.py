"""The gradients are compared with the formulas of the paper, written out with <g, O_i> as an inner product.

g is the gradient of the loss with respect to the mixed output, O_i the output of candidate i.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from search_space import ESTIMATORS, Selection, select
from search_space.estimators import OUT_OF_CHOICE, gumbel_straight_through

NUM_CANDIDATES = 5


@pytest.fixture
def logits() -> Tensor:
    return torch.tensor([[0.3, -1.2, 0.8, 0.0, 2.1]], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def outputs() -> Tensor:
    """(K, 7): what every candidate computes."""
    return torch.randn(NUM_CANDIDATES, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture
def run(logits: Tensor, outputs: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from factors to g and the gradient of the logits, for a loss that is not linear."""

    def run(factors: Tensor) -> tuple[Tensor, Tensor]:
        mixed = (factors[0, :, None] * outputs).sum(dim=0)
        mixed.retain_grad()
        (mixed.pow(3).sum() + mixed.sin().sum()).backward()
        assert mixed.grad is not None and logits.grad is not None
        return mixed.grad, logits.grad[0]

    return run


def choose(logits: Tensor, estimator: str, *, seed: int = 0, with_gradient: bool = True) -> Selection:
    generator = torch.Generator().manual_seed(seed)
    return select(logits, estimator=estimator, temperature=0.7, generator=generator, with_gradient=with_gradient)


def test_mixture_gives_softmax_factors_and_the_gradient_of_eq_4(logits: Tensor, outputs: Tensor, run: Callable) -> None:
    selection = choose(logits, "mixture")
    p = torch.exp(logits.detach()[0]) / torch.exp(logits.detach()[0]).sum()  # Eq. (3)
    assert selection.active == ((0, 1, 2, 3, 4),)
    torch.testing.assert_close(selection.factors[0].detach(), p)
    g, gradient = run(selection.factors)
    torch.testing.assert_close(gradient, p * ((outputs - p @ outputs) @ g))  # Eq. (4)


@pytest.mark.parametrize("seed", range(5))
def test_gumbel_gives_one_hot_factors_and_the_corrected_gradient_of_eq_7(
    logits: Tensor, outputs: Tensor, run: Callable, seed: int
) -> None:
    temperature = 0.7
    selection = choose(logits, "gumbel", seed=seed)
    noise = torch.empty(1, NUM_CANDIDATES).exponential_(generator=torch.Generator().manual_seed(seed))
    scores = (torch.log_softmax(logits.detach(), dim=-1) - noise.log().double()) / temperature
    z = (scores.exp() / scores.exp().sum())[0]  # Eq. (6)

    assert selection.active == ((0, 1, 2, 3, 4),)
    one_hot = torch.nn.functional.one_hot(z.argmax(), NUM_CANDIDATES).double()  # Eq. (5)
    torch.testing.assert_close(selection.factors[0].detach(), one_hot)
    g, gradient = run(selection.factors)
    torch.testing.assert_close(gradient, z / temperature * ((outputs - z @ outputs) @ g))  # Eq. (7) with E2


@pytest.mark.parametrize("seed", range(5))
def test_sampled_gives_a_factor_of_one_and_the_gradient_of_eq_8_for_every_logit(
    logits: Tensor, outputs: Tensor, run: Callable, seed: int
) -> None:
    selection = choose(logits, "sampled", seed=seed)
    ((sampled,),) = selection.active
    delta = torch.nn.functional.one_hot(torch.tensor(sampled), NUM_CANDIDATES).double()
    torch.testing.assert_close(selection.factors[0].detach(), delta, rtol=0, atol=0)
    g, gradient = run(selection.factors)
    p = torch.softmax(logits.detach()[0], dim=-1)
    torch.testing.assert_close(gradient, (outputs[sampled] @ g) * (delta - p))  # Eq. (8) with E3


def test_the_mean_gradient_of_samples_is_that_of_the_expected_loss(logits: Tensor, outputs: Tensor) -> None:
    # For a linear loss the score function is unbiased: E[<g, O_s> grad log p_s] = grad of sum_i p_i <g, O_i>.
    direction = torch.randn(7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    many = logits.detach().expand(20_000, -1).clone().requires_grad_()
    (choose(many, "sampled").factors @ (outputs @ direction)).sum().backward()
    expected = torch.autograd.grad(logits.softmax(dim=-1)[0] @ (outputs @ direction), logits)[0][0]
    torch.testing.assert_close(many.grad.mean(dim=0), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("estimator", ["gumbel", "sampled"])
def test_sampling_frequencies_are_the_softmax(logits: Tensor, estimator: str, temperature: float) -> None:
    many = logits.detach().expand(20_000, -1)
    generator = torch.Generator().manual_seed(1)
    selection = select(many, estimator=estimator, temperature=temperature, generator=generator)
    torch.testing.assert_close(selection.factors.mean(dim=0), logits.detach()[0].softmax(dim=0), rtol=0, atol=0.015)


def test_only_the_sampled_candidate_runs_and_counts(logits: Tensor) -> None:
    selection = choose(logits.detach().expand(50, -1), "sampled")
    assert all(len(active) == 1 for active in selection.active)
    assert len(set(selection.active)) > 1
    for (index,), factors in zip(selection.active, selection.factors, strict=True):
        assert factors.nonzero().flatten().tolist() == [index]


def test_samples_have_no_factors_where_no_gradient_is_asked_for(logits: Tensor) -> None:
    assert choose(logits, "sampled", with_gradient=False).factors is None
    assert choose(logits, "sampled", with_gradient=False).active == choose(logits, "sampled").active


def test_gumbel_runs_only_the_sampled_candidate_where_no_gradient_is_asked_for(logits: Tensor) -> None:
    many = logits.detach().expand(50, -1)
    selection = choose(many, "gumbel", with_gradient=False)
    assert selection.factors is None
    sampled = choose(many, "gumbel").factors.argmax(dim=-1).tolist()  # the same draw
    assert selection.active == tuple((index,) for index in sampled)
    assert len(set(sampled)) > 1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_seeds_give_equal_choices(logits: Tensor, estimator: str) -> None:
    many = logits.detach().expand(20, -1)
    first, second, other = (choose(many, estimator, seed=seed) for seed in (0, 0, 1))
    assert first.active == second.active
    assert torch.equal(first.factors, second.factors)
    assert estimator == "mixture" or not torch.equal(first.factors, other.factors)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_huge_logits_give_finite_gradients(estimator: str) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [3e4, 3e4, 3e4]], requires_grad=True)
    factors = choose(logits, estimator).factors
    (factors * torch.arange(1.0, 4.0)).sum().backward()
    assert factors.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_candidates_out_of_choice_never_run_and_get_no_gradient(estimator: str) -> None:
    logits = torch.tensor([[0.0, OUT_OF_CHOICE, 1.0]]).repeat(500, 1).requires_grad_()
    selection = choose(logits, estimator)
    assert {index for active in selection.active for index in active} == {0, 2}
    assert (selection.factors[:, 1] == 0).all()
    (selection.factors * torch.tensor([1.0, 5.0, 3.0])).sum().backward()
    assert (logits.grad[:, 1] == 0).all()
    assert (logits.grad[:, 0] != 0).any()


def test_a_common_shift_of_the_logits_changes_nothing() -> None:
    logits = torch.tensor([[0.5, -0.5, 1.0]])
    for temperature in (0.3, 2.0):
        samples = [
            gumbel_straight_through(logits + shift, temperature=temperature, generator=torch.Generator().manual_seed(2))
            for shift in (0.0, 7.0)
        ]
        torch.testing.assert_close(*samples)


def test_an_unknown_estimator_is_refused(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="`estimator` must be one of mixture, gumbel, sampled, got 'darts'"):
        choose(logits, "darts")
