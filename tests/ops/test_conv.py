import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op


def make_spec(name: str, in_channels: int, out_channels: int) -> OpSpec:
    return OpSpec(name=name, in_channels=in_channels, out_channels=out_channels, base_channels=64, height=9, width=7)


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_dilated_convolution_is_followed_by_leaky_relu(dilation: int) -> None:
    op = create_op(make_spec(f"conv_d{dilation}", 8, 6))
    x = torch.randn(2, 8, 9, 7)
    expected = F.leaky_relu(
        F.conv2d(x, op.conv.weight, op.conv.bias, padding=dilation, dilation=dilation), negative_slope=0.2
    )
    torch.testing.assert_close(op(x), expected)


@pytest.mark.parametrize("out_channels", [6, 8, 10])
def test_residual_convolution_adds_the_fitted_input(out_channels: int) -> None:
    op = create_op(make_spec("conv_r", 8, out_channels))
    x = torch.randn(2, 8, 9, 7)
    residual = F.leaky_relu(F.conv2d(x, op.conv.weight, op.conv.bias, padding=1), negative_slope=0.2)
    fitted = torch.zeros_like(residual)
    fitted[:, :8] = x[:, :out_channels]
    torch.testing.assert_close(op(x), fitted + residual)


@pytest.mark.parametrize("name", ["conv_d1", "conv_d2", "conv_d3", "conv_r"])
@pytest.mark.parametrize(
    ("channels", "num_parameters"), [(64, 36_928), (56, 28_280), (48, 20_784), (40, 14_440), (32, 9_248)]
)
def test_parameters_and_multiply_adds(name: str, channels: int, num_parameters: int) -> None:
    op = create_op(make_spec(name, channels, channels))
    assert sum(parameter.numel() for parameter in op.parameters()) == num_parameters
    with FlopCounterMode(display=False) as counter:
        op(torch.randn(1, channels, 9, 7))
    assert counter.get_total_flops() == 2 * 9 * channels**2 * 9 * 7  # two per multiply-add
