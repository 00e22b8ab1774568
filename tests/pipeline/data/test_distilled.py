from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.config import Config, load_config
from pipeline.data.distilled import DistilledPatches, training_patches
from pipeline.data.patches import PatchSource
from pipeline.losses import training_loss
from pipeline.priors import Prior, load_prior

SIGMA = 25 / 255


@pytest.fixture(scope="module")
def prior() -> Prior:
    return load_prior("mirnet16")


@pytest.fixture
def images() -> list[np.ndarray]:
    ramp = np.linspace(0, 255, 40).astype(np.uint8)
    return [np.stack([np.tile(ramp, (36, 1)), np.tile(ramp[::-1], (36, 1)), np.full((36, 40), 90, np.uint8)], axis=2)]


@pytest.fixture
def config() -> Config:
    return load_config("tiny", ["retrain.distilled_patches=20", "retrain.patch_size=16"])


def test_every_patch_comes_with_what_the_prior_makes_of_it(prior: Prior, images: list[np.ndarray]) -> None:
    source = PatchSource(images, patch_size=16, sigma_range=(SIGMA, SIGMA))
    patches = DistilledPatches(source, prior, num_patches=20, seed=3)
    noisy, clean, denoised = patches.sample(6, torch.Generator().manual_seed(0))
    assert noisy.shape == clean.shape == denoised.shape == (6, 3, 16, 16)
    assert F.mse_loss(denoised, clean) < F.mse_loss(noisy, clean) / 4
    assert (noisy - clean).std() == pytest.approx(SIGMA, rel=0.1)


def test_flips_and_rotations_are_those_of_one_symmetry(prior: Prior, images: list[np.ndarray]) -> None:
    """A set of one patch: all draws are that patch in one of its eight forms, the same for all three signals."""
    source = PatchSource(images, patch_size=16, sigma_range=(SIGMA, SIGMA))
    patches = DistilledPatches(source, prior, num_patches=1, seed=3)
    generator = torch.Generator().manual_seed(0)
    draws = [patches.sample(1, generator) for _ in range(64)]
    first_noisy, _, first_denoised = draws[0]
    forms: set[bytes] = set()
    for noisy, _, denoised in draws:
        forms.add(noisy.contiguous().numpy().tobytes())
        assert F.mse_loss(denoised, noisy) == pytest.approx(F.mse_loss(first_denoised, first_noisy).item(), rel=1e-5)
    assert len(forms) == 8


def test_the_same_seed_gives_the_same_set(prior: Prior, images: list[np.ndarray], config: Config) -> None:
    def draw(seed: int) -> torch.Tensor:
        patches = training_patches(config, images, prior, seed=seed)
        return patches.sample(4, torch.Generator().manual_seed(0))[2]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_without_distilled_patches_they_are_fresh(prior: Prior, images: list[np.ndarray], config: Config) -> None:
    plain = replace(config, retrain=replace(config.retrain, distilled_patches=0))
    assert isinstance(training_patches(plain, images, prior, seed=0), PatchSource)


def test_the_loss_is_the_mean_of_both_distances() -> None:
    denoised, clean, prior_denoised = torch.rand(3, 2, 3, 8, 8).unbind()
    expected = (F.l1_loss(denoised, clean) + F.l1_loss(denoised, prior_denoised)) / 2
    assert training_loss(denoised, clean, prior_denoised=prior_denoised) == pytest.approx(expected.item())
