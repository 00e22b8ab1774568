import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.evaluate import ImageScore, evaluate_denoiser, mean_score

SIGMA = 25 / 255


@pytest.fixture
def images() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "flat": np.full((64, 48, 3), 128, dtype=np.uint8),
        "random": random.integers(0, 256, (37, 31, 3), dtype=np.uint8),
    }


class Oracle(nn.Module):
    """Answer with the flat image."""

    def forward(self, noisy: Tensor) -> Tensor:
        return torch.full_like(noisy, 128 / 255)


def test_the_noisy_input_is_scored_after_clipping_and_rounding(images: dict[str, np.ndarray]) -> None:
    scores = evaluate_denoiser(nn.Identity(), images, sigma=SIGMA, device="cpu", keep_images=True)
    for score, clean in zip(scores, images.values(), strict=True):
        noisy = np.random.RandomState(0).normal(0, SIGMA, clean.shape) + clean / 255
        expected = np.round(np.clip(noisy.astype(np.float32), 0, 1) * 255)
        mean_squared_error = np.mean((expected - clean) ** 2)
        assert score.noisy_psnr_db == pytest.approx(10 * math.log10(255**2 / mean_squared_error), abs=1e-3)
        assert score.psnr_db == score.noisy_psnr_db
        assert score.ssim == score.noisy_ssim
        assert np.array_equal(score.noisy, score.denoised)
        assert np.abs(score.noisy.astype(int) - expected).max() <= 1


def test_the_unrounded_psnr_is_that_of_the_clipped_output(images: dict[str, np.ndarray]) -> None:
    scores = evaluate_denoiser(nn.Identity(), images, sigma=SIGMA, device="cpu")
    for score, clean in zip(scores, images.values(), strict=True):
        noise = np.random.RandomState(0).normal(0, SIGMA, clean.shape)
        error = (clean / 255 + noise).clip(0, 1) - clean / 255
        assert score.psnr_unrounded_db == pytest.approx(-10 * math.log10(np.mean(error**2)), abs=1e-4)


def test_a_perfect_denoiser_reaches_infinity_and_one(images: dict[str, np.ndarray]) -> None:
    (score,) = evaluate_denoiser(Oracle(), {"flat": images["flat"]}, sigma=SIGMA, device="cpu", keep_images=True)
    assert score.psnr_db == math.inf
    assert score.ssim == pytest.approx(1)
    assert score.noisy_psnr_db == pytest.approx(20.17, abs=0.2)  # 20 log10(255 / 25): nothing clips at mid grey
    assert np.array_equal(score.denoised, images["flat"])


def test_the_output_is_clamped(images: dict[str, np.ndarray]) -> None:
    class Bright(nn.Module):
        def forward(self, noisy: Tensor) -> Tensor:
            return torch.full_like(noisy, 7.0)

    white = {"white": np.full_like(images["flat"], 255)}
    (score,) = evaluate_denoiser(Bright(), white, sigma=SIGMA, device="cpu")
    assert score.psnr_db == math.inf


def test_noise_is_reset_for_every_image_and_the_seed_changes_it(images: dict[str, np.ndarray]) -> None:
    def numbers(**settings) -> list[dict]:
        scores = evaluate_denoiser(nn.Identity(), **{"images": images, "sigma": SIGMA, "device": "cpu"} | settings)
        return [replace(score, seconds=0).to_dict() for score in scores]

    alone = {"random": images["random"]}
    assert numbers() == numbers()
    assert numbers(images=alone) == numbers()[1:]
    assert numbers(seed=1) != numbers()


def test_images_come_only_on_request_and_never_in_the_numbers(images: dict[str, np.ndarray]) -> None:
    score = evaluate_denoiser(nn.Identity(), images, sigma=SIGMA, device="cpu")[0]
    assert score.denoised is None
    kept = replace(score, denoised=images["flat"])
    assert kept == score
    names = ["name", "noisy_psnr_db", "noisy_ssim", "psnr_db", "ssim", "psnr_unrounded_db", "ssim_3d", "seconds"]
    assert list(json.loads(json.dumps(kept.to_dict()))) == names
    assert score.seconds > 0


