"""The patches that the part searches learn from, with their clean images: for searches without a prior.

Called by the experiments `prior` and `nas`, whose searches are compared with ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.data.part_data import Split, num_weight_patches
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

    The set is drawn as `compute_patch_set` draws it, so that equal seeds give equal patches.
    """
    search = config.search
    sources = patch_sources(config, split_training_images(config, job.inputs.training_images))
    if search.prior_features == "live":
        return sources
    generator = torch.Generator().manual_seed(config.seed)
    num_weights = num_weight_patches(search.num_patches, config.data.architecture_share)
    sizes: dict[Split, int] = {"weights": num_weights, "architecture": search.num_patches - num_weights}
    fixed: dict[Split, Patches] = {}
    for split, size in sizes.items():
        batches = [
            sources[split].sample(min(search.batch_size, size - first), generator)
            for first in range(0, size, search.batch_size)
        ]
        noisy, clean = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
        fixed[split] = FixedPatches(noisy, clean)
    return fixed
