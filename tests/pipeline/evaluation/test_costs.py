import torch
from torch import nn

from pipeline.evaluation.costs import peak_bytes


def test_peak_memory_of_a_chain_is_weights_image_and_two_feature_maps() -> None:
    chain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    weights = sum(parameter.numel() for parameter in chain.parameters())
    assert peak_bytes(chain, torch.zeros(1, 3, 10, 12)) == 4 * (weights + 120 * (3 + 8 + 8))


def test_a_feature_that_is_kept_for_later_counts_until_then() -> None:
    class Keeping(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = x + 1
            y = kept * 2
            y = y * 2  # x, kept, and two versions of y live now
            return y + kept

    assert peak_bytes(Keeping(), torch.zeros(1, 3, 10, 10)) == 4 * 300 * 4


def test_views_and_shared_weights_count_once() -> None:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    twice = nn.ModuleList([layer, layer])
    twice.forward = lambda x: x.flatten().view_as(x)  # type: ignore[method-assign]
    assert peak_bytes(twice, torch.zeros(1, 3, 4, 4)) == 4 * (9 + 48)
