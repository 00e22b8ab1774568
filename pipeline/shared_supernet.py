"""One trained supernet per part, shared by a whole collection.

Called by `pipeline.collection_supernets` and the experiment `proxies`. Architectures are scored with its weights, all
of them with the same, and searches may begin from it. Trained as Guo et al., "Single Path One-Shot Neural Architecture
Search", arXiv 1904.00420: one random architecture per step, so that no choice is preferred.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.data.part_data import PartData
from pipeline.losses import feature_distance, is_good_step
from search_space import (
    DenoisingNetwork,
    Genotype,
    PartNetwork,
    PartSupernet,
    SearchSpace,
    build_network,
    choices_of,
    inherit_weights,
    sample_part,
)


def train_shared_supernet(
    part_index: int,
    space: SearchSpace,
    data: PartData,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    max_bad_steps: int,
    threshold: float,
    progress: Callable[[int, float | None], None] | None = None,
) -> dict[str, Tensor]:
    """Train the weights of one part with L_dp (Eq. 11) on D_w.

    Even steps run a random derived part, as scoring does; odd steps the mixture of all pathways with random operators
    and widths, as a search does.

    Args:
        part_index: 0, 1 or 2.
        space: the search space.
        data: inputs and the prior's features.
        num_steps: how many steps.
        batch_size: patches per step.
        learning_rate: of Adam at the start; a cosine takes it to 0.
        seed: of weights, samples and batches.
        device: where to compute.
        max_bad_steps: steps that may be skipped because their loss is not finite.
        threshold: of the kept pathways of random derived parts.
        progress: called with (steps done, L_dp) after every step; None for a step that was skipped.

    Returns:
        The supernet's weights by name, without architecture parameters.

    Raises:
        FloatingPointError: more than `max_bad_steps` steps had no finite loss, or all of them.
    """
    torch.manual_seed(seed * 3 + part_index)
    generator = torch.Generator().manual_seed(seed * 3 + part_index)
    supernet = PartSupernet(part_index, space, generator=generator)
    supernet.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(supernet.weight_parameters(), lr=learning_rate)
    num_bad_steps = 0
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        if step % 2 == 0:
            choices = choices_of(sample_part(space, generator=generator, threshold=threshold), space)
        else:
            choices = supernet.arch.sample(
                estimator="sampled", temperature=1.0, generator=generator, with_gradient=False
            )
        x, target = data.sample("weights", batch_size, generator)
        loss = feature_distance(supernet(x, choices), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        is_good = is_good_step(loss.item(), supernet.weight_parameters())
        if is_good:
            optimizer.step()
        else:
            num_bad_steps += 1
        if num_bad_steps > min(max_bad_steps, num_steps - 1):
            raise FloatingPointError(
                f"shared supernet {part_index}, step {step + 1}: {num_bad_steps} steps had a loss or gradient that is "
                f"not finite, `search.max_bad_steps` is {max_bad_steps}; lower `collect.shared_learning_rate`"
            )
        if progress is not None:
            progress(step + 1, loss.item() if is_good else None)
    return supernet_weights(supernet)


def supernet_weights(supernet: PartSupernet) -> dict[str, Tensor]:
    """Return what `load_supernet` takes: everything but the architecture parameters, on the CPU."""
    return {
        name: parameter.detach().cpu()
        for name, parameter in supernet.named_parameters()
        if not name.startswith("arch.")
    }


@torch.no_grad()
def load_supernet(supernet: PartSupernet, weights: dict[str, Tensor]) -> None:
    """Copy weights of a supernet that has at least the operators of `supernet`.

    Raises:
        ValueError: a weight is missing or of another shape.
    """
    for name, parameter in supernet.named_parameters():
        if name.startswith("arch."):
            continue
        if name not in weights or weights[name].shape != parameter.shape:
            raise ValueError(f"the shared supernet has no weight {name!r} of shape {tuple(parameter.shape)}")
        parameter.copy_(weights[name])


def load_supernets(space: SearchSpace, weights: list[dict[str, Tensor]]) -> list[PartSupernet]:
    """Build the three supernets of `weights`, to lend them to architectures; they are not trained any more."""
    supernets = []
    for part_index, part_weights in enumerate(weights):
        supernet = PartSupernet(part_index, space, generator=torch.Generator())
        load_supernet(supernet, part_weights)
        supernets.append(supernet.requires_grad_(False))
    return supernets


def inherited_network(genotype: Genotype, supernets: Sequence[PartSupernet]) -> DenoisingNetwork:
    """Build the network of `genotype` with the weights that the supernets have for it."""
    network = build_network(genotype)
    for part, supernet in zip(network.parts, supernets, strict=True):
        assert isinstance(part, PartNetwork)
        inherit_weights(part, supernet)
    return network
