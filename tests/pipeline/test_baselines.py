import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.baselines import DnCNN, build_baseline, is_baseline, list_baselines, load_baseline, save_baseline
from pipeline.config import load_config
from pipeline.data.patches import PatchSource
from pipeline.models import load_denoiser
from pipeline.priors import save_prior
from pipeline.training import Trainer

CELL = [[[0, "conv3"], [1, "sep3"]]]
SMALL: dict[str, dict[str, Any]] = {
    "clearer": {"genotype": {"num_channels": [4, 8, 16], "modules": ["fusion", "parallel"]}},
    "dncnn": {"num_channels": 8, "num_layers": 4},
    "hinas": {"genotype": {"num_channels": 8, "levels": [0, 1], "cells": [CELL, CELL]}},
    "mirnet": {"num_channels": 8, "num_blocks": 1},
    "nafnet": {"num_channels": 8, "encoder_blocks": (1, 1), "middle_blocks": 1, "decoder_blocks": (1, 1)},
    "plain_unet": {"num_channels": 8},
}


def build_small(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_baseline(name, **SMALL[name])


@pytest.fixture
def noisy(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 21, 18, generator=generator)


def test_every_baseline_is_tested() -> None:
    assert list_baselines() == sorted(SMALL)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(37, 31), (5, 3), (16, 16)])
def test_images_of_any_size_keep_it(name: str, size: tuple[int, int], generator: torch.Generator) -> None:
    network = build_small(name).eval()
    denoised = network(torch.rand(1, 3, *size, generator=generator))
    assert denoised.shape == (1, 3, *size)
    assert denoised.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_baselines_train_like_searched_networks(name: str, source: PatchSource) -> None:
    config = replace(
        load_config("tiny").retrain, num_epochs=2, steps_per_epoch=10, learning_rate=2e-3, distill_share=0.0
    )
    network = build_small(name)
    before = {key: parameter.detach().clone() for key, parameter in network.named_parameters()}
    trainer = Trainer(network, source, config, prior=None, seed=0, device=torch.device("cpu"))
    losses = [trainer.run_epoch()["loss"] for _ in range(2)]
    assert losses[1] < losses[0]
    assert not [key for key, parameter in network.named_parameters() if torch.equal(parameter, before[key])]


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_baseline_is_loaded_again(name: str, tmp_path: Path, noisy: Tensor) -> None:
    network = build_small(name)
    with torch.no_grad():
        network(noisy)  # moves the statistics of DnCNN's normalisation, which belong to it
    save_baseline(network.eval(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        again = load_denoiser(path)
        assert type(again) is type(network)
        assert not again.training
        torch.testing.assert_close(again(noisy), network(noisy), rtol=0, atol=1e-6)
    assert len(list(again.parameters())) == len(list(network.parameters()))  # what was shared still is


def test_dncnn_has_the_published_number_of_parameters() -> None:
    """20 layers of 64 features; the published count, 668,227, has one bias where normalisation has two numbers."""
    num_hidden = 18 * 64
    assert sum(p.numel() for p in DnCNN().parameters()) == 668_227 + num_hidden
    assert len([m for m in DnCNN(num_layers=17).modules() if isinstance(m, nn.Conv2d)]) == 17


def test_dncnn_gives_the_noise(noisy: Tensor) -> None:
    network = DnCNN(num_channels=4, num_layers=2)
    nn.init.zeros_(network.layers[-1].weight)
    nn.init.constant_(network.layers[-1].bias, 0.25)
    torch.testing.assert_close(network(noisy), noisy - 0.25)


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("unet", {}, "`name` of a baseline must be one of .*dncnn.*, got 'unet'"),
        ("dncnn", {"depth": 3}, r"baseline dncnn cannot be built with \{'depth': 3\}: .*depth"),
        ("dncnn", {"num_layers": 1}, "`num_layers` at least 2, got 64 and 1"),
        ("clearer", {}, "baseline clearer cannot be built with {}: .*genotype"),
        ("plain_unet", {"num_channels": 0}, "`num_channels` must be at least 1, got 0"),
    ],
)
def test_impossible_baselines_are_refused(name: str, sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_baseline(name, **sizes)


def test_other_networks_are_not_saved_as_baselines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`network` must be one of .*, got Conv2d"):
        save_baseline(nn.Conv2d(3, 3, 1), tmp_path / "model.safetensors")


def test_a_prior_is_no_baseline(tmp_path: Path, small_mirnet: Any) -> None:
    save_prior(small_mirnet, tmp_path / "prior.safetensors")
    assert not is_baseline(tmp_path / "prior.safetensors")
    assert not is_baseline(tmp_path)
    assert not is_baseline(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "dncnn", "sizes": {"num_channels": 8, "num_layers": 5}}, r"are not those of dncnn .*missing \['lay"),
        ({"name": "dncnn", "sizes": {"num_channels": 4, "num_layers": 4}}, r"of another shape \['layers.0"),
        ({"name": "vgg", "sizes": {}}, "describe no baseline: .* got 'vgg'"),
        ({"name": "dncnn"}, "describe no baseline: 'sizes'"),
        ([], "describe no baseline"),
    ],
)
def test_metadata_of_another_network_are_refused(tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_baseline(build_small("dncnn"), path)
    save_file(load_file(path), path, metadata={"baseline": json.dumps(record)})
    with pytest.raises(ValueError, match=message):
        load_baseline(path)


def test_missing_statistics_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    network = build_small("dncnn")
    save_baseline(network, path)
    tensors = load_file(path)
    del tensors["layers.3.running_mean"]
    save_file(tensors, path, metadata={"baseline": json.dumps({"name": "dncnn", "sizes": network.sizes})})
    with pytest.raises(ValueError, match=r"missing \['layers.3.running_mean'\]"):
        load_baseline(path)
