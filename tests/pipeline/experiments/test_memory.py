"""Bytes that a step keeps."""

import torch

from pipeline.experiments.memory import saved_bytes


def test_saved_tensors_are_counted_once_and_parameters_not() -> None:
    weight = torch.ones(1000, requires_grad=True)
    x = torch.rand(1000)

    def forward() -> torch.Tensor:
        y = weight * x  # keeps x, 4000 bytes; the weight is a parameter
        z = y.exp()  # keeps z
        return (z * z).sum()  # keeps z again, which counts once

    loss, num_bytes = saved_bytes(forward, [weight])
    assert num_bytes == 8000
    loss.backward()
    assert torch.allclose(weight.grad, 2 * x * (2 * x).exp())


def test_a_forward_pass_without_gradients_keeps_nothing() -> None:
    with torch.no_grad():
        assert saved_bytes(lambda: torch.rand(10).exp().sum(), [])[1] == 0
