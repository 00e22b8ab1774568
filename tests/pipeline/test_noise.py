import numpy as np
import pytest
import torch

from pipeline.data.noise import add_poisson, add_test_awgn, sample_noise_map, training_noise_map


def test_training_maps_stay_within_80_grey_levels(generator: torch.Generator) -> None:
    maps = torch.stack([training_noise_map(32, generator) for _ in range(300)])
    assert maps.shape == (300, 1, 32, 32)
    assert 0 <= maps.min() < 5 / 255
    assert 70 / 255 < maps.max() <= 80 / 255


def test_training_maps_span_at_least_5_grey_levels(generator: torch.Generator) -> None:
    for _ in range(50):
        noise_map = training_noise_map(32, generator)
        assert noise_map.max() - noise_map.min() >= 5 / 255 - 1e-6


def test_training_maps_are_bumps_that_differ(generator: torch.Generator) -> None:
    """Along a row or column the map rises to the centre and falls after it: it never falls and rises again."""
    maps = [training_noise_map(32, generator)[0] for _ in range(20)]
    for noise_map in maps:
        for line in (*noise_map, *noise_map.T):
            signs = line.diff().sign()
            signs = signs[signs != 0]
            assert (signs.diff() <= 0).all()
    assert len({round(noise_map.mean().item(), 6) for noise_map in maps}) == 20


@pytest.mark.parametrize("model", ["awgn", "niid", "mixed"])
def test_the_same_generator_state_gives_the_same_maps(model: str) -> None:
    first, second = (
        sample_noise_map(model, 6, 16, sigma_range=(0.1, 0.2), generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert first.shape == (6, 1, 16, 16)
    assert torch.equal(first, second)


def test_awgn_has_one_sigma_per_patch_spread_over_the_range(generator: torch.Generator) -> None:
    maps = sample_noise_map("awgn", 500, 4, sigma_range=(0.1, 0.2), generator=generator)
    assert (maps == maps[:, :, :1, :1]).all()
    sigmas = maps[:, 0, 0, 0]
    assert 0.1 <= sigmas.min() < 0.105
    assert 0.195 < sigmas.max() <= 0.2
    assert sigmas.mean() == pytest.approx(0.15, abs=0.005)


def test_mixed_noise_is_awgn_for_about_half_of_the_patches(generator: torch.Generator) -> None:
    maps = sample_noise_map("mixed", 400, 8, sigma_range=(0.1, 0.2), generator=generator)
    is_flat = (maps == maps[:, :, :1, :1]).flatten(1).all(dim=1)
    assert 160 < is_flat.sum() < 240
    assert not (
        sample_noise_map("niid", 20, 8, sigma_range=(0, 0), generator=generator).flatten(1).std(dim=1) == 0
    ).any()


@pytest.mark.parametrize("model", ["poisson", "pairs"])
def test_a_model_without_maps_is_refused(model: str, generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match=f"`model` must be one of awgn, niid, mixed, got '{model}'"):
        sample_noise_map(model, 1, 8, sigma_range=(0, 0), generator=generator)


@pytest.mark.parametrize("seed", [0, 5])
def test_test_noise_is_that_of_numpys_legacy_generator(images: list[np.ndarray], seed: int) -> None:
    clean = images[0] / 255
    noisy = add_test_awgn(clean, 25 / 255, seed=seed)
    expected = clean + np.random.RandomState(seed).normal(0, 25 / 255, clean.shape)
    assert noisy.dtype == np.float32
    assert np.array_equal(noisy, expected.astype(np.float32))
    assert noisy.min() < 0 < 1 < noisy.max()  # not clipped


def test_test_noise_does_not_touch_numpys_global_generator(images: list[np.ndarray]) -> None:
    before = np.random.get_state()[1].copy()
    add_test_awgn(images[0] / 255, 0.1)
    assert np.array_equal(np.random.get_state()[1], before)


def test_poisson_noise_has_variance_gain_times_brightness_plus_sigma_squared(generator: torch.Generator) -> None:
    clean = torch.tensor([0.2, 0.8]).reshape(2, 1, 1, 1).expand(2, 3, 200, 200)
    gain, sigma = 4 / 255, 6 / 255
    noisy = add_poisson(clean, gain_range=(gain, gain), sigma_range=(sigma, sigma), generator=generator)
    noise = noisy - clean
    for brightness, patch in zip((0.2, 0.8), noise, strict=True):
        assert patch.mean().abs() < 1e-3
        assert patch.var().item() == pytest.approx(gain * brightness + sigma**2, rel=0.02)


def test_poisson_draws_gain_and_sigma_for_every_patch(generator: torch.Generator) -> None:
    clean = torch.full((40, 3, 32, 32), 0.5)
    noise = add_poisson(clean, gain_range=(0.001, 0.03), sigma_range=(0, 0.1), generator=generator) - clean
    deviations = noise.std(dim=(1, 2, 3))
    assert deviations.max() > 1.5 * deviations.min()
    assert (0.5 * 0.001) ** 0.5 * 0.9 < deviations.min()
    assert deviations.max() < (0.5 * 0.03 + 0.01) ** 0.5 * 1.1
