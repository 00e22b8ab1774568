import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import read_image
from pipeline.data.png16 import decode_png16

Encode = Callable[..., bytes]


@pytest.mark.parametrize("filters", [[0], [1], [2], [3], [4], [4, 3, 2, 1, 0]])
@pytest.mark.parametrize("shape", [(23, 31, 3), (31, 23, 1), (1, 9, 3), (9, 1, 4), (1, 1, 2)])
def test_every_filter_is_undone(
    deep_image: np.ndarray, png16_bytes: Encode, filters: list[int], shape: tuple[int, int, int]
) -> None:
    image = np.resize(deep_image, shape)
    found = decode_png16(png16_bytes(image, filters))
    assert found.dtype == np.uint16
    assert np.array_equal(found, image)


def test_the_upper_bits_are_those_that_pillow_reads(deep_image: np.ndarray, png16_bytes: Encode) -> None:
    data = png16_bytes(deep_image, [3, 4, 1])
    assert np.array_equal(decode_png16(data) >> 8, np.asarray(Image.open(io.BytesIO(data))))


def test_files_of_pillow_are_read(deep_image: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(deep_image[..., 0]).save(file, "PNG")
    assert np.array_equal(decode_png16(file.getvalue())[..., 0], deep_image[..., 0])


def test_images_of_16_bits_are_rounded(tmp_path: Path, deep_image: np.ndarray, png16_bytes: Encode) -> None:
    (tmp_path / "rgb.png").write_bytes(png16_bytes(deep_image, [0, 1, 2, 3, 4]))
    assert np.array_equal(read_image(tmp_path / "rgb.png"), np.round(deep_image / 257))
    (tmp_path / "alpha.png").write_bytes(png16_bytes(np.dstack([deep_image, deep_image[..., :1]]), [4]))
    with pytest.raises(ValueError, match=r"alpha\.png must be RGB or grey, got uint16 of shape \(23, 31, 4\)"):
        read_image(tmp_path / "alpha.png")
    (tmp_path / "cut.png").write_bytes(png16_bytes(deep_image, [4])[:-300])
    with pytest.raises(ValueError, match=r"cut\.png cannot be decoded: the file ends inside a chunk IDAT"):
        read_image(tmp_path / "cut.png")


def test_damaged_files_are_refused(deep_image: np.ndarray, png16_bytes: Encode) -> None:
    data = png16_bytes(deep_image, [4])
    with pytest.raises(ValueError, match="the file ends inside a chunk IDAT"):
        decode_png16(data[: len(data) // 2])
    with pytest.raises(ValueError, match="the file ends before its last chunk"):
        decode_png16(data[:-12])
    with pytest.raises(ValueError, match="wrong checksum of a chunk IDAT"):
        decode_png16(data[:500] + bytes([data[500] ^ 1]) + data[501:])


@pytest.mark.parametrize(
    ("raw", "settings", "message"),
    [
        (b"\x05" + bytes(12), {}, "unknown filter type 5"),
        (bytes(12), {}, "expected 13 bytes of pixel data, got 12"),
        (bytes(13), {"interlacing": 1}, "interlaced PNG files of 16 bits are not supported"),
        (bytes(7), {"bits": 8}, "expected 16 bits per channel, got 8"),
    ],
)
def test_impossible_files_are_refused(png_bytes: Encode, raw: bytes, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_png16(png_bytes(raw, 2, 1, colour_type=2, **settings))


def test_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="not a PNG file"):
        decode_png16(b"GIF89a")
