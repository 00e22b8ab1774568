"""L_dp and L_train.

Called by the part searches (Eq. 11) and by retraining (Eq. 14) of arXiv 2502.13359.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def feature_distance(features: Tensor, target: Tensor) -> Tensor:
    """Return L_dp of Eq. (11) without a unit: squared error over the mean square of the prior's features.

    Args:
        features: output of a searched part, (B, C, H, W).
        target: output of the prior's part, same shape.
    """
    return F.mse_loss(features, target) / target.square().mean()  # Eq. (11), made comparable between parts (E6)


def training_loss(
    denoised: Tensor, clean: Tensor, features: Sequence[Tensor] = (), targets: Sequence[Tensor] = ()
) -> Tensor:
    """Return L_train of Eq. (14): L1, plus L_dp summed over the parts that are given.

    Prior and network run separately on the same noisy image (E18).
    """
    loss = F.l1_loss(denoised, clean)
    for output, target in zip(features, targets, strict=True):
        loss = loss + feature_distance(output, target)
    return loss
