"""The five toy networks of Table I."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.experiments import CellJob
from pipeline.experiments.resampling import EXPERIMENT, ToyNetwork, build_model, measure, run

NAMES = [variant.name for variant in EXPERIMENT.variants]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(16, 16), (37, 31)])
def test_a_model_keeps_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    assert build_model(name, 16)(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_papers_sixteen_convolutions_and_its_modules(name: str) -> None:
    model = build_model(name, 16)
    counted = [*model.first.modules(), *model.inner.modules(), *model.last.modules()]
    assert sum(isinstance(module, nn.Conv2d) for module in counted) == 2 + 12 + 2
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("AvgPool2d" in kinds) == (name in ("model-1", "model-2"))
    assert ("ConvTranspose2d" in kinds) == (name == "model-4")
    assert ("UpFuse" in kinds) == (name == "model-5")
    assert (model.fuse is not None) == (name in ("model-2", "model-3", "model-4"))


def test_the_input_is_added_to_the_output() -> None:
    model = build_model("model-3", 16)
    nn.init.zeros_(model.last[-1].weight)
    nn.init.zeros_(model.last[-1].bias)
    noisy = torch.rand(1, 3, 8, 8)
    assert torch.equal(model(noisy), noisy)


def test_pixel_shuffle_needs_the_concatenation() -> None:
    with pytest.raises(ValueError, match="pixel shuffle has a concatenation"):
        ToyNetwork(down="convolution", up="shuffle", has_concatenation=False, channels=16)


def test_a_cell_gives_the_same_numbers_again_and_others_for_another_seed(make_job: Callable[..., CellJob]) -> None:
    first, second = run(make_job("model-5")), run(make_job("model-5"))
    assert first == second
    assert run(make_job("model-5", seed=1))["psnr_db"] != first["psnr_db"]
    assert first["num_steps"] == 8
    assert measure(make_job("model-5"))["measured_ms"] > 0


def test_an_interrupted_training_goes_on(make_job: Callable[..., CellJob]) -> None:
    expected = run(make_job("model-2"))
    job = make_job("model-2", "experiment.toy_epochs=1")
    assert run(job)["num_steps"] == 4
    whole = CellJob(**(vars(job) | {"config": make_job("model-2").config}))
    assert run(whole)["num_steps"] == expected["num_steps"] == 8
