import pytest
import torch

from pipeline.losses import feature_distance, structural_similarity, training_loss
from pipeline.metrics import ssim


@pytest.fixture
def target(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=generator)


def test_feature_distance_is_zero_for_equal_features_and_one_for_none(target: torch.Tensor) -> None:
    assert feature_distance(target, target) == 0
    assert feature_distance(torch.zeros_like(target), target) == pytest.approx(1)


def test_feature_distance_has_no_unit(target: torch.Tensor) -> None:
    features = target + 0.1
    assert feature_distance(7 * features, 7 * target) == pytest.approx(feature_distance(features, target).item())


def test_feature_distance_sends_gradients_to_the_features_only(target: torch.Tensor) -> None:
    features = torch.zeros_like(target, requires_grad=True)
    feature_distance(features, target).backward()
    torch.testing.assert_close(features.grad, -2 * target / target.square().sum())


def test_training_loss_is_l1_plus_the_distance_of_every_part(target: torch.Tensor) -> None:
    clean, denoised = target, target + 0.25
    assert training_loss(denoised, clean) == pytest.approx(0.25)
    parts = [target + 0.1, 2 * target, torch.zeros_like(target)]
    expected = 0.25 + sum(feature_distance(part, target).item() for part in parts)
    assert training_loss(denoised, clean, parts, [target] * 3) == pytest.approx(expected)


def test_training_loss_needs_as_many_targets_as_features(target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="zip"):
        training_loss(target, target, [target], [])


def test_structural_similarity_is_that_of_the_metric(generator: torch.Generator) -> None:
    clean = torch.rand(2, 3, 19, 24, generator=generator)
    noisy = (clean + 0.3 * torch.randn(clean.shape, generator=generator)).requires_grad_()
    similarity = structural_similarity(noisy, clean)
    expected = [
        ssim(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), data_range=1)
        for a, b in zip(noisy.detach(), clean, strict=True)
    ]
    assert similarity.item() == pytest.approx(sum(expected) / 2, abs=1e-5)
    assert structural_similarity(clean, clean).item() == pytest.approx(1)
    similarity.backward()
    assert noisy.grad is not None and noisy.grad.isfinite().all()
