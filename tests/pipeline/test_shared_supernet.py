"""Supernets that a whole collection shares; what they are for is tested by `test_collect.py`."""

import pytest
import torch
from torch import Tensor

from pipeline import shared_supernet
from pipeline.data.part_data import CachedFeatures, PatchSet
from pipeline.shared_supernet import train_shared_supernet
from search_space import Choices, PartGenotype, SearchSpace, choices_of


def test_random_parts_keep_what_the_threshold_allows(
    tiny_space: SearchSpace, patch_set: PatchSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[PartGenotype] = []

    def recorded(part: PartGenotype, space: SearchSpace) -> Choices:
        drawn.append(part)
        return choices_of(part, space)

    monkeypatch.setattr(shared_supernet, "choices_of", recorded)
    train_shared_supernet(
        1, tiny_space, CachedFeatures(patch_set, 1, torch.device("cpu")), num_steps=4, batch_size=2,
        learning_rate=1e-3, seed=0, device=torch.device("cpu"), max_bad_steps=2, threshold=0.8,
    )  # fmt: skip
    assert {len(cell.resolution_pathways) for part in drawn for cell in part.cells} == {1, 2}


@pytest.mark.parametrize("num_bad", [2, 3])
def test_bad_steps_are_skipped_until_there_are_too_many(
    tiny_space: SearchSpace, patch_set: PatchSet, monkeypatch: pytest.MonkeyPatch, num_bad: int
) -> None:
    distance, told = shared_supernet.feature_distance, []

    def poisoned(features: Tensor, target: Tensor) -> Tensor:
        return distance(features, target) * (float("nan") if len(told) < num_bad else 1.0)

    def train() -> dict[str, Tensor]:
        return train_shared_supernet(
            1, tiny_space, CachedFeatures(patch_set, 1, torch.device("cpu")), num_steps=6, batch_size=2,
            learning_rate=1e-3, seed=0, device=torch.device("cpu"), max_bad_steps=2, threshold=0.5,
            progress=lambda step, l_dp: told.append(l_dp),
        )  # fmt: skip

    monkeypatch.setattr(shared_supernet, "feature_distance", poisoned)
    if num_bad == 2:
        assert all(tensor.isfinite().all() for tensor in train().values())
        assert told[:2] == [None, None] and all(l_dp is not None for l_dp in told[2:])
        return
    with pytest.raises(FloatingPointError, match=r"shared supernet 1, step 3: 3 steps had .*max_bad_steps` is 2"):
        train()
