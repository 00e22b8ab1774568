"""swin: a pair of window attention layers, plain and shifted.

Registered for `search_space`. Liu et al., "Swin Transformer", arXiv 2103.14030, with the settings of Liang et al.,
"SwinIR", arXiv 2108.10257.

Legend: B batch, C channels, H height, W width (both padded to whole windows where a comment says so), M window size,
N = M * M tokens of a window, G = (H / M) * (W / M) windows of an image, K heads, D = C / K head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ops.registry import register_op
from ops.slimmable import SlimmableLayerNorm, SlimmableLinear
from ops.spec import OpSpec

WINDOW_SIZE = 8  # pixels; SwinIR's for denoising
# With 8 heads a network of C = 16 has heads of 2 dimensions, too few for a query to ask with, at eight times the
# logits. One head took forward and backward of (8, 16, 48, 48) from 152 to 43 ms (1 thread, Intel Xeon, 2026-11-25).
MIN_HEAD_DIM = 8
MLP_RATIO = 2  # hidden features per channel; SwinIR's
# Attention logits computed at a time. With 8 heads of 2, forward and backward of (8, 16, 48, 48) took 123 ms, all at
# once 215 ms (1 thread, AMD EPYC, 2026-11-23); F.scaled_dot_product_attention took longer still, and its 5-D form did
# not export to ONNX.
MAX_LOGITS = 2**20
# A GPU is slowed by the number of launches instead: (16, 64, 128, 128) takes 128 slices with the bound above. A step of
# a part search made 2304 batched products, and its processor was busy three times as long as its GPU (2026-11-26).
MAX_LOGITS_ON_GPU = 2**26
INIT_STD = 0.02  # of the truncated normal distribution of all weights; Swin's


class SwinPair(nn.Module):
    """A plain and a shifted window attention layer; only the pair exchanges anything between windows.

    Heights and widths that are no multiple of the window are zero-padded inside and cropped again. Padded pixels are
    masked out of the attention of the real ones, so what they hold never reaches the result (SwinIR reflects the
    image instead). Where the height or width fits into one window, neither layer shifts, as in SwinIR.

    The head dimension is fixed by the base width, so that a narrower width has fewer heads of the same size; 8 heads of
    any narrower size would put other channels into a head at every width. A narrower layer than one head has one head
    of all its channels.
    """

    def __init__(self, channels: int, *, head_dim: int) -> None:
        super().__init__()
        if channels > head_dim and channels % head_dim:
            raise ValueError(
                f"`out_channels` of swin must be a multiple of its head dimension {head_dim}, got {channels}"
            )
        self.plain = WindowLayer(channels, head_dim=head_dim)
        self.shifted = WindowLayer(channels, head_dim=head_dim)

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        """Map (B, out_channels, H, W) to the same shape."""
        height, width = x.shape[2:]
        shift = 0 if min(height, width) <= WINDOW_SIZE else WINDOW_SIZE // 2
        image = x.permute(0, 2, 3, 1)  # (B, C, H, W) -> (B, H, W, C)
        image = F.pad(image, (0, 0, 0, -width % WINDOW_SIZE, 0, -height % WINDOW_SIZE))
        num_rows, num_columns = image.shape[1] // WINDOW_SIZE, image.shape[2] // WINDOW_SIZE

        tokens = self.plain(_to_windows(image), _attention_mask(height, width, 0, x.device))
        if shift:
            image = torch.roll(_to_image(tokens, num_rows, num_columns), (-shift, -shift), dims=(1, 2))
            tokens = _to_windows(image)
        tokens = self.shifted(tokens, _attention_mask(height, width, shift, x.device))
        image = _to_image(tokens, num_rows, num_columns)
        if shift:
            image = torch.roll(image, (shift, shift), dims=(1, 2))
        return image[:, :height, :width].permute(0, 3, 1, 2)  # (B, H, W, C) -> (B, C, H, W)


class WindowLayer(nn.Module):
    """Attention within windows with a relative position bias, then an MLP, both behind a normalisation."""

    relative_index: Tensor

    def __init__(self, channels: int, *, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.attention_norm = SlimmableLayerNorm(channels)
        # Three blocks: the first rows of one (3C, C) matrix would be queries only.
        self.query = SlimmableLinear(channels, channels)
        self.key = SlimmableLinear(channels, channels)
        self.value = SlimmableLinear(channels, channels)
        self.position_bias = nn.Parameter(torch.empty((2 * WINDOW_SIZE - 1) ** 2, max(1, channels // head_dim)))
        self.projection = SlimmableLinear(channels, channels)
        self.mlp_norm = SlimmableLayerNorm(channels)
        self.mlp_in = SlimmableLinear(channels, MLP_RATIO * channels)
        self.mlp_out = SlimmableLinear(MLP_RATIO * channels, channels)
        self.register_buffer("relative_index", _relative_index(), persistent=False)
        nn.init.trunc_normal_(self.position_bias, std=INIT_STD)
        for layer in (self.query, self.key, self.value, self.projection, self.mlp_in, self.mlp_out):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, G, N, C) to the same shape; `mask`, (G, 1, N, N), is added to the attention's logits."""
        tokens = tokens + self._attention(self.attention_norm(tokens), mask)
        hidden = F.gelu(self.mlp_in(self.mlp_norm(tokens), MLP_RATIO * tokens.shape[-1]))
        return tokens + self.mlp_out(hidden, tokens.shape[-1])

    def _attention(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, num_tokens, channels = tokens.shape
        num_heads = max(1, channels // self.head_dim)
        query, key, value = (
            layer(tokens, channels).unflatten(-1, (num_heads, -1)).transpose(2, 3)  # (B, G, K, N, D)
            for layer in (self.query, self.key, self.value)
        )
        query = query * self.head_dim**-0.5
        bias = self.position_bias[:, :num_heads][self.relative_index].permute(2, 0, 1)  # (N, N, K) -> (K, N, N)

        # Beside heads this small the logits outweigh all else, so only as many windows at a time as stay in the cache.
        max_logits = MAX_LOGITS_ON_GPU if tokens.is_cuda else MAX_LOGITS
        slice_size = max(1, max_logits // (batch * num_heads * num_tokens**2))
        slices = []
        for index, (q, k, v) in enumerate(zip(*(t.split(slice_size, dim=1) for t in (query, key, value)), strict=True)):
            logits = torch.matmul(q, k.transpose(-1, -2))  # (B, g, K, N, N)
            logits += bias if mask is None else bias + mask[index * slice_size : (index + 1) * slice_size]
            slices.append(torch.matmul(logits.softmax(dim=-1), v))  # (B, g, K, N, D)
        attended = torch.cat(slices, dim=1).transpose(2, 3).flatten(-2)  # (B, G, K, N, D) -> (B, G, N, C)
        return self.projection(attended, channels)


def _to_windows(image: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, G, N, C)."""
    batch, height, width, channels = image.shape
    rows, columns = height // WINDOW_SIZE, width // WINDOW_SIZE
    windows = image.reshape(batch, rows, WINDOW_SIZE, columns, WINDOW_SIZE, channels).transpose(2, 3)
    return windows.reshape(batch, rows * columns, WINDOW_SIZE**2, channels)


def _to_image(tokens: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """(B, G, N, C) -> (B, H, W, C)."""
    batch, _, _, channels = tokens.shape
    windows = tokens.reshape(batch, num_rows, num_columns, WINDOW_SIZE, WINDOW_SIZE, channels).transpose(2, 3)
    return windows.reshape(batch, num_rows * WINDOW_SIZE, num_columns * WINDOW_SIZE, channels)


def _relative_index() -> Tensor:
    """(N, N): the row of the bias table for query n and key m, from their offset in the window."""
    coordinates = torch.cartesian_prod(torch.arange(WINDOW_SIZE), torch.arange(WINDOW_SIZE))  # (N, 2)
    offsets = coordinates[:, None] - coordinates[None] + WINDOW_SIZE - 1  # (N, N, 2), 0 .. 2M - 2
    return offsets[..., 0] * (2 * WINDOW_SIZE - 1) + offsets[..., 1]


def _attention_mask(height: int, width: int, shift: int, device: torch.device) -> Tensor | None:
    """(G, 1, N, N): 0 between pixels that may attend to each other, -inf else; None where all of a window may.

    A pixel attends to those of its own region: real pixels that the cyclic shift brought into its window from the
    opposite border are another region, padding is one more. No row is all -inf, since a pixel attends to itself.
    """
    if shift == 0 and height % WINDOW_SIZE == 0 and width % WINDOW_SIZE == 0:
        return None
    rows, columns = _regions(height, shift, device), _regions(width, shift, device)
    regions = _to_windows((3 * rows[:, None] + columns)[None, :, :, None]).squeeze(0)  # (G, N, 1)
    is_separate = regions != regions.transpose(1, 2)  # (G, N, N)
    return torch.zeros(is_separate.shape, device=device).masked_fill_(is_separate, -torch.inf).unsqueeze(1)


def _regions(size: int, shift: int, device: torch.device) -> Tensor:
    """Number the regions along one axis, padded and shifted: 0 in place, 1 wrapped around, 2 padding."""
    padded_size = size + -size % WINDOW_SIZE
    position = torch.roll(torch.arange(padded_size, device=device), -shift)
    return (position < shift).long() + 2 * (position >= size).long()


@register_op("swin", equal_widths=True)
def _swin(spec: OpSpec) -> nn.Module:
    head_dim = spec.base_channels // 8
    return SwinPair(spec.out_channels, head_dim=head_dim if head_dim >= MIN_HEAD_DIM else spec.base_channels)
