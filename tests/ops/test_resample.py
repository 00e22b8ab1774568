from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op, load_prefix

WIDTHS = (16, 14, 12, 10, 8)


def make(name: str, in_channels: int, out_channels: int, height: int = 9, width: int = 7) -> nn.Module:
    return create_op(
        OpSpec(
            name=name,
            in_channels=in_channels,
            out_channels=out_channels,
            base_channels=16,
            height=height,
            width=width,
        )
    )


@pytest.mark.parametrize(
    ("size", "halved"), [((16, 24), (8, 12)), ((37, 31), (19, 16)), ((5, 3), (3, 2)), ((1, 1), (1, 1))]
)
def test_down_halves_and_up_restores_any_size(size: tuple[int, int], halved: tuple[int, int]) -> None:
    fine = torch.randn(1, 14, *size)
    coarse = make("down", 14, 12)(fine)
    assert coarse.shape == (1, 12, *halved)
    assert make("up", 12, 10)(coarse, fine).shape == (1, 10, *size)


@pytest.mark.parametrize("widths", [(12, 10), (9, 5)])
def test_up_is_a_pixel_shuffle_fused_with_the_fine_feature(widths: tuple[int, int]) -> None:
    """The paper's module, at full and at narrower widths, however it is computed."""
    up = make("up", 12, 10)
    in_channels, out_channels = widths
    coarse, fine = torch.randn(2, in_channels, 5, 4), torch.randn(2, out_channels, 9, 7)
    weight, bias = up.expand.weight[: 4 * out_channels, :in_channels], up.expand.bias[: 4 * out_channels]
    shuffled = F.pixel_shuffle(F.conv2d(coarse, weight, bias, padding=1), 2)[:, :, :9, :7]
    halves = [fuse.weight[:out_channels, :out_channels] for fuse in (up.fuse_coarse, up.fuse_fine)]
    fusion = torch.cat(halves, dim=1)  # one 1x1 over the concatenation [coarse; fine]
    expected = F.conv2d(torch.cat((shuffled, fine), dim=1), fusion, up.fuse_coarse.bias[:out_channels])
    torch.testing.assert_close(up(coarse, fine, out_channels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fine_channels", [8, 16])
def test_up_cuts_or_pads_the_fine_feature(fine_channels: int) -> None:
    up = make("up", 12, 10)
    coarse, fine = torch.randn(2, 12, 5, 4), torch.randn(2, fine_channels, 10, 8)
    fitted = torch.zeros(2, 10, 10, 8)
    fitted[:, :fine_channels] = fine[:, :10]
    torch.testing.assert_close(up(coarse, fine), up(coarse, fitted))


def test_narrow_up_is_a_prefix_of_the_wide_one() -> None:
    wide = make("up", 16, 16)
    for in_channels in WIDTHS:
        for out_channels in WIDTHS:
            narrow = make("up", in_channels, out_channels)
            load_prefix(narrow, wide)
            coarse, fine = torch.randn(2, in_channels, 5, 4), torch.randn(2, 14, 9, 7)
            torch.testing.assert_close(narrow(coarse, fine), wide(coarse, fine, out_channels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["down", "conv3x3"])
def test_narrow_convolution_is_a_prefix_of_the_wide_one(name: str) -> None:
    wide, narrow = make(name, 16, 16), make(name, 10, 12)
    load_prefix(narrow, wide)
    x = torch.randn(2, 10, 9, 7)
    torch.testing.assert_close(narrow(x), wide(x, 12), rtol=1e-6, atol=1e-6)


def test_up_trains_every_parameter_and_both_inputs() -> None:
    up = make("up", 12, 10)
    coarse, fine = torch.randn(2, 12, 5, 4, requires_grad=True), torch.randn(2, 14, 9, 7, requires_grad=True)
    up(coarse, fine).square().mean().backward()
    for tensor in (coarse, fine, *up.parameters()):
        assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_up_keeps_channels_last() -> None:
    up = make("up", 12, 10)
    coarse, fine = torch.randn(2, 12, 5, 4), torch.randn(2, 14, 9, 7)
    expected = up(coarse, fine)
    up = up.to(memory_format=torch.channels_last)
    output = up(
        coarse.contiguous(memory_format=torch.channels_last), fine.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_up_refuses_a_fine_feature_beyond_twice_the_size() -> None:
    with pytest.raises(
        ValueError, match="`fine` must be at most twice as high and wide as `coarse`, got 11 x 7 and 5 x 4"
    ):
        make("up", 12, 10)(torch.randn(1, 12, 5, 4), torch.randn(1, 10, 11, 7))


def test_conv3x3_is_plain_and_reaches_image_channels() -> None:
    conv = make("conv3x3", 16, 3)
    x = torch.randn(1, 16, 9, 7)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


@pytest.mark.parametrize(
    ("name", "num_parameters", "per_pixel", "fixed"),
    [
        ("down", 36_928, 9 * 64**2 // 4, 0),
        ("up", 147_712 + 8_256, (36 + 4) * 64**2, 64**2 * (36 * 64 + 4)),  # fixed: of the product of the weights
        ("conv3x3", 36_928, 9 * 64**2, 0),
    ],
)
def test_parameters_and_multiply_adds_at_64_channels(
    name: str, num_parameters: int, per_pixel: int, fixed: int
) -> None:
    op = make(name, 64, 64)
    assert sum(parameter.numel() for parameter in op.parameters()) == num_parameters
    x = torch.randn(1, 64, 8, 8)
    with FlopCounterMode(display=False) as counter:
        op(x, torch.randn(1, 64, 16, 16)) if name == "up" else op(x)
    assert counter.get_total_flops() == 2 * (per_pixel * 8 * 8 + fixed)  # per pixel of the input


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # torch.export copies its own deprecated LeafSpec
def test_up_exports_to_onnx(tmp_path: Path) -> None:
    import onnxruntime

    up = make("up", 12, 10).eval()
    coarse, fine = torch.randn(1, 12, 5, 4), torch.randn(1, 14, 9, 7)
    path = tmp_path / "up.onnx"
    torch.onnx.export(up, (coarse, fine), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, (coarse.numpy(), fine.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(output), up(coarse, fine).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out_channels", [None, 10])
def test_add_weighs_and_sums_two_features(out_channels: int | None) -> None:
    add = make("add", 16, 16)
    x = torch.randn(2, 16, 9, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(add(x, out_channels), x if out_channels is None else x[:, :10])  # x / 2 + x / 2
    assert list(add.parameters()) == []
    assert not add.state_dict()
