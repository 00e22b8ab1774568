"""L_dp and L_train, SSIM as a loss, and whether a step may be taken.

Called by the part searches (Eq. 11) and by retraining (Eq. 14) of arXiv 2502.13359, by the trainings of priors and
shared supernets, and by the peers' searches.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.metrics import SSIM_SIGMA, SSIM_WINDOW_SIZE


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Return L_dp of Eq. (11) without a unit: squared error over the mean square of the prior's features.

    Args:
        features: output of a searched part, (B, C, H, W).
        target: output of the prior's part, same shape.
    """
    return F.mse_loss(features, target) / target.square().mean()  # Eq. (11), made comparable between parts (E6)


def training_loss(
    denoised: Tensor,
    clean: Tensor,
    features: Sequence[Tensor] = (),
    targets: Sequence[Tensor] = (),
    *,
    prior_denoised: Tensor | None = None,
) -> Tensor:
    """Return L_train of Eq. (14): L1, plus L_dp summed over the parts that are given.

    Prior and network run separately on the same noisy image (E18).

    Args:
        denoised: (B, 3, H, W), the network's result.
        clean: same shape.
        features: outputs of the network's parts, (B, C, H, W) or the (B, 3, H, W) residual image; none without L_dp.
        targets: what the prior gives for the same parts, same shapes.
        prior_denoised: (B, 3, H, W), the prior's result; L1 is then the mean of the distances to it and to the clean
            image (not in the paper).
    """
    loss = F.l1_loss(denoised, clean)
    if prior_denoised is not None:
        loss = (loss + F.l1_loss(denoised, prior_denoised)) / 2
    for output, target in zip(features, targets, strict=True):
        loss = loss + feature_distance(output, target)
    return loss


def structural_similarity(image: Tensor, reference: Tensor) -> Tensor:
    """Return the mean SSIM of a batch, differentiable: `pipeline.metrics.ssim` for values in [0, 1].

    Args:
        image: (B, C, H, W), height and width at least 11.
        reference: same shape.
    """
    channels = image.shape[1]
    offsets = torch.arange(SSIM_WINDOW_SIZE, device=image.device) - SSIM_WINDOW_SIZE // 2
    taps = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2)).to(image)
    window = torch.outer(taps, taps) / taps.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window.expand(channels, 1, -1, -1), groups=channels)  # whole windows only

    mu, mu_reference = mean(image), mean(reference)
    variance, variance_reference = mean(image**2) - mu**2, mean(reference**2) - mu_reference**2
    covariance = mean(image * reference) - mu * mu_reference
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mu * mu_reference + c1) / (mu**2 + mu_reference**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance + variance_reference + c2)).mean()


def is_good_step(loss: float, parameters: Iterable[nn.Parameter]) -> bool:
    """Return whether a loss and the gradients that it left are finite, so that an optimiser may use them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return math.isfinite(loss) and bool(nn.utils.get_total_norm(gradients).isfinite())
