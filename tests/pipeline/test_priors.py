"""Priors: our MIRNet against an independent reference, and everything that a weights file can get wrong.

The reference (names and shapes of the published network, tensors of a small one) is not part of the repository; set
DENOISE_NAS_REFERENCE to the folder that holds `mirnet_nfeat64_keys.json` and `mirnet_nfeat8.safetensors`.
"""

import json
import os
import pickle
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.data.images import to_tensor
from pipeline.priors import MIRNet, list_priors, load_prior, save_prior

REFERENCE = os.environ.get("DENOISE_NAS_REFERENCE")
needs_reference = pytest.mark.skipif(not REFERENCE, reason="DENOISE_NAS_REFERENCE names no folder of reference tensors")


def reference_file(name: str) -> Path:
    assert REFERENCE
    return Path(REFERENCE) / name


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(reference_file("mirnet_nfeat8.safetensors"))


@pytest.fixture(scope="module")
def reference_weights(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weights."): t for name, t in reference.items() if name.startswith("weights.")}


@pytest.fixture
def noisy(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 20, 24, generator=generator)


def test_mirnet_has_the_published_number_of_parameters() -> None:
    assert sum(p.numel() for p in MIRNet(num_channels=64).parameters()) == 31_787_419


@needs_reference
def test_mirnet_has_the_published_names_and_shapes() -> None:
    expected = json.loads(reference_file("mirnet_nfeat64_keys.json").read_text())
    assert len(expected) == 797
    assert {name: list(t.shape) for name, t in MIRNet(num_channels=64).state_dict().items()} == expected


@needs_reference
def test_mirnet_computes_what_the_reference_does(
    reference: dict[str, Tensor], reference_weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(reference_weights, tmp_path / "published.pth")
    prior = load_prior(tmp_path / "published.pth")
    assert prior.num_channels == 8
    features = prior.features(reference["input"])
    for found, name in zip(features, ("part0", "part1", "part2_residual"), strict=True):
        torch.testing.assert_close(found, reference[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(prior(reference["input"]), reference["output"], rtol=0, atol=1e-5)


@pytest.fixture
def tensors(small_mirnet: MIRNet) -> dict[str, Tensor]:
    return small_mirnet.state_dict()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "params"])
def test_a_checkpoint_of_any_published_form_loads(
    tmp_path: Path, small_mirnet: MIRNet, tensors: dict[str, Tensor], noisy: Tensor, prefix: str, wrap: str | None
) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in tensors.items()}
    if wrap:
        state = {"epoch": 60, wrap: state, "optimizer": {"param_groups": []}}
    torch.save(state, tmp_path / "published.pth")
    prior = load_prior(tmp_path / "published.pth")
    assert not prior.training
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    torch.testing.assert_close(prior(noisy), small_mirnet(noisy), rtol=0, atol=1e-6)


def test_blur_filters_may_be_missing(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({name: t for name, t in tensors.items() if not name.endswith("filt")}, tmp_path / "weights.pth")
    assert isinstance(load_prior(tmp_path / "weights.pth"), MIRNet)


class Unknown:
    pass


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_of_an_unknown_class_is_refused(tmp_path: Path, tensors: dict[str, Tensor], save: Any) -> None:
    save({"state_dict": tensors, "config": Unknown()}, tmp_path / "pickle.pth")
    with pytest.raises(ValueError, match=r"pickle\.pth is damaged or not weights-only"):
        load_prior(tmp_path / "pickle.pth")


KEY = "body.1.body.0.conv_out.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), rf"missing \['{KEY}'\], unknown \[\], of another shape \[\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"missing \[\], unknown \['extra'\], of another shape \[\]"),
        (
            lambda t: t.update({KEY: torch.zeros(8, 8, 1, 1)}),
            rf"missing \[\], unknown \[\], of another shape \['{KEY}'\]",
        ),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, tensors: dict[str, Tensor], change: Any, message: str) -> None:
    change(tensors)
    torch.save(tensors, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=rf"wrong\.pth is no MIRNet of 8 channels: {message}"):
        load_prior(tmp_path / "wrong.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"layer.weight": torch.zeros(3)}, r"is no MIRNet and no NAFNet: neither .*'layer.weight'"),
        ({"conv_in.weight": torch.zeros(8)}, "is no MIRNet"),
        (
            {"conv_in.weight": torch.zeros(12, 3, 3, 3)},
            r"other\.pth is no MIRNet: `num_channels` must be a positive multiple of 8, got 12",
        ),
        ({"epoch": 3}, r"other\.pth holds no state_dict of tensors"),
        ({}, "is no MIRNet"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        load_prior(tmp_path / "other.pth")


def test_an_unknown_name_lists_the_shipped_priors() -> None:
    with pytest.raises(FileNotFoundError, match="'mirnet99' is neither a file nor a shipped prior; .*mirnet16"):
        load_prior("mirnet99")


@pytest.mark.parametrize("num_channels", [0, -8, 12])
def test_channels_must_be_a_multiple_of_8(num_channels: int) -> None:
    with pytest.raises(ValueError, match=f"`num_channels` must be a positive multiple of 8, got {num_channels}"):
        MIRNet(num_channels=num_channels)


def test_a_mirnet_has_blocks() -> None:
    with pytest.raises(ValueError, match="`num_blocks` must be at least 1, got 0"):
        MIRNet(num_channels=8, num_blocks=0)


@pytest.mark.parametrize("name", list_priors())
def test_shipped_priors_are_small_and_denoise(name: str, images: list[np.ndarray]) -> None:
    path = Path(str(resources.files("pipeline") / "priors" / "weights" / f"{name}.safetensors"))
    assert path.stat().st_size < 4e6
    prior = load_prior(name)
    clean = to_tensor(images[0])
    given = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert (prior(given) - clean).square().mean() < 0.25 * (given - clean).square().mean()


def test_mirnet16_is_shipped() -> None:
    assert "mirnet16" in list_priors()
    assert load_prior("mirnet16").num_channels == 16


def test_a_saved_prior_loads_within_half_precision(tmp_path: Path, small_mirnet: MIRNet, noisy: Tensor) -> None:
    path = tmp_path / "prior.safetensors"
    save_prior(small_mirnet, path)
    assert path.stat().st_size < 2.2 * sum(p.numel() for p in small_mirnet.parameters()) + 20_000
    again = load_prior(path)
    for name, tensor in small_mirnet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name
    torch.testing.assert_close(again(noisy), small_mirnet(noisy), rtol=0, atol=2e-3)


def test_sharing_survives_saving(tmp_path: Path, small_mirnet: MIRNet) -> None:
    """The two columns of a stream, and all PReLUs of attention units, are one object each."""
    save_prior(small_mirnet, tmp_path / "prior.safetensors")
    again = load_prior(tmp_path / "prior.safetensors")
    assert len(list(again.parameters())) == len(list(small_mirnet.parameters()))


@pytest.mark.parametrize("size", [(37, 31), (1, 1), (3, 50), (4, 4), (33, 64)])
def test_images_of_any_size_keep_it(small_mirnet: MIRNet, size: tuple[int, int]) -> None:
    noisy = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    denoised = small_mirnet(noisy)
    assert denoised.shape == noisy.shape
    assert denoised.isfinite().all()


def test_the_parts_in_a_row_are_the_whole(small_mirnet: MIRNet, noisy: Tensor) -> None:
    x = noisy
    for part_index in range(3):
        x = small_mirnet.run_part(part_index, x)
    torch.testing.assert_close(small_mirnet(noisy), noisy + x, rtol=0, atol=0)
