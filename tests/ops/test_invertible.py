import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op
from ops.invertible import CouplingSubnet, InvertibleBlock


def make_block(channels: int) -> InvertibleBlock:
    """A block with every parameter random; as initialised it is the identity."""
    block = InvertibleBlock(channels)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return block


@pytest.mark.parametrize("channels", [16, 10])
def test_inverse_gives_back_the_input(channels: int) -> None:
    block = make_block(16)
    x = torch.randn(2, channels, 19, 17)
    transformed = block(x, channels)
    assert (transformed - x).abs().mean() > 0.1
    torch.testing.assert_close(block.inverse(transformed), x, rtol=1e-4, atol=1e-4)


def test_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 16, 9, 7)
    assert torch.equal(InvertibleBlock(16)(x), x)


def test_halves_are_the_even_and_odd_channels() -> None:
    block = make_block(16)
    x = torch.randn(1, 16, 9, 7)
    output = block(x)
    torch.testing.assert_close(output[:, 0::2], x[:, 0::2] + block.even_update(x[:, 1::2]))
    scale = torch.exp(2 * torch.sigmoid(block.odd_log_scale(output[:, 0::2])) - 1)
    torch.testing.assert_close(output[:, 1::2], x[:, 1::2] * scale + block.odd_update(output[:, 0::2]))


def test_last_convolution_is_one_over_input_and_hidden() -> None:
    subnet = make_block(16).even_update
    x = torch.randn(1, 8, 9, 7)
    hidden = torch.nn.functional.leaky_relu(subnet.first(x), 0.2)
    hidden = torch.nn.functional.leaky_relu(subnet.second(hidden), 0.2)
    weight = torch.cat((subnet.last_of_input.weight, subnet.last_of_hidden.weight), dim=1)
    expected = torch.conv2d(torch.cat((x, hidden), dim=1), weight, subnet.last_of_hidden.bias, padding=1)
    torch.testing.assert_close(subnet(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_reaches_every_subnet_after_one_step(memory_format: torch.memory_format) -> None:
    block = make_block(8)
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=memory_format)
    block(x).square().mean().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_odd_width_is_refused() -> None:
    spec = OpSpec(name="ib", in_channels=16, out_channels=7, base_channels=16, height=8, width=8)
    with pytest.raises(ValueError, match="`out_channels` of ib must be even, got 7"):
        create_op(spec)


@pytest.mark.parametrize(
    ("channels", "num_parameters"), [(64, 249_312), (56, 190_932), (48, 140_328), (40, 97_500), (32, 62_448)]
)
def test_parameters_and_multiply_adds(channels: int, num_parameters: int) -> None:
    block = InvertibleBlock(channels)
    assert sum(parameter.numel() for parameter in block.parameters()) == num_parameters
    with FlopCounterMode(display=False) as counter:
        block(torch.randn(1, channels, 9, 7))
    half = channels // 2
    multiply_adds = 3 * 9 * (half * channels + channels * channels + (half + channels) * half)  # per pixel
    assert counter.get_total_flops() == 2 * multiply_adds * 9 * 7


def test_subnet_starts_at_zero_with_a_trainable_last_convolution() -> None:
    subnet = CouplingSubnet(4, 8)
    output = subnet(torch.randn(1, 4, 9, 7))
    assert (output == 0).all()
    output.sum().backward()
    assert subnet.last_of_hidden.weight.grad is not None and subnet.last_of_hidden.weight.grad.abs().sum() > 0
