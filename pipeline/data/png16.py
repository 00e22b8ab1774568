"""Decode PNG files of 16 bits per channel, of which Pillow keeps only the upper 8 where there are several channels.

Called by `pipeline.data.images`. W3C Recommendation "Portable Network Graphics", Sections 5 (chunks) and 9 (filters).

Legend: H height, W width, C channels, D bytes per pixel (2 C).
"""

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type: grey, RGB, grey with alpha, RGB with alpha
_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4


def decode_png16(data: bytes) -> np.ndarray:
    """Decode the bytes of a PNG file of 16 bits per channel.

    Returns:
        (H, W, C) uint16.

    Raises:
        ValueError: not such a file, cut off or damaged, or interlaced.
    """
    header, compressed = _read_chunks(data)
    width, height, bits, colour_type, _, _, interlacing = struct.unpack(">IIBBBBB", header)
    if bits != 16 or colour_type not in _CHANNELS:
        raise ValueError(f"expected 16 bits per channel, got {bits} bits of colour type {colour_type}")
    if interlacing:
        raise ValueError("interlaced PNG files of 16 bits are not supported; store it without interlacing")
    num_channels = _CHANNELS[colour_type]
    num_bytes = height * (1 + width * 2 * num_channels)  # a filter type before every row
    try:
        raw = zlib.decompressobj().decompress(compressed, num_bytes)
    except zlib.error as error:
        raise ValueError(f"damaged pixel data: {error}") from error
    if len(raw) != num_bytes:
        raise ValueError(f"expected {num_bytes} bytes of pixel data, got {len(raw)}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    pixels = _undo_filters(rows[:, 0], rows[:, 1:].reshape(height, width, 2 * num_channels))
    return pixels.view(">u2").astype(np.uint16)  # (H, W, D) -> (H, W, C)


def _read_chunks(data: bytes) -> tuple[bytes, bytes]:
    """Return the contents of the header and of all data chunks; every checksum is checked."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG file")
    header, compressed, position = b"", [], len(_SIGNATURE)
    while True:
        length_and_kind = data[position : position + 8]
        if len(length_and_kind) < 8:
            raise ValueError("the file ends before its last chunk")
        length, kind = struct.unpack(">I4s", length_and_kind)
        content = data[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(checksum) < 4:
            raise ValueError(f"the file ends inside a chunk {kind.decode('latin-1')}")
        if zlib.crc32(kind + content) != int.from_bytes(checksum, "big"):
            raise ValueError(f"wrong checksum of a chunk {kind.decode('latin-1')}")
        if kind == b"IHDR":
            header = content
        elif kind == b"IDAT":
            compressed.append(content)
        elif kind == b"IEND":
            if len(header) != 13:
                raise ValueError("no header chunk of 13 bytes")
            return header, b"".join(compressed)
        position += 12 + length


def _undo_filters(filters: np.ndarray, filtered: np.ndarray) -> np.ndarray:
    """Add to every byte what its filter predicts from the pixels to the left, above, and above to the left.

    A pixel needs its left and upper neighbours, so the pixels of one antidiagonal do not depend on each other: they
    are done at once.

    Args:
        filters: (H,) filter type of every row.
        filtered: (H, W, D) uint8.
    """
    if filters.size and filters.max() > _PAETH:
        raise ValueError(f"unknown filter type {filters.max()}")
    height, width, num_bytes = filtered.shape
    pixels = np.empty_like(filtered)
    # The last two antidiagonals by row + 1; row 0, and what lies left of the image, stays zero.
    last, before_last = (np.zeros((height + 1, num_bytes), np.int16) for _ in range(2))
    kinds = filters[:, None]
    for diagonal in range(height + width - 1):
        first, end = max(0, diagonal - width + 1), min(height, diagonal + 1)
        rows = np.arange(first, end)
        columns = diagonal - rows
        left, up, corner = last[first + 1 : end + 1], last[first:end], before_last[first:end]
        kind = kinds[first:end]
        predicted = np.where(kind == _SUB, left, 0)
        predicted = np.where(kind == _UP, up, predicted)
        predicted = np.where(kind == _AVERAGE, (left + up) >> 1, predicted)
        predicted = np.where(kind == _PAETH, _paeth(left, up, corner), predicted)
        values = (filtered[rows, columns] + predicted) & 255
        pixels[rows, columns] = values
        before_last[first + 1 : end + 1] = values
        last, before_last = before_last, last
    return pixels


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Return whichever neighbour is nearest to left + up - corner; ties in that order (Section 9.4)."""
    to_left, to_up, to_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    is_left = (to_left <= to_up) & (to_left <= to_corner)
    return np.where(is_left, left, np.where(to_up <= to_corner, up, corner))
