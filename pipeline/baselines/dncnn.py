"""DnCNN: a chain of convolutions with batch normalisation that gives the noise.

Built by `pipeline.baselines.build_baseline`.
Zhang et al., "Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", arXiv 1608.03981.
"""

from torch import Tensor, nn


class DnCNN(nn.Module):
    """The colour DnCNN: convolution + ReLU, then convolution + normalisation + ReLU, then a convolution to the noise.

    Args:
        num_channels: features of every hidden layer; 64 as published.
        num_layers: convolutions in total; 20 as published for colour and blind noise, 17 for one sigma.

    Raises:
        ValueError: a number is too small.
    """

    def __init__(self, *, num_channels: int = 64, num_layers: int = 20) -> None:
        super().__init__()
        if num_channels < 1 or num_layers < 2:
            raise ValueError(
                f"`num_channels` must be at least 1 and `num_layers` at least 2, got {num_channels} and {num_layers}"
            )
        self.sizes = {"num_channels": num_channels, "num_layers": num_layers}
        layers: list[nn.Module] = [nn.Conv2d(3, num_channels, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(num_layers - 2):
            layers.append(nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False))
            layers += [nn.BatchNorm2d(num_channels), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(num_channels, 3, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # Section IV-A

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W) images of any size, in [0, 1] plus noise; the result is not clamped."""
        return noisy - self.layers(noisy)
