"""Image quality against a clean reference: PSNR and SSIM.

Called by evaluation, by the pictures and by the experiment `denoisers`; the losses share SSIM's window.
Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004 (SSIM).
"""

import math

import numpy as np

SSIM_SIGMA = 1.5  # pixels; skimage cuts the Gaussian at 3.5 sigma, so its window is 11 pixels wide, as published
SSIM_WINDOW_SIZE = 11


def psnr_db(image: np.ndarray, reference: np.ndarray, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio over all pixels and channels jointly.

    Args:
        image: (H, W, 3), of any number type; computed in float64.
        reference: the clean image, of the same shape.
        data_range: distance between black and white, 255 for uint8 images, 65535 for uint16 ones.

    Returns:
        PSNR in dB; infinite for equal images.

    Raises:
        ValueError: the shapes differ, or `data_range` is not positive.
    """
    _check(image, reference, data_range)
    mean_squared_error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(data_range**2 / mean_squared_error)


def ssim(image: np.ndarray, reference: np.ndarray, *, data_range: float) -> float:
    """Return the mean structural similarity: 2-D Gaussian weights, population covariance, averaged over channels.

    This is the definition of the papers on synthetic noise. The published SIDD numbers come from a 3-D variant
    that lies far higher (0.98 where this one says 0.95), so the two must not be compared.

    Args:
        image: (H, W, 3), of any number type; computed in float64.
        reference: the clean image, of the same shape.
        data_range: distance between black and white, 255 for uint8 images, 65535 for uint16 ones.

    Returns:
        SSIM, 1 for equal images.

    Raises:
        ValueError: the shapes differ, an image is smaller than the window, or `data_range` is not positive.
    """
    from skimage.metrics import structural_similarity  # here: importing it costs a second that few callers need

    _check(image, reference, data_range)
    if image.ndim != 3 or min(image.shape[:2]) < SSIM_WINDOW_SIZE:
        raise ValueError(f"SSIM needs (H, W, C) images of at least {SSIM_WINDOW_SIZE} pixels, got {image.shape}")
    similarity = structural_similarity(
        image.astype(np.float64),
        reference.astype(np.float64),
        data_range=data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=SSIM_SIGMA,
        use_sample_covariance=False,
    )
    return float(similarity)


def ssim_3d(image: np.ndarray, reference: np.ndarray, *, data_range: float) -> float:
    """Return the SSIM of the papers on real noise (SIDD, DND): MATLAB's, which takes an RGB image for a volume.

    The Gaussian window of 11 x 11 x 11 with sigma 1.5 also blurs across the three colours, and edges are repeated. Its
    values lie far above those of `ssim`.

    Args:
        image: (H, W, 3), of any number type; computed in float64.
        reference: the clean image, of the same shape.
        data_range: distance between black and white.

    Returns:
        SSIM, 1 for equal images.

    Raises:
        ValueError: the shapes differ or are not (H, W, C), or `data_range` is not positive.
    """
    from scipy.ndimage import gaussian_filter  # here: importing it costs time that few callers need

    _check(image, reference, data_range)
    if image.ndim != 3:
        raise ValueError(f"SSIM needs (H, W, C) images, got {image.shape}")
    x, y = image.astype(np.float64), reference.astype(np.float64)

    def blur(array: np.ndarray) -> np.ndarray:
        return gaussian_filter(array, SSIM_SIGMA, mode="nearest", radius=SSIM_WINDOW_SIZE // 2)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def _check(image: np.ndarray, reference: np.ndarray, data_range: float) -> None:
    if image.shape != reference.shape:
        raise ValueError(f"`image` and `reference` must agree in shape, got {image.shape} and {reference.shape}")
    if not image.size:
        raise ValueError(f"`image` must hold pixels, got shape {image.shape}")
    if not data_range > 0:
        raise ValueError(f"`data_range` must be positive, got {data_range}")
