"""The patches that the part searches learn from, with their clean images: for searches without a prior.

Called by the experiments `prior` and `nas`, whose searches are compared with ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.part_data import Split, draw_patches
from pipeline.data.patches import Patches
from pipeline.experiments.experiment import CellJob
from pipeline.search_inputs import patch_sources, split_training_images


class FixedPatches:
    """Draw from a fixed set of patches.

    Attributes:
        noisy: (N, 3, P, P) float32.
        clean: likewise.
    """

    def __init__(self, noisy: Tensor, clean: Tensor) -> None:
        self.noisy = noisy
        self.clean = clean

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw noisy and clean patches, both (B, 3, P, P)."""
        indices = torch.randint(len(self.noisy), (batch_size,), generator=generator)
        return self.noisy[indices], self.clean[indices]


def clean_patches(job: CellJob, config: Config) -> Mapping[Split, Patches]:
    """Return D_w and D_archi: the patch set of our search where it has one, fresh patches where its features are live.

    Equal seeds give equal patches: both sets are drawn by `draw_patches`.
    """
    search = config.search
    sources = patch_sources(config, split_training_images(config, job.inputs.training_images))
    if search.prior_features == "live":
        return sources
    generator = torch.Generator().manual_seed(config.seed)
    drawn: dict[Split, list[tuple[Tensor, Tensor]]] = {"weights": [], "architecture": []}
    for split, noisy, clean in draw_patches(
        sources, num_patches=search.num_patches, architecture_share=config.data.architecture_share,
        batch_size=search.batch_size, generator=generator,
    ):  # fmt: skip
        drawn[split].append((noisy, clean))
    return {split: FixedPatches(*map(torch.cat, zip(*batches, strict=True))) for split, batches in drawn.items()}
