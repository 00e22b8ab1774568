"""PNG files of 16 bits per channel, with every filter of the format."""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest


def _png16_bytes(image: np.ndarray, filters: list[int]) -> bytes:
    """Return a PNG file of an (H, W, C) uint16 image, row i with filter type filters[i % len(filters)]."""
    height, width, num_channels = image.shape
    rows = image.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    num_bytes = 2 * num_channels
    left = np.pad(rows, ((0, 0), (num_bytes, 0)))[:, :-num_bytes]
    up = np.pad(rows, ((1, 0), (0, 0)))[:-1]
    corner = np.pad(left, ((1, 0), (0, 0)))[:-1]
    distances = np.abs(np.stack([left, up, corner]) - (left + up - corner))
    paeth = np.choose(distances.argmin(axis=0), [left, up, corner])  # argmin takes the first of equals
    predictions = [np.zeros_like(rows), left, up, (left + up) // 2, paeth]
    raw = b"".join(
        bytes([kind]) + ((rows[i] - predictions[kind][i]) % 256).astype(np.uint8).tobytes()
        for i, kind in ((i, filters[i % len(filters)]) for i in range(height))
    )
    return _png_bytes(raw, width, height, colour_type={1: 0, 2: 4, 3: 2, 4: 6}[num_channels])


def _png_bytes(raw: bytes, width: int, height: int, *, colour_type: int, bits: int = 16, interlacing: int = 0) -> bytes:
    """Return a PNG file around rows that are filtered already; its data lies in two chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlacing)
    compressed = zlib.compress(raw)
    middle = len(compressed) // 2
    chunks = [(b"IHDR", header), (b"IDAT", compressed[:middle]), (b"IDAT", compressed[middle:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.fixture(scope="session")
def png16_bytes() -> Callable[..., bytes]:
    return _png16_bytes


@pytest.fixture(scope="session")
def png_bytes() -> Callable[..., bytes]:
    return _png_bytes


@pytest.fixture
def deep_image() -> np.ndarray:
    """A (23, 31, 3) uint16 image, smooth with noise in the lower bits."""
    random = np.random.default_rng(0)
    waves = np.sin(np.arange(23)[:, None, None] / 5 + np.arange(31)[:, None] / 7 + np.arange(3))
    return (32768 + 30000 * waves + random.integers(-300, 300, (23, 31, 3))).astype(np.uint16)
