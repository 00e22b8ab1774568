"""Denoise one image of any size, whole or in overlapping tiles.

Called by evaluation and by the command that denoises the user's images.

Legend: H height, W width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def denoise_image(
    model: nn.Module,
    noisy: Tensor,
    *,
    tile_size: int | None = None,
    tile_overlap: int = 32,
    device: torch.device | str,
) -> Tensor:
    """Run `model` over one image.

    Tiles travel to `device` one by one and are blended where they overlap with weights that fade smoothly towards the
    edges of a tile, so memory on the device does not grow with the image and no seams appear.

    Args:
        model: maps (1, 3, H, W) to the same shape; lies on `device`. It runs in evaluation mode and keeps its own.
        noisy: (1, 3, H, W) float32 in [0, 1] plus noise, on any device.
        tile_size: height and width of a tile in pixels; None takes the whole image at once.
        tile_overlap: pixels that neighbouring tiles share at least; unused without tiles.
        device: where the model runs.

    Returns:
        (1, 3, H, W) float32 on the device of `noisy`, not clamped.

    Raises:
        ValueError: `noisy` is not (1, 3, H, W), the overlap does not fit the tile, or the model changes the shape.
    """
    if noisy.ndim != 4 or noisy.shape[:2] != (1, 3) or not noisy.numel():
        raise ValueError(f"`noisy` must have shape (1, 3, H, W), got {tuple(noisy.shape)}")
    height, width = noisy.shape[-2:]
    if tile_size is None:
        tile_size, tile_overlap = max(height, width), 0
    if tile_size < 1:
        raise ValueError(f"`tile_size` must be at least 1, got {tile_size}")
    if not 0 <= tile_overlap < tile_size:
        raise ValueError(f"`tile_overlap` must lie in [0, `tile_size`), got {tile_overlap} for tiles of {tile_size}")

    total = torch.zeros(noisy.shape, dtype=torch.float32, device=noisy.device)
    weight = torch.zeros(noisy.shape[-2:], dtype=torch.float32, device=noisy.device)
    with _evaluation_mode(model):
        for top, rows in _windows(height, tile_size, tile_overlap):
            for left, columns in _windows(width, tile_size, tile_overlap):
                window = torch.outer(rows, columns).to(noisy.device)  # (tile height, tile width)
                place = (..., slice(top, top + len(rows)), slice(left, left + len(columns)))
                total[place] += _run(model, noisy[place], device) * window
                weight[place] += window
    return total / weight


def default_overlap(tile_size: int | None) -> int:
    """Return an overlap that fits tiles of any size."""
    return 32 if tile_size is None else min(32, tile_size // 4)


def _run(model: nn.Module, tile: Tensor, device: torch.device | str) -> Tensor:
    with torch.inference_mode():
        denoised = model(tile.to(device, torch.float32).contiguous(memory_format=torch.channels_last))
    if denoised.shape != tile.shape:
        raise ValueError(f"`model` must keep the shape {tuple(tile.shape)}, got {tuple(denoised.shape)}")
    return denoised.to(tile.device, torch.float32)


def _windows(length: int, tile_size: int, overlap: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the start of every tile along one axis, and its blending weights."""
    size = min(tile_size, length)
    num_tiles = 1 if length <= tile_size else math.ceil((length - overlap) / (tile_size - overlap))
    ramp = torch.sin(math.pi / 2 * (torch.arange(overlap) + 0.5) / max(overlap, 1)) ** 2  # rises from 0 to 1
    for index in range(num_tiles):
        start = min(index * (tile_size - overlap), length - size)  # the last tile ends with the image
        window = torch.ones(size)
        if index > 0:
            window[:overlap] *= ramp
        if index < num_tiles - 1:
            window[size - overlap :] *= ramp.flip(0)
        yield start, window


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode, and back in its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
