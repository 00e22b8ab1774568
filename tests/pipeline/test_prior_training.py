from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import prior_training
from pipeline.data.patches import PatchSource
from pipeline.prior_training import new_prior, train_prior
from pipeline.priors import MIRNet, NAFNet, Prior
from pipeline.settings import PriorTrainConfig


@pytest.fixture
def config() -> PriorTrainConfig:
    return PriorTrainConfig(num_channels=8, patch_size=16, batch_size=2, num_steps=4, checkpoint_every=2)


@pytest.fixture
def by_name(images: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"a": images[0], "b": images[1]}


@pytest.fixture
def train(by_name: dict[str, np.ndarray], tmp_path: Path) -> Any:
    def train_(
        config: PriorTrainConfig, name: str = "prior.checkpoint", *, images: Any = by_name, **settings: Any
    ) -> Prior:
        torch.manual_seed(0)
        prior = new_prior(config)
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


def poison(monkeypatch: pytest.MonkeyPatch, bad_draws: set[int]) -> None:
    """Hand out clean patches of NaN in some draws, counted from 1."""
    draws, sample = count(1), PatchSource.sample

    def sample_(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        noisy, clean = sample(*arguments)
        return noisy, clean * torch.nan if next(draws) in bad_draws else clean

    monkeypatch.setattr(PatchSource, "sample", sample_)


def test_bad_steps_are_skipped_and_counted_over_a_restart(
    train: Any, config: PriorTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, num_steps=6, max_bad_steps=2)
    with monkeypatch.context() as patch:
        poison(patch, {2, 3, 5})
        message = (r"step 5: 3 steps had a loss .* not finite, `prior_train.max_bad_steps` is 2; lower .*; "
                   r"last good checkpoint: .*prior\.checkpoint, step 4")  # fmt: skip
        with pytest.raises(FloatingPointError, match=message):
            train(config)
    poison(monkeypatch, set())
    prior = train(replace(config, max_bad_steps=20))  # with more patience it goes on there
    assert all(parameter.isfinite().all() for parameter in prior.parameters())
    state = torch.load(tmp_path / "prior.checkpoint", weights_only=True)
    assert (state["step"], state["num_bad_steps"]) == (6, 2)


def test_a_training_without_a_finite_loss_leaves_no_prior(
    train: Any, config: PriorTrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(1, 5)))
    with pytest.raises(FloatingPointError, match=r"step 4: 4 steps had .*; last good checkpoint: .*, step 2"):
        train(config)
    assert torch.load(tmp_path / "prior.checkpoint", weights_only=True)["step"] == 2


def test_a_checkpoint_of_another_configuration_is_refused(train: Any, config: PriorTrainConfig) -> None:
    train(config)
    with pytest.raises(ValueError, match=r"prior\.checkpoint was made by .*'seed': 0.*, got .*'seed': 1"):
        train(replace(config, seed=1))


def test_a_checkpoint_of_other_images_is_refused(
    train: Any, config: PriorTrainConfig, by_name: dict[str, np.ndarray], tmp_path: Path
) -> None:
    train(config)
    a, b = by_name.values()
    for other in ({"a": a}, {"a": a, "c": b}, {"a": a, "b": b[:-1]}, {"a": a, "b": 255 - b}):
        message = rf"prior\.checkpoint was made by .*'images': '2, fingerprint \w+'.*, got .*'{len(other)}, fingerprint"
        with pytest.raises(ValueError, match=message):
            train(config, images=other)
    path = tmp_path / "prior.checkpoint"
    state = torch.load(path, weights_only=True)
    del state["config"]["images"]  # as earlier versions wrote it
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"prior\.checkpoint was made by .*, got .*'images'"):
        train(config)


def test_the_order_of_the_images_is_none_of_the_training(
    train: Any, config: PriorTrainConfig, by_name: dict[str, np.ndarray]
) -> None:
    first = train(config, "one.checkpoint")
    second = train(config, "two.checkpoint", images=dict(reversed(by_name.items())))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    train(config, "one.checkpoint", images=dict(reversed(by_name.items())))


def test_the_architecture_is_chosen_by_configuration(config: PriorTrainConfig) -> None:
    mirnet = new_prior(replace(config, num_blocks=2))
    assert isinstance(mirnet, MIRNet)
    assert mirnet.sizes == {"num_channels": 8, "num_blocks": 2}
    nafnet = new_prior(replace(config, architecture="nafnet", encoder_blocks=(1, 2), decoder_blocks=(2, 1)))
    assert isinstance(nafnet, NAFNet)
    assert nafnet.sizes == {
        "num_channels": 8, "encoder_blocks": [1, 2], "middle_blocks": 2, "decoder_blocks": [2, 1]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "unet"}, "`prior_train.architecture` must be one of mirnet, nafnet, got 'unet'"),
        ({"architecture": "nafnet", "patch_size": 20}, "a multiple of 8 for a NAFNet of 3 levels, got 20"),
    ],
)
def test_what_no_prior_can_be_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PriorTrainConfig(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mirnet", "nafnet"])
def test_the_loss_falls(train: Any, config: PriorTrainConfig, architecture: str) -> None:
    rows: list[tuple[int, float, float]] = []
    config = replace(config, architecture=architecture, num_steps=100, checkpoint_every=100, learning_rate=3e-3)
    train(config, progress=lambda *row: rows.append(row))
    assert [step for step, _, _ in rows] == [50, 100]
    assert rows[-1][1] < rows[0][1]


@pytest.mark.parametrize("bad", [1, 3])
def test_bad_steps_are_skipped_until_there_are_too_many(
    train: Any, config: PriorTrainConfig, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """A loss that is not a number leaves no trace in the weights."""
    l1_loss, calls = prior_training.F.l1_loss, []

    def poisoned(*arguments: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return l1_loss(*arguments) * (float("nan") if len(calls) <= bad else 1.0)

    monkeypatch.setattr(prior_training.F, "l1_loss", poisoned)
    patient = replace(config, max_bad_steps=2)
    if bad == 1:
        assert all(parameter.isfinite().all() for parameter in train(patient).parameters())
        return
    with pytest.raises(
        FloatingPointError, match=r"step 3: 3 steps had a loss .*`prior_train.max_bad_steps` is 2; .*step 2"
    ):
        train(patient)
