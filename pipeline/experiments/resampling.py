"""Table I: which down-sampling and which up-sampling module suits denoising.

The toy network of Section III-B of arXiv 2502.13359: two convolutions, a down-sampling, twelve convolutions, an
up-sampling, two convolutions, and the input added to the output. The paper names no activations, channels or kernel
sizes; here convolutions are 3x3 with LeakyReLU(0.2) but the last, with the prior's channels, and the concatenation is
fused by a 1x1 convolution. Model-5 has the project's own `down` and `up`.

Legend: B batch, C channels, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops import OpSpec, create_op
from pipeline.experiments.experiment import CellJob, Claim, Experiment, Values, Variant, compare
from pipeline.experiments.networks import COST_COLUMNS, PSNR, time_network, train_and_score, with_l1_alone
from pipeline.priors import load_prior

_NUM_INNER = 12
_SLOPE = 0.2  # of LeakyReLU, as in `ops.conv`


class ToyNetwork(nn.Module):
    """The five models of Table I.

    Args:
        down: `average` (pooling of 2x2) or `convolution` (3x3, stride 2).
        up: `bilinear`, `transposed` (3x3 transposed convolution, stride 2) or `shuffle` (3x3 convolution, pixel
            shuffle).
        has_concatenation: the up-sampled feature is concatenated with the one before the down-sampling, and fused.
        channels: C.

    Raises:
        ValueError: pixel shuffle without concatenation, which the paper does not have.
    """

    def __init__(self, *, down: str, up: str, has_concatenation: bool, channels: int) -> None:
        super().__init__()
        if up == "shuffle" and not has_concatenation:
            raise ValueError("the toy network with pixel shuffle has a concatenation")
        self.first = nn.Sequential(_convolution(3, channels), _convolution(channels, channels))
        self.down = _create("down", channels) if down == "convolution" else nn.AvgPool2d(2, ceil_mode=True)
        self.inner = nn.Sequential(*(_convolution(channels, channels) for _ in range(_NUM_INNER)))
        self.up: nn.Module | None = None
        if up == "shuffle":
            self.up = _create("up", channels)  # fuses by itself
        elif up == "transposed":
            self.up = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1)
        self.fuse = nn.Conv2d(2 * channels, channels, 1) if has_concatenation and up != "shuffle" else None
        self.is_shuffled = up == "shuffle"
        self.last = nn.Sequential(_convolution(channels, channels), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (B, 3, H, W)."""
        fine = self.first(noisy)
        coarse = self.inner(self.down(fine))  # (B, C, ceil(H / 2), ceil(W / 2))
        height, width = fine.shape[2:]
        if self.is_shuffled:
            assert self.up is not None
            return noisy + self.last(self.up(coarse, fine))
        if self.up is None:
            coarse = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        else:
            coarse = self.up(coarse)
        coarse = coarse[..., :height, :width]
        if self.fuse is not None:
            coarse = self.fuse(torch.cat((coarse, fine), dim=1))
        return noisy + self.last(coarse)


def build_model(name: str, channels: int) -> ToyNetwork:
    """Return the model of a variant with freshly initialised weights."""
    down, up, has_concatenation = _MODULES[name]
    return ToyNetwork(down=down, up=up, has_concatenation=has_concatenation, channels=channels)


def run(job: CellJob) -> Values:
    """Train and score one of the five models; there is no prior in it (Eq. 14 without L_dp)."""
    config = with_l1_alone(job.config, job.config.experiment.toy_epochs)
    torch.manual_seed(config.seed)
    return train_and_score(job, config, build_model(job.variant, _num_channels(job)))


def measure(job: CellJob) -> Values:
    """Time one of the five models; weights do not matter."""
    return time_network(job.config, build_model(job.variant, _num_channels(job)))


def _num_channels(job: CellJob) -> int:
    return load_prior(job.config.prior.weights).num_channels


def _convolution(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.LeakyReLU(_SLOPE))


def _create(name: str, channels: int) -> nn.Module:
    return create_op(
        OpSpec(name=name, in_channels=channels, out_channels=channels, base_channels=channels, height=1, width=1)
    )


_MODULES = {
    "model-1": ("average", "bilinear", False),
    "model-2": ("average", "bilinear", True),
    "model-3": ("convolution", "bilinear", True),
    "model-4": ("convolution", "transposed", True),
    "model-5": ("convolution", "shuffle", True),
}

EXPERIMENT = Experiment(
    name="resampling",
    title="down- and up-sampling modules (Table I)",
    description=(
        "Five toy networks that differ in how they halve and double the resolution, trained with the same seeds, "
        "patches and steps. The paper's figures are for its Case 1 on Set5 and a model of unknown width; only "
        "differences compare."
    ),
    variants=(
        Variant(name="model-1", label="Model-1: average pooling, bilinear", paper={"psnr_db": 24.83}),
        Variant(name="model-2", label="Model-2: average pooling, bilinear, concatenation", paper={"psnr_db": 28.66}),
        Variant(name="model-3", label="Model-3: stride-2 convolution, bilinear, concatenation",
                paper={"psnr_db": 28.96}),
        Variant(name="model-4", label="Model-4: stride-2 convolution, transposed convolution, concatenation",
                paper={"psnr_db": 28.35}),
        Variant(name="model-5", label="Model-5: stride-2 convolution, pixel shuffle, concatenation",
                paper={"psnr_db": 29.12}),
    ),
    columns=(PSNR, *COST_COLUMNS),
    claims=(
        Claim(text="a stride-2 convolution is better than average pooling (Model-3 over Model-2)",
              estimate=compare("psnr_db", "model-3", "model-2"), unit="dB", paper=0.30),
        Claim(text="concatenation helps (Model-2 over Model-1)",
              estimate=compare("psnr_db", "model-2", "model-1"), unit="dB", paper=3.83),
        Claim(text="pixel shuffle is better than bilinear up-sampling (Model-5 over Model-3)",
              estimate=compare("psnr_db", "model-5", "model-3"), unit="dB", paper=0.16),
        Claim(text="pixel shuffle is better than a transposed convolution (Model-5 over Model-4)",
              estimate=compare("psnr_db", "model-5", "model-4"), unit="dB", paper=0.77),
    ),
    run=run,
    searches=False,
    measure=measure,
)  # fmt: skip
