"""Score a denoiser: one image, or named clean images with fixed test noise.

Called by the evaluation command, by retraining at its end, by the experiments and by the collection.
The protocol is the one of the literature on white Gaussian noise (Restormer, arXiv 2111.09881): the noise generator is
reset for every image, the noisy input is not clipped, results are rounded to the bits of the clean image (8, or 16)
before they are scored, no border is cropped.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.images import to_image, to_tensor, white_level
from pipeline.data.noise import add_test_awgn
from pipeline.denoise import denoise_image
from pipeline.metrics import SSIM_WINDOW_SIZE, psnr_db, ssim, ssim_3d


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """How well one image was denoised.

    Attributes:
        name: of the image, or `mean`.
        noisy_psnr_db: PSNR of the noisy input, clipped and rounded.
        noisy_ssim: its SSIM.
        psnr_db: PSNR of the denoised image over all RGB pixels, clipped and rounded.
        ssim: its SSIM.
        psnr_unrounded_db: PSNR of the denoised image, clipped and not rounded, as the papers on SIDD give it.
        ssim_3d: SSIM of that image that blurs across colours too; see `pipeline.metrics.ssim_3d`.
        seconds: wall time of the denoising alone; that of the first image includes what the device sets up.
        noisy: (H, W, 3) of the clean image's type, as scored, where images were asked for.
        denoised: likewise.
    """

    name: str
    noisy_psnr_db: float
    noisy_ssim: float
    psnr_db: float
    ssim: float
    psnr_unrounded_db: float
    ssim_3d: float
    seconds: float
    noisy: np.ndarray | None = field(default=None, repr=False, compare=False)
    denoised: np.ndarray | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, str | float]:
        """Return the name and the numbers, without the images."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.compare}


def evaluate_denoiser(
    model: nn.Module,
    images: Mapping[str, np.ndarray],
    *,
    sigma: float,
    seed: int = 0,
    device: torch.device | str,
    tile_size: int | None = None,
    tile_overlap: int = 32,
    keep_images: bool = False,
) -> list[ImageScore]:
    """Add white Gaussian noise to clean images, denoise them and score the result.

    Args:
        model: maps (1, 3, H, W) to the same shape; lies on `device`.
        images: (H, W, 3) uint8 or uint16 clean images by name; or (H, W, 6) pairs, the clean image's channels first, to
            which no noise is added.
        sigma: noise standard deviation on the [0, 1] scale.
        seed: of the noise of every image; 0 by convention.
        device: where the model runs.
        tile_size: see `denoise_image`; None takes whole images.
        tile_overlap: see `denoise_image`.
        keep_images: return the noisy and denoised images with the scores.

    Returns:
        One score per image, in their order.

    Raises:
        ValueError: no images, an image of another type or too small for SSIM, `sigma` outside [0, 1], or a model whose
            output is not finite.
    """
    if not images:
        raise ValueError("`images` must hold at least one image, got none")
    if not 0 <= sigma <= 1:
        raise ValueError(f"`sigma` must lie in [0, 1] (grey levels divided by 255), got {sigma}")
    for name, clean in images.items():
        _check_image(name, clean)
    scores = []
    for name, image in images.items():
        clean = np.ascontiguousarray(image[..., :3])
        noisy = image[..., 3:] if image.shape[2] == 6 else add_test_awgn(clean / white_level(clean), sigma, seed=seed)
        score = score_image(
            lambda noisy: denoise_image(model, noisy, tile_size=tile_size, tile_overlap=tile_overlap, device=device),
            name=name, clean=clean, noisy=noisy, keep_images=keep_images,
        )  # fmt: skip
        scores.append(score)
    return scores


def score_image(
    denoise: Callable[[Tensor], Tensor], *, name: str, clean: np.ndarray, noisy: np.ndarray, keep_images: bool = False
) -> ImageScore:
    """Denoise one image and score the result.

    Args:
        denoise: maps (1, 3, H, W) float32 to the same shape on the CPU.
        name: of the image.
        clean: (H, W, 3) uint8 or uint16.
        noisy: (H, W, 3), uint8, uint16 or float32 on the [0, 1] scale, not clipped.
        keep_images: return the noisy and the denoised image with the score.

    Raises:
        ValueError: the images differ in shape, are too small for SSIM, or the output is not finite.
    """
    _check_image(name, clean)
    if noisy.shape != clean.shape:
        raise ValueError(
            f"image {name!r} must be as large noisy as clean, got clean {clean.shape} and noisy {noisy.shape}"
        )
    noisy_tensor = to_tensor(noisy)
    start = time.perf_counter()
    denoised = denoise(noisy_tensor)
    seconds = time.perf_counter() - start  # the result is on the CPU, so the device has finished
    if not denoised.isfinite().all():
        raise ValueError(f"the denoiser's output for image {name!r} is not finite")
    data_range = white_level(clean)
    noisy_image, denoised_image = to_image(noisy_tensor, like=clean), to_image(denoised, like=clean)
    unrounded = denoised[0].permute(1, 2, 0).double().clamp(0, 1).numpy() * data_range  # (1, 3, H, W) -> (H, W, 3)
    return ImageScore(
        name=name,
        noisy_psnr_db=psnr_db(noisy_image, clean, data_range=data_range),
        noisy_ssim=ssim(noisy_image, clean, data_range=data_range),
        psnr_db=psnr_db(denoised_image, clean, data_range=data_range),
        ssim=ssim(denoised_image, clean, data_range=data_range),
        psnr_unrounded_db=psnr_db(unrounded, clean, data_range=data_range),
        ssim_3d=ssim_3d(unrounded, clean, data_range=data_range),
        seconds=seconds,
        noisy=noisy_image if keep_images else None,
        denoised=denoised_image if keep_images else None,
    )


def mean_score(scores: Sequence[ImageScore]) -> ImageScore:
    """Average every number over the images; the name of the result is `mean`.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("`scores` must hold at least one score, got none")
    return ImageScore(
        name="mean",
        noisy_psnr_db=fmean(score.noisy_psnr_db for score in scores),
        noisy_ssim=fmean(score.noisy_ssim for score in scores),
        psnr_db=fmean(score.psnr_db for score in scores),
        ssim=fmean(score.ssim for score in scores),
        psnr_unrounded_db=fmean(score.psnr_unrounded_db for score in scores),
        ssim_3d=fmean(score.ssim_3d for score in scores),
        seconds=fmean(score.seconds for score in scores),
    )


def _check_image(name: str, image: np.ndarray) -> None:
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim != 3
        or image.shape[2] not in (3, 6)
        or min(image.shape[:2]) < SSIM_WINDOW_SIZE
    ):
        raise ValueError(
            f"image {name!r} must be (H, W, 3) or (H, W, 6) uint8 or uint16 with both sides at least "
            f"{SSIM_WINDOW_SIZE} pixels, got {image.dtype} of shape {image.shape}"
        )
