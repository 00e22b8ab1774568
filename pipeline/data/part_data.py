"""What a part search learns from: the prior's features, cached for a patch set or computed live.

Made by `pipeline.search_inputs`, read by `pipeline.part_search`. Features before part 1 and 2 come from the prior's
parts, so that every part can be searched on its own (Eq. 11 of arXiv 2502.13359).

Legend: B batch, C channels, P patch size, N patches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.data.patches import PatchSource
from pipeline.priors import Prior, Recorded

Split = Literal["weights", "architecture"]


class PartData(Protocol):
    """Source of (input, target) pairs of one part."""

    def sample(self, split: Split, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch of one half of the training data: D_w (`weights`) or D_archi (`architecture`)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PatchSet:
    """A fixed set of noisy patches with the prior's features, as arrays that Ray shares without copying.

    Attributes:
        signals: noisy (N, 3, P, P), features after part 0 and 1 (N, C, P, P), residual (N, 3, P, P); float32.
        num_weights: the first patches train weights, the rest the architecture.
    """

    signals: tuple[np.ndarray, ...]
    num_weights: int

    @property
    def num_bytes(self) -> int:
        """Memory of all signals."""
        return sum(signal.nbytes for signal in self.signals)


def patch_set_bytes(num_patches: int, patch_size: int, num_channels: int) -> int:
    """Return how much memory a `PatchSet` takes: 4 bytes x P x P x (3 + C + C + 3) per patch."""
    return num_patches * patch_size * patch_size * (6 + 2 * num_channels) * 4


def split_images(
    images: Sequence[np.ndarray],
    architecture_share: float,
    *,
    patch_size: int,
    scenes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Divide images into D_w and D_archi, which share no pixel and no scene of several images.

    Few images (less than ten) of as many scenes are each cut in two along their longer side; otherwise they are dealt
    out whole, evenly spread over the list, and images of one scene go the same way.

    Args:
        images: (H, W, C) each.
        architecture_share: share of D_archi.
        patch_size: that every cut piece must have at least on both sides.
        scenes: what every image shows; None: each its own scene.
        names: of the images, for messages; numbers by default.

    Returns:
        Images for weights and images for the architecture.

    Raises:
        ValueError: cut images would be smaller than a patch, all of which are named; or all images are of one scene.
    """
    scenes = [str(index) for index in range(len(images))] if scenes is None else scenes
    distinct = list(dict.fromkeys(scenes))
    if len(images) >= 10 or len(distinct) < len(images):
        positions = np.floor(np.arange(1, len(distinct) + 1) * architecture_share)
        chosen_scenes = {scene for scene, step in zip(distinct, np.diff(positions, prepend=0), strict=True) if step > 0}
        if not 0 < len(chosen_scenes) < len(distinct):
            raise ValueError(
                f"{len(images)} training images of {len(distinct)} scenes cannot be divided with "
                f"`data.architecture_share` {architecture_share}: one half would be empty"
            )
        is_architecture = [scene in chosen_scenes for scene in scenes]
        weights = [image for image, chosen in zip(images, is_architecture, strict=True) if not chosen]
        return weights, [image for image, chosen in zip(images, is_architecture, strict=True) if chosen]
    halves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    problems = []
    for name, image in zip(names or [str(index) for index in range(len(images))], images, strict=True):
        axis = int(image.shape[1] > image.shape[0])
        cut = round(image.shape[axis] * (1 - architecture_share))
        pieces = np.split(image, [cut], axis=axis)
        if min(min(piece.shape[:2]) for piece in pieces) < patch_size:
            problems.append(
                f"training image {name} of {image.shape[1]}x{image.shape[0]} pixels is too small to be cut into two "
                f"pieces of at least `search.patch_size` {patch_size}; give ten images or more, which are not cut"
            )
        for half, piece in zip(halves, pieces, strict=True):
            half.append(piece)
    if problems:
        raise ValueError("\n".join(problems))
    return halves


def num_weight_patches(num_patches: int, architecture_share: float) -> int:
    """Return how many of the patches train weights; both halves get at least one."""
    return max(1, min(num_patches - 1, round(num_patches * (1 - architecture_share))))


def draw_patches(
    sources: Mapping[Split, PatchSource],
    *,
    num_patches: int,
    architecture_share: float,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[tuple[Split, Tensor, Tensor]]:
    """Draw a set of patches in batches, those of D_w first.

    Yields:
        The half, then noisy and clean patches, (B, 3, P, P) each; B is `batch_size`, or less at the end of a half.
    """
    num_weights = num_weight_patches(num_patches, architecture_share)
    sizes: dict[Split, int] = {"weights": num_weights, "architecture": num_patches - num_weights}
    for split, size in sizes.items():
        for first in range(0, size, batch_size):
            noisy, clean = sources[split].sample(min(batch_size, size - first), generator)
            yield split, noisy, clean


def compute_patch_set(
    prior: Prior,
    sources: Mapping[Split, PatchSource],
    *,
    num_patches: int,
    architecture_share: float,
    batch_size: int,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> PatchSet:
    """Run the prior once over random noisy patches.

    Args:
        prior: the pretrained denoiser.
        sources: where patches of D_w and D_archi come from.
        num_patches: N in total.
        architecture_share: share of the patches that come from D_archi.
        batch_size: patches per run of the prior.
        generator: source of randomness.
        progress: called with (patches done, N).
    """
    device = next(prior.parameters()).device
    signals: list[np.ndarray] | None = None
    done = 0
    for _, noisy, _ in draw_patches(
        sources, num_patches=num_patches, architecture_share=architecture_share, batch_size=batch_size,
        generator=generator,
    ):  # fmt: skip
        with torch.inference_mode():
            outputs = prior.features(noisy.to(device, memory_format=torch.channels_last))
        batch = [noisy, *outputs]
        if signals is None:
            signals = [np.empty((num_patches, *t.shape[1:]), np.float32) for t in batch]
        for signal, tensor in zip(signals, batch, strict=True):
            signal[done : done + len(tensor)] = tensor.float().cpu().numpy()
        done += len(noisy)
        if progress:
            progress(done, num_patches)
    assert signals is not None
    return PatchSet(signals=tuple(signals), num_weights=num_weight_patches(num_patches, architecture_share))


class CachedFeatures:
    """Batches of one part from a `PatchSet`."""

    def __init__(self, patches: PatchSet, part_index: int, device: torch.device) -> None:
        self._input = patches.signals[part_index]
        self._target = patches.signals[part_index + 1]
        self._ranges = {
            "weights": (0, patches.num_weights),
            "architecture": (patches.num_weights, len(self._input)),
        }
        self._device = device

    def sample(self, split: Split, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw (input, target) of random patches of the half `split`."""
        first, last = self._ranges[split]
        indices = torch.randint(first, last, (batch_size,), generator=generator).numpy()
        return self._tensor(self._input[indices]), self._tensor(self._target[indices])

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device, memory_format=torch.channels_last)


class LiveFeatures:
    """Batches of one part from fresh patches: the prior runs in every step, on a GPU as one recorded graph."""

    def __init__(self, prior: Prior, sources: dict[Split, PatchSource], part_index: int) -> None:
        self._sources = sources
        self._device = next(prior.parameters()).device
        self._features = Recorded(lambda noisy: prior.features(noisy, num_parts=part_index + 1))

    def sample(self, split: Split, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw patches of the half `split` and run the prior up to and through the part."""
        noisy, _ = self._sources[split].sample(batch_size, generator)
        noisy = noisy.to(self._device, memory_format=torch.channels_last)
        *_, x, target = [noisy, *self._features(noisy)]
        return x, target
