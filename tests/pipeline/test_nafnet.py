"""NAFNet against an independent reference, and as a prior in three parts.

The reference is not part of the repository; set DENOISE_NAS_REFERENCE to the folder that holds
`nafnet_width8.safetensors`.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from pipeline.data.part_data import compute_patch_set
from pipeline.data.patches import PatchSource
from pipeline.priors import NAFNet, load_prior, save_prior

REFERENCE = os.environ.get("DENOISE_NAS_REFERENCE")


@pytest.fixture
def nafnet() -> NAFNet:
    """A NAFNet of two levels with every parameter random: new blocks are the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NAFNet(num_channels=8, encoder_blocks=(1, 2), middle_blocks=1, decoder_blocks=(2, 1)).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


@pytest.mark.parametrize(("num_channels", "num_parameters"), [(32, 29_159_715), (64, 115_982_915)])
def test_nafnet_has_the_published_number_of_parameters(num_channels: int, num_parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in NAFNet(num_channels=num_channels).parameters()) == num_parameters


@pytest.mark.skipif(not REFERENCE, reason="DENOISE_NAS_REFERENCE names no folder of reference tensors")
def test_nafnet_computes_what_the_reference_does(tmp_path: Path) -> None:
    """Loaded as the published checkpoints are stored, on images whose size is no multiple of 16."""
    reference = load_file(Path(str(REFERENCE)) / "nafnet_width8.safetensors")
    weights = {name.removeprefix("weights."): t for name, t in reference.items() if name.startswith("weights.")}
    torch.save({"params": weights}, tmp_path / "published.pth")
    prior = load_prior(tmp_path / "published.pth")
    assert set(prior.state_dict()) == set(weights)
    torch.testing.assert_close(prior(reference["input"]), reference["output"], rtol=0, atol=1e-5)


def test_the_three_parts_are_the_one_network(nafnet: NAFNet, generator: torch.Generator) -> None:
    """Against the U-Net as the paper draws it: every level's feature is added again on the way up."""
    noisy = torch.rand(2, 3, 12, 20, generator=generator)
    x = nafnet.intro(noisy)
    skips = []
    for encoder, down in zip(nafnet.encoders, nafnet.downs, strict=True):
        skips.append(encoder(x))
        x = down(skips[-1])
    x = nafnet.middle_blks(x)
    for up, decoder in zip(nafnet.ups, nafnet.decoders, strict=True):
        x = decoder(up(x) + skips.pop())
    expected = noisy + nafnet.ending(x)
    features = nafnet.features(noisy)
    assert [f.shape[1:] for f in features] == [(8, 12, 20), (8, 12, 20), (3, 12, 20)]
    torch.testing.assert_close(noisy + features[-1], expected, rtol=0, atol=0)
    torch.testing.assert_close(nafnet(noisy), expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(37, 31), (1, 1), (3, 50), (4, 4)])
def test_images_of_any_size_are_padded_with_zeros(
    nafnet: NAFNet, size: tuple[int, int], generator: torch.Generator
) -> None:
    noisy = torch.rand(1, 3, *size, generator=generator)
    height, width = size
    padded = F.pad(noisy, (0, -width % 4, 0, -height % 4))
    denoised = nafnet(noisy)
    assert denoised.isfinite().all()
    assert torch.equal(denoised, nafnet(padded)[..., :height, :width])


def test_a_saved_nafnet_loads_by_what_the_file_holds(tmp_path: Path, nafnet: NAFNet) -> None:
    save_prior(nafnet, tmp_path / "prior.safetensors")
    again = load_prior(tmp_path / "prior.safetensors")
    assert isinstance(again, NAFNet)
    assert again.sizes == nafnet.sizes
    assert not again.training
    for name, tensor in nafnet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float()), name


def test_nafnet_supervises_like_any_prior(nafnet: NAFNet, source: PatchSource, generator: torch.Generator) -> None:
    patches = compute_patch_set(
        nafnet, {"weights": source, "architecture": source}, num_patches=4, architecture_share=0.5, batch_size=2,
        generator=generator,
    )  # fmt: skip
    assert [signal.shape for signal in patches.signals] == [(4, c, 16, 16) for c in (3, 8, 8, 3)]


KEY = "encoders.1.0.conv1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), rf"missing \['{KEY}'\], unknown \[\], of another shape \[\]"),
        (lambda t: t.update(extra=torch.zeros(1)), r"missing \[\], unknown \['extra'\], of another shape \[\]"),
        (lambda t: t.update({KEY: torch.zeros(8, 8)}), rf"missing \[\], unknown \[\], of another shape \['{KEY}'\]"),
        (lambda t: t.pop("middle_blks.0.beta"), r"missing \['middle_blks.0.beta'\]"),
    ],
)
def test_wrong_keys_are_named(tmp_path: Path, nafnet: NAFNet, change: Any, message: str) -> None:
    tensors: dict[str, Tensor] = nafnet.state_dict()
    change(tensors)
    torch.save({"params": tensors}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match=rf"wrong\.pth is no NAFNet of 8 channels: {message}"):
        load_prior(tmp_path / "wrong.pth")


def test_a_file_without_levels_is_refused(tmp_path: Path) -> None:
    torch.save({"intro.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "bare.pth")
    with pytest.raises(ValueError, match="`encoder_blocks` and `decoder_blocks` must hold as many counts"):
        load_prior(tmp_path / "bare.pth")


def test_parts_refuse_sizes_that_they_cannot_halve(nafnet: NAFNet) -> None:
    with pytest.raises(ValueError, match="multiples of 4, got 6 x 8"):
        nafnet.run_part(1, torch.zeros(1, 8, 6, 8))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_channels": 0}, "`num_channels` must be at least 1, got 0"),
        ({"encoder_blocks": (1, 1)}, r"as many counts, .* got \(1, 1\) and \(2, 2, 2, 2\)"),
        ({"encoder_blocks": (), "decoder_blocks": ()}, "at least one"),
        ({"middle_blocks": -1}, "`middle_blocks` must not be negative, got -1"),
    ],
)
def test_impossible_sizes_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NAFNet(**sizes)
