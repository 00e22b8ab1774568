"""What three part searches are given, made from the settings: space, costs, budgets, patches with the prior's features.

Called by `pipeline.run`, `pipeline.collect` and the experiments before they search, and by `pipeline.part_actors` where
a part is searched. Knows nothing of Ray.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latency import LatencyTable, predict_latency_ms
from ops import OpSpec
from pipeline.config import Config
from pipeline.data.part_data import (
    CachedFeatures,
    LiveFeatures,
    PartData,
    PatchSet,
    compute_patch_set,
    patch_set_bytes,
    split_images,
)
from pipeline.data.patches import PatchSource, noisy_patches
from pipeline.data.scenes import scenes_of
from pipeline.priors import NUM_PARTS, Prior, load_prior
from search_space import CostModel, Genotype, SearchSpace, genotype_op_specs, op_macs, op_num_parameters


@dataclass(frozen=True, kw_only=True)
class SearchInputs:
    """What the three part searches share: a patch set with the prior's features, or the images that make them live."""

    patches: PatchSet | None
    images: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])


def space_of(config: Config, num_channels: int) -> SearchSpace:
    """Return the search space of `config` with the prior's channels."""
    return SearchSpace(
        num_channels=num_channels,
        num_resolutions=config.space.num_resolutions,
        num_layers=config.space.num_layers,
        candidate_ops=config.space.candidate_ops,
    )


def cost_models(config: Config, space: SearchSpace, latency_ms: Callable[[OpSpec], float] | None) -> list[CostModel]:
    """Return the costs of the three parts in the unit that `search.cost` names.

    Raises:
        ValueError: `search.cost` is `latency` and there is no table.
    """
    if config.search.cost == "latency" and latency_ms is None:
        raise ValueError("`search.cost` is latency, but there is no latency table")
    prices: dict[str, Callable[[OpSpec], float] | None] = {
        "latency": latency_ms, "parameters": op_num_parameters, "macs": op_macs
    }  # fmt: skip
    price = prices[config.search.cost]
    assert price is not None
    size = config.latency.image_size
    return [CostModel(i, space, price, height=size, width=size) for i in range(NUM_PARTS)]


def predicted_ms(table: LatencyTable, genotype: Genotype, size: int) -> float:
    """Return the sum of the prices of all operator calls of a network on a `size` x `size` image.

    Raises:
        KeyError: a call has no price.
    """
    specs = genotype_op_specs(genotype, height=size, width=size)
    return predict_latency_ms(table, [spec for part in specs for spec in part])


def prepare_inputs(
    config: Config,
    prior: Prior,
    images: Mapping[str, np.ndarray],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SearchInputs:
    """Split the images and, where `search.prior_features` is `cached`, run the prior once over a fixed patch set."""
    search = config.search
    halves = split_training_images(config, images)
    if search.prior_features == "live":
        return SearchInputs(patches=None, images=halves)
    patches = compute_patch_set(
        prior,
        patch_sources(config, halves),
        num_patches=search.num_patches,
        architecture_share=config.data.architecture_share,
        batch_size=search.batch_size,
        generator=torch.Generator().manual_seed(config.seed),
        progress=progress,
    )
    return SearchInputs(patches=patches)  # without the images, which would only fill Ray's object store


def features_megabytes(config: Config, num_channels: int) -> float:
    """Return the estimated size of the cached features in MB."""
    return patch_set_bytes(config.search.num_patches, config.search.patch_size, num_channels) / 1e6


def part_budgets(config: Config, costs: list[CostModel]) -> list[float | None]:
    """Divide `search.target_ms` among the parts: each what its stem and narrowest tail cost, and a third of the rest.

    Raises:
        ValueError: the budget is below what stems and tails alone cost.
    """
    if config.search.target_ms is None:
        return [None] * NUM_PARTS
    frames = [cost.minimum_frame_cost for cost in costs]
    rest = config.search.target_ms - sum(frames)
    if rest <= 0:
        raise ValueError(
            f"`search.target_ms` {config.search.target_ms} is below the {sum(frames):.2f} ms that stems and tails cost"
        )
    return [frame + rest / NUM_PARTS for frame in frames]


def split_training_images(
    config: Config, images: Mapping[str, np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Divide the training images, by name, into those for weights and those for the architecture."""
    return split_images(
        list(images.values()), config.data.architecture_share, patch_size=config.search.patch_size,
        scenes=scenes_of(images), names=list(images),
    )  # fmt: skip


def patch_sources(config: Config, halves: tuple[list[np.ndarray], list[np.ndarray]]) -> dict[Any, PatchSource]:
    """Return the sources of patches of D_w and D_archi, from the images of each."""
    return {
        split: noisy_patches(images, config.noise, patch_size=config.search.patch_size)
        for split, images in zip(("weights", "architecture"), halves, strict=True)
    }


def part_data(config: Config, inputs: SearchInputs, part_index: int) -> PartData:
    """Return the training data of one part, on the device of `config`."""
    device = torch.device(config.device)
    if inputs.patches is not None:
        return CachedFeatures(inputs.patches, part_index, device)
    prior = load_prior(config.prior.weights, device=device)
    return LiveFeatures(prior, patch_sources(config, inputs.images), part_index)


def search_key(config: Config) -> str:
    """Return what a search checkpoint must agree on: every setting that the search depends on."""
    settings = config.lasting_settings()
    keys = ("seed", "device", "data", "noise", "space", "prior", "search")
    return json.dumps({key: settings[key] for key in keys} | {"size": config.latency.image_size}, sort_keys=True)
