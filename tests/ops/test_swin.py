import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ops import OpSpec, create_op, swin
from ops.swin import SwinPair, WindowLayer


def make_pair(channels: int, *, head_dim: int = 2) -> SwinPair:
    pair = SwinPair(channels, head_dim=head_dim)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return pair


def dense_layer(layer: WindowLayer, pixels: Tensor, height: int, width: int, shift: int) -> Tensor:
    """The layer by definition: every pixel against every other, (H*W, C), those of other windows at -inf."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    window = torch.stack(
        ((rows - shift).div(8, rounding_mode="floor"), (columns - shift).div(8, rounding_mode="floor"))
    )
    is_separate = (window[:, :, None] != window[:, None]).any(dim=0)
    offset = (rows[:, None] - rows[None]).clamp(-7, 7) * 15 + (columns[:, None] - columns[None]).clamp(-7, 7) + 7 * 16

    channels = pixels.shape[1]
    x = F.layer_norm(pixels, (channels,), layer.attention_norm.weight, layer.attention_norm.bias)
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    heads = []
    for head in range(max(1, channels // layer.head_dim)):
        live = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
        logits = query[:, live] @ key[:, live].T / layer.head_dim**0.5 + layer.position_bias[offset, head]
        heads.append(logits.masked_fill(is_separate, -torch.inf).softmax(dim=1) @ value[:, live])
    pixels = pixels + layer.projection(torch.cat(heads, dim=1))
    x = F.layer_norm(pixels, (channels,), layer.mlp_norm.weight, layer.mlp_norm.bias)
    return pixels + layer.mlp_out(F.gelu(layer.mlp_in(x)))


@pytest.mark.parametrize("head_dim", [2, 8, 16])
@pytest.mark.parametrize("size", [(16, 24), (19, 17), (9, 16), (8, 20), (5, 3)])
def test_pair_agrees_with_its_definition(size: tuple[int, int], head_dim: int) -> None:
    """Whatever the padding: real pixels attend to the real pixels of their window and to nothing else."""
    height, width = size
    pair = make_pair(8, head_dim=head_dim)
    x = torch.randn(1, 8, height, width)
    shift = 4 if min(size) > 8 else 0
    pixels = dense_layer(pair.plain, x.flatten(2)[0].T, height, width, shift=0)
    pixels = dense_layer(pair.shifted, pixels, height, width, shift)
    torch.testing.assert_close(pair(x).flatten(2)[0].T, pixels, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_logits", [1, 100_000])
def test_slices_of_windows_do_not_change_the_result(max_logits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x = make_pair(8), torch.randn(2, 8, 19, 33)
    whole = pair(x)
    monkeypatch.setattr(swin, "MAX_LOGITS", max_logits)
    torch.testing.assert_close(pair(x), whole, rtol=1e-5, atol=1e-5)


def test_shifted_layer_exchanges_between_windows() -> None:
    pair = make_pair(8)
    x = torch.randn(1, 8, 16, 16, requires_grad=True)
    pair(x)[0, :, 7, 7].sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 8, 8].abs().sum() > 0  # a neighbour in another window of the plain layer
    assert x.grad[0, :, 0, 15].abs().sum() > 0


@pytest.mark.parametrize(
    ("base_channels", "channels", "head_dim", "num_heads"),
    [(64, 64, 8, 8), (64, 40, 8, 5), (64, 32, 8, 4), (32, 32, 32, 1), (16, 16, 16, 1), (16, 10, 16, 1)],
)
def test_narrower_widths_have_fewer_heads(base_channels: int, channels: int, head_dim: int, num_heads: int) -> None:
    op = create_op(
        OpSpec(name="swin", in_channels=channels, out_channels=channels, base_channels=base_channels, height=8, width=8)
    )
    assert op.op.plain.head_dim == head_dim
    assert op.op.plain.position_bias.shape == (225, num_heads)


def test_width_must_be_whole_heads() -> None:
    spec = OpSpec(name="swin", in_channels=64, out_channels=42, base_channels=64, height=8, width=8)
    with pytest.raises(ValueError, match="`out_channels` of swin must be a multiple of its head dimension 8, got 42"):
        create_op(spec)


@pytest.mark.parametrize(
    ("channels", "num_parameters"), [(64, 35_272), (56, 27_279), (48, 20_310), (40, 14_365), (32, 9_444)]
)
def test_parameters_and_multiply_adds_of_one_layer(channels: int, num_parameters: int) -> None:
    pair = SwinPair(channels, head_dim=8)
    assert sum(parameter.numel() for parameter in pair.plain.parameters()) == num_parameters
    with FlopCounterMode(display=False) as counter:
        pair(torch.randn(1, channels, 16, 16))
    multiply_adds = 2 * (8 * channels**2 + 128 * channels)  # per pixel, two layers; 81,920 at 64 channels
    assert counter.get_total_flops() == 2 * multiply_adds * 16 * 16


def test_index_and_masks_are_not_saved() -> None:
    assert all("index" not in name for name in SwinPair(8, head_dim=2).state_dict())
