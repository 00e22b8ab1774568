import pytest
import torch
from torch import Tensor

from pipeline.priors import MIRNet, NAFNet, Recorded


class Counted:
    """Two results of a tensor; counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.num_calls += 1
        return [2 * x, x.square().sum(dim=1)]


def test_on_a_processor_it_computes_without_gradients() -> None:
    compute = Counted()
    recorded = Recorded(compute)
    x = torch.rand(2, 3, 4, requires_grad=True)
    for _ in range(2):
        double, squares = recorded(x)
        assert torch.equal(double, 2 * x) and torch.equal(squares, x.square().sum(dim=1))
        assert not double.requires_grad
    assert compute.num_calls == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_every_shape_is_recorded_once_and_results_stay() -> None:
    compute = Counted()
    recorded = Recorded(compute)
    inputs = [torch.rand(size, 3, 4, device="cuda") for size in (2, 5, 2, 5, 2)]
    results = [recorded(x) for x in inputs]
    num_calls = compute.num_calls
    recorded(inputs[0])
    assert compute.num_calls == num_calls, "nothing is computed again"
    for x, (double, squares) in zip(inputs, results, strict=True):
        assert torch.equal(double, 2 * x) and torch.equal(squares, x.square().sum(dim=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["mirnet", "nafnet"])
def test_on_a_gpu_the_features_of_a_prior_are_those_that_it_computes(small_mirnet: MIRNet, kind: str) -> None:
    prior = {"mirnet": small_mirnet, "nafnet": NAFNet(num_channels=8)}[kind].to("cuda").requires_grad_(False)
    recorded = Recorded(prior.features)
    for seed in range(3):
        noisy = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to("cuda")
        for replayed, computed in zip(recorded(noisy), prior.features(noisy), strict=True):
            torch.testing.assert_close(replayed, computed, rtol=1e-3, atol=1e-3)
