import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op
from ops.half_instance_norm import HalfInstanceNorm


def make_spec(in_channels: int, out_channels: int) -> OpSpec:
    return OpSpec(name="hin", in_channels=in_channels, out_channels=out_channels, base_channels=64, height=9, width=7)


@pytest.mark.parametrize("channels", [16, 10])
def test_even_channels_are_normalised_and_odd_ones_pass(channels: int) -> None:
    norm = HalfInstanceNorm(16)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    x = 3 + 2 * torch.randn(2, channels, 9, 7)
    half = channels // 2
    expected = F.instance_norm(x[:, 0::2], weight=norm.weight[:half], bias=norm.bias[:half])
    output = norm(x)
    torch.testing.assert_close(output[:, 0::2], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(output[:, 1::2], x[:, 1::2])


def test_gradient_is_that_of_instance_norm() -> None:
    norm = HalfInstanceNorm(6).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_block_is_two_convolutions_and_a_shortcut() -> None:
    op = create_op(make_spec(8, 6))
    x = torch.randn(2, 8, 9, 7)
    features = F.conv2d(x, op.first.weight, op.first.bias, padding=1)
    features = F.leaky_relu(
        torch.stack(
            [F.instance_norm(features[:, [c]])[:, 0] if c % 2 == 0 else features[:, c] for c in range(6)], dim=1
        ),
        0.2,
    )
    features = F.leaky_relu(F.conv2d(features, op.second.weight, op.second.bias, padding=1), 0.2)
    expected = features + F.conv2d(x, op.shortcut.weight, op.shortcut.bias)
    torch.testing.assert_close(op(x), expected, rtol=1e-5, atol=1e-5)


def test_constant_image_stays_finite() -> None:
    assert create_op(make_spec(8, 8))(torch.ones(1, 8, 9, 7)).isfinite().all()


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="`out_channels` of hin must be even, got 7"):
        create_op(make_spec(16, 7))


@pytest.mark.parametrize(
    ("channels", "num_parameters"), [(64, 78_080), (56, 59_808), (48, 43_968), (40, 30_560), (32, 19_584)]
)
def test_parameters_and_multiply_adds(channels: int, num_parameters: int) -> None:
    op = create_op(make_spec(channels, channels))
    assert sum(parameter.numel() for parameter in op.parameters()) == num_parameters
    with FlopCounterMode(display=False) as counter:
        op(torch.randn(1, channels, 9, 7))
    assert counter.get_total_flops() == 2 * 19 * channels**2 * 9 * 7