def test_mean_score_averages_every_number() -> None:
    numbers = {
        "noisy_psnr_db": 20,
        "noisy_ssim": 0.4,
        "psnr_db": 30,
        "ssim": 0.8,
        "psnr_unrounded_db": 29,
        "ssim_3d": 0.9,
        "seconds": 1,
    }
    first = ImageScore(name="a", **numbers)
    second = ImageScore(name="b", **{name: 3 * value for name, value in numbers.items()})
    mean = mean_score([first, second])
    assert mean.to_dict() == pytest.approx({"name": "mean", **{name: 2 * value for name, value in numbers.items()}})
    with pytest.raises(ValueError, match="at least one score"):
        mean_score([])


def test_what_cannot_be_scored_is_refused_by_name(images: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one image"):
        evaluate_denoiser(nn.Identity(), {}, sigma=SIGMA, device="cpu")
    with pytest.raises(ValueError, match=r"`sigma` must lie in \[0, 1\] .* got 25"):
        evaluate_denoiser(nn.Identity(), images, sigma=25, device="cpu")
    for bad in (images["flat"] / 255, images["flat"][..., 0], images["flat"][:10]):
        with pytest.raises(ValueError, match="image 'bad' must be .* uint8"):
            evaluate_denoiser(nn.Identity(), {"bad": bad}, sigma=SIGMA, device="cpu")


def test_a_diverged_model_is_an_error_not_a_score(images: dict[str, np.ndarray]) -> None:
    class Diverged(nn.Module):
        def forward(self, noisy: Tensor) -> Tensor:
            return noisy * math.nan

    with pytest.raises(ValueError, match="output for image 'flat' is not finite"):
        evaluate_denoiser(Diverged(), images, sigma=SIGMA, device="cpu")


def test_pairs_are_scored_with_their_own_noise(images: dict[str, np.ndarray]) -> None:
    clean = images["flat"]
    pair = np.concatenate([clean, clean + np.uint8(10)], axis=2)
    (score,) = evaluate_denoiser(nn.Identity(), {"pair": pair}, sigma=SIGMA, device="cpu", keep_images=True)
    assert score.noisy_psnr_db == pytest.approx(20 * math.log10(255 / 10))
    assert np.array_equal(score.denoised, clean + np.uint8(10))


def test_deep_images_are_scored_with_all_their_bits(images: dict[str, np.ndarray]) -> None:
    """The pair differs by less than a grey level of 8 bits, which rounding to them would lose."""
    clean = images["random"].astype(np.uint16) * 256
    pair = np.concatenate([clean, clean + np.uint16(50)], axis=2)
    (score,) = evaluate_denoiser(nn.Identity(), {"pair": pair}, sigma=SIGMA, device="cpu", keep_images=True)
    assert score.psnr_db == pytest.approx(-20 * math.log10(50 / 65535))
    assert score.psnr_unrounded_db == pytest.approx(score.psnr_db, abs=0.01)
    assert score.denoised.dtype == np.uint16
    assert np.array_equal(score.denoised, clean + np.uint16(50))


def test_an_image_has_nearly_the_same_scores_with_16_bits(images: dict[str, np.ndarray]) -> None:
    """What is left is the rounding of the result to 8 bits."""
    deep = {name: image * np.uint16(257) for name, image in images.items()}
    scores = [evaluate_denoiser(nn.Identity(), given, sigma=SIGMA, device="cpu") for given in (images, deep)]
    for shallow, score in zip(*scores, strict=True):
        assert score.psnr_unrounded_db == pytest.approx(shallow.psnr_unrounded_db, rel=1e-9)
        assert score.ssim_3d == pytest.approx(shallow.ssim_3d, rel=1e-9)
        assert score.psnr_db == pytest.approx(shallow.psnr_db, abs=0.01)
        assert score.psnr_db == pytest.approx(score.psnr_unrounded_db, abs=1e-4)
        assert score.ssim == pytest.approx(shallow.ssim, abs=1e-3)
