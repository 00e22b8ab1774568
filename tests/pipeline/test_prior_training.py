from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import prior_training
from pipeline.config import PriorTrainConfig
from pipeline.prior_training import train_prior
from pipeline.priors import MIRNet


@pytest.fixture
def config() -> PriorTrainConfig:
    return PriorTrainConfig(num_channels=8, patch_size=16, batch_size=2, num_steps=4, checkpoint_every=2)


@pytest.fixture
def train(images: list[np.ndarray], tmp_path: Path) -> Any:
    def train_(config: PriorTrainConfig, name: str = "prior.checkpoint", **settings: Any) -> MIRNet:
        torch.manual_seed(0)
        prior = MIRNet(num_channels=config.num_channels, num_blocks=config.num_blocks)
        train_prior(prior, images, config, checkpoint_path=tmp_path / name, device=torch.device("cpu"), **settings)
        return prior

    return train_


def test_a_killed_training_goes_on_as_if_undisturbed(
    train: Any, config: PriorTrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(config, "undisturbed.checkpoint")
    save = prior_training.save_checkpoint

    def save_and_die(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prior_training, "save_checkpoint", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    resumed = train(config)
    assert not resumed.training
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_a_finished_training_is_not_repeated(
    train: Any, config: PriorTrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = train(config)

    def step(*arguments: Any) -> float:
        raise AssertionError("trained again")

    monkeypatch.setattr(prior_training, "_step", step)
    again = train(config)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), finished.parameters(), strict=True))


def test_a_checkpoint_of_another_configuration_is_refused(train: Any, config: PriorTrainConfig) -> None:
    train(config)
    with pytest.raises(ValueError, match=r"prior\.checkpoint was made by .*'seed': 0.*, got .*'seed': 1"):
        train(replace(config, seed=1))


@pytest.mark.slow
def test_the_loss_falls(train: Any, config: PriorTrainConfig) -> None:
    rows: list[tuple[int, float, float]] = []
    config = replace(config, num_steps=100, checkpoint_every=100, learning_rate=3e-3)
    train(config, progress=lambda *row: rows.append(row))
    assert [step for step, _, _ in rows] == [50, 100]
    assert rows[-1][1] < rows[0][1]
