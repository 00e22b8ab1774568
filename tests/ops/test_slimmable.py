import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ops import SlimmableConv2d, SlimmableLinear, fit_channels, load_prefix


def test_convolution_at_a_width_is_that_of_the_leading_weights() -> None:
    conv = SlimmableConv2d(16, 16, 3, stride=2)
    x = torch.randn(2, 10, 9, 7)
    expected = F.conv2d(x, conv.weight[:12, :10], conv.bias[:12], stride=2, padding=1)  # Eqs. (9), (10)
    torch.testing.assert_close(conv(x, 12), expected)
    assert conv(torch.randn(2, 16, 9, 7)).shape == (2, 16, 5, 4)


def test_convolution_learns_only_its_active_prefix() -> None:
    conv = SlimmableConv2d(16, 16, 3)
    conv(torch.randn(2, 10, 9, 7), 12).sum().backward()
    assert conv.weight.grad is not None
    is_active = torch.zeros_like(conv.weight, dtype=torch.bool)
    is_active[:12, :10] = True
    assert (conv.weight.grad[~is_active] == 0).all()
    assert (conv.weight.grad[is_active] != 0).all()


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_convolution_keeps_the_size_at_stride_one(dilation: int) -> None:
    assert SlimmableConv2d(4, 6, 3, dilation=dilation)(torch.randn(1, 4, 5, 3)).shape == (1, 6, 5, 3)


def test_linear_at_a_width_is_that_of_the_leading_weights() -> None:
    linear = SlimmableLinear(16, 32)
    x = torch.randn(3, 5, 10)
    torch.testing.assert_close(linear(x, 20), F.linear(x, linear.weight[:20, :10], linear.bias[:20]))


def test_fit_channels_cuts_and_pads() -> None:
    x = torch.randn(2, 6, 5, 3)
    assert fit_channels(x, 6) is x
    assert torch.equal(fit_channels(x, 4), x[:, :4])
    padded = fit_channels(x, 9)
    assert torch.equal(padded[:, :6], x)
    assert padded.shape == (2, 9, 5, 3) and (padded[:, 6:] == 0).all()


def test_load_prefix_copies_leading_blocks() -> None:
    wide, narrow = SlimmableConv2d(16, 16, 3), SlimmableConv2d(10, 12, 3)
    load_prefix(narrow, wide)
    assert torch.equal(narrow.weight, wide.weight[:12, :10])
    assert torch.equal(narrow.bias, wide.bias[:12])


def test_load_prefix_refuses_larger_parameters() -> None:
    with pytest.raises(ValueError, match=r"'weight' of shape \(16, 18, 3, 3\) is no leading block of \(16, 16, 3, 3\)"):
        load_prefix(SlimmableConv2d(18, 16, 3), SlimmableConv2d(16, 16, 3))


def test_load_prefix_refuses_a_missing_parameter() -> None:
    with pytest.raises(KeyError, match="parameter 'weight' is missing in the wide module"):
        load_prefix(SlimmableConv2d(4, 4, 3), nn.Identity())
