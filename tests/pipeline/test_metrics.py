import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipeline.metrics import psnr_db, ssim, ssim_3d


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    reference = random.integers(0, 256, (37, 31, 3), dtype=np.uint8)
    image = np.clip(reference + random.normal(0, 25, reference.shape), 0, 255).round().astype(np.uint8)
    return image, reference


def ssim_by_formula(image: np.ndarray, reference: np.ndarray, data_range: float) -> float:
    """Eq. 13 of Wang et al. 2004, one channel at a time, without the border where the window leaves the image."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    means = []
    for channel in range(3):
        x, y = image[..., channel].astype(float), reference[..., channel].astype(float)
        mean_x, mean_y = (gaussian_filter(z, 1.5, truncate=3.5) for z in (x, y))
        variance_x = gaussian_filter(x * x, 1.5, truncate=3.5) - mean_x**2
        variance_y = gaussian_filter(y * y, 1.5, truncate=3.5) - mean_y**2
        covariance = gaussian_filter(x * y, 1.5, truncate=3.5) - mean_x * mean_y
        similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
        means.append(similarity[5:-5, 5:-5].mean())
    return sum(means) / 3


def test_psnr_agrees_with_the_sum_over_all_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = pair
    squares = sum((int(a) - int(b)) ** 2 for a, b in zip(image.flat, reference.flat, strict=True))
    expected = 20 * math.log10(255 / math.sqrt(squares / image.size))
    assert psnr_db(image, reference, data_range=255) == pytest.approx(expected, rel=1e-12)


def test_psnr_does_not_depend_on_the_scale(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = pair
    scaled = psnr_db(image / 255, reference / 255, data_range=1)
    assert scaled == pytest.approx(psnr_db(image, reference, data_range=255), rel=1e-12)


def test_psnr_of_equal_images_is_infinite_and_of_nearly_equal_ones_is_not() -> None:
    black = np.zeros((16, 16, 3), dtype=np.float64)
    assert psnr_db(black, black, data_range=1) == math.inf
    assert psnr_db(black, black + 1e-12, data_range=1) == pytest.approx(240)


def test_ssim_agrees_with_the_formula(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = pair
    assert ssim(image, reference, data_range=255) == pytest.approx(ssim_by_formula(image, reference, 255), rel=1e-9)


def test_ssim_of_equal_images_is_one(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert ssim(pair[1], pair[1], data_range=255) == pytest.approx(1)


@pytest.mark.parametrize("metric", [psnr_db, ssim])
def test_metrics_refuse_what_cannot_be_compared(metric) -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"agree in shape, got \(16, 16, 3\) and \(16, 15, 3\)"):
        metric(image, image[:, :15], data_range=255)
    with pytest.raises(ValueError, match="`data_range` must be positive, got 0"):
        metric(image, image, data_range=0)


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    image = np.zeros((10, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"at least 11 pixels, got \(10, 16, 3\)"):
        ssim(image, image, data_range=255)


def test_ssim_3d_against_plain_loops() -> None:
    """MATLAB's definition written out: an 11 x 11 x 11 Gaussian at every pixel of the edge-repeated volume."""
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 256, (14, 13, 3)).astype(np.float64)
    image = (clean + rng.normal(0, 20, clean.shape)).clip(0, 255)
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = line[:, None, None] * line[None, :, None] * line[None, None, :]
    window /= window.sum()
    x, y = (np.pad(array, 5, mode="edge") for array in (image, clean))
    values = []
    for place in np.ndindex(*clean.shape):
        block = tuple(slice(start, start + 11) for start in place)
        a, b = x[block], y[block]
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        values.append(
            (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
            / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
        )  # fmt: skip
    assert ssim_3d(image, clean, data_range=255) == pytest.approx(np.mean(values), abs=1e-10)
    assert ssim_3d(clean, clean, data_range=255) == pytest.approx(1)


def test_ssim_3d_needs_colour_images() -> None:
    with pytest.raises(ValueError, match=r"SSIM needs \(H, W, C\) images, got \(12, 12\)"):
        ssim_3d(np.zeros((12, 12)), np.zeros((12, 12)), data_range=255)
