import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipeline.data.images import (
    TRAINING_PHOTOGRAPHS,
    VALIDATION_PHOTOGRAPHS,
    decode_image,
    list_images,
    photographs,
    read_image,
    to_8_bit,
    to_16_bit,
    to_image,
    to_tensor,
    white_level,
    write_image,
)


@pytest.fixture
def folder(tmp_path: Path, images: list[np.ndarray]) -> Path:
    """A folder of two sound images and a text file."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    write_image(folder / "b.PNG", images[0])
    write_image(folder / "a.bmp", images[1])
    (folder / "readme.txt").write_text("not an image")
    return folder


def test_images_are_listed_by_name(folder: Path) -> None:
    assert [path.name for path in list_images(folder)] == ["a.bmp", "b.PNG"]


@pytest.mark.parametrize("kind", ["grey", "bilevel", "deep"])
def test_grey_images_get_three_equal_channels_on_request_alone(
    tmp_path: Path, images: list[np.ndarray], kind: str
) -> None:
    grey = {
        "grey": images[0][..., 0],
        "bilevel": (images[0][..., 0] > 127) * np.uint8(255),
        "deep": images[0][..., 0] * np.uint16(101),
    }[kind]
    path = tmp_path / "grey.png"
    Image.fromarray(grey).convert("1" if kind == "bilevel" else None).save(path)
    with pytest.raises(
        ValueError, match=r"image .*grey\.png must be RGB, got grey; `data\.promote_grey=true` .* repeats"
    ):
        read_image(path)
    found = read_image(path, promote_grey=True)
    assert found.dtype == grey.dtype
    assert np.array_equal(found, np.repeat(grey[..., np.newaxis], 3, axis=2))
    assert np.array_equal(decode_image(path, allow_grey=True), grey)


def test_palette_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), (10, 200, 30), np.uint8)).quantize(4).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png")[0, 0].tolist() == [10, 200, 30]


def test_a_missing_image_or_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="image .*none.png does not exist"):
        read_image(tmp_path / "none.png")
    with pytest.raises(FileNotFoundError, match="image folder .*none does not exist"):
        list_images(tmp_path / "none")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no image \(\.png, "):
        list_images(tmp_path)


def test_photographs_are_disjoint_and_of_the_documented_sizes() -> None:
    assert not set(TRAINING_PHOTOGRAPHS) & set(VALIDATION_PHOTOGRAPHS)
    found = photographs(TRAINING_PHOTOGRAPHS + VALIDATION_PHOTOGRAPHS)
    assert {name: image.shape for name, image in found.items()} == {
        "astronaut": (512, 512, 3),
        "coffee": (400, 600, 3),
        "rocket": (427, 640, 3),
        "chelsea": (300, 451, 3),
        "motorcycle_left": (384, 512, 3),
    }
    assert all(image.dtype == np.uint8 and image.flags.c_contiguous for image in found.values())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channel", [slice(None), 0], ids=["rgb", "grey"])
def test_images_survive_the_way_through_tensors(
    images: list[np.ndarray], deep: np.ndarray, dtype: type, channel: slice | int
) -> None:
    image = (deep if dtype == np.uint16 else images[0])[..., channel]
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 48, 64)
    assert tensor.dtype == torch.float32
    assert tensor[0, 0, 1, 2] == pytest.approx(image.reshape(48, 64, -1)[1, 2, 0] / white_level(image), rel=1e-6)
    found = to_image(tensor, like=image)
    assert found.dtype == dtype
    assert np.array_equal(found, image)


def test_the_grey_of_a_tensor_is_the_mean_of_its_channels() -> None:
    tensor = torch.tensor([0.1, 0.2, 0.6]).reshape(1, 3, 1, 1).expand(1, 3, 4, 5)
    found = to_image(tensor, like=np.zeros((4, 5), np.uint16))
    assert np.array_equal(found, np.full((4, 5), round(0.3 * 65535), np.uint16))


def test_every_shade_of_8_bits_has_its_equal_of_16() -> None:
    """Not only nearly: training patches of a set do not change when one of its images has 16 bits."""
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert to_16_bit(shades).max() == 65535
    assert torch.equal(to_tensor(to_16_bit(shades)), to_tensor(shades))
    assert np.array_equal(to_8_bit(to_16_bit(shades)), shades)
    assert to_8_bit(np.array([127, 129, 65535], np.uint16)).tolist() == [0, 1, 255]


def test_tensors_are_clamped_and_rounded_half_to_even() -> None:
    values = torch.tensor([-0.1, 1.1, 0.4 / 255, 0.6 / 255, 127.5 / 255, 7.5 / 255])
    assert to_image(values.expand(3, 1, 6))[0, :, 0].tolist() == [0, 255, 0, 1, 128, 8]


@pytest.fixture
def deep(images: list[np.ndarray]) -> np.ndarray:
    """A uint16 image that uses all 16 bits."""
    return images[0].astype(np.uint16) * 257 + np.arange(64, dtype=np.uint16)[:, np.newaxis] % 7


@pytest.mark.parametrize("channel", [slice(None), 0], ids=["rgb", "grey"])
def test_deep_images_are_written_and_read_with_all_their_bits(
    tmp_path: Path, deep: np.ndarray, channel: slice | int
) -> None:
    image = np.ascontiguousarray(deep[..., channel])
    write_image(tmp_path / "deep.png", image)
    tifffile.imwrite(tmp_path / "deep.tif", image)
    for name in ("deep.png", "deep.tif"):
        found = decode_image(tmp_path / name, allow_grey=True)
        assert found.dtype == np.uint16 and found.flags.c_contiguous
        assert np.array_equal(found, image)
    with Image.open(tmp_path / "deep.png") as other:  # an independent reader, which keeps the upper bits of RGB
        assert np.array_equal(np.asarray(other), image if image.ndim == 2 else image >> 8)


def test_deep_images_are_written_as_png_alone(tmp_path: Path, deep: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image of 16 bits must be written as \.png, got .*deep\.bmp"):
        write_image(tmp_path / "deep.bmp", deep)
    assert list(tmp_path.iterdir()) == []


def test_deep_images_with_an_alpha_channel_are_refused(tmp_path: Path, deep: np.ndarray) -> None:
    four = np.dstack([deep, deep[..., :1]])
    tifffile.imwrite(tmp_path / "rgba.tif", four, photometric="rgb")
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(four))
    (tmp_path / "greya.png").write_bytes(imagecodecs.png_encode(four[..., 2:].copy()))
    for name, num_channels in {"rgba.tif": 4, "rgba.png": 4, "greya.png": 2}.items():
        with pytest.raises(ValueError, match=rf"{name} must be RGB or grey, got uint16 .* 64, {num_channels}\)"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "packbits", "zstd", "lzma", None])
@pytest.mark.parametrize(
    "layout", [{"predictor": True}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"byteorder": ">"}], ids=str
)
def test_deep_tiff_files_of_all_layouts_are_read(
    tmp_path: Path, deep: np.ndarray, compression: str | None, layout: dict
) -> None:
    array = deep.transpose(2, 0, 1) if "planarconfig" in layout else deep
    layout = {} if compression is None and "predictor" in layout else layout
    tifffile.imwrite(tmp_path / "deep.tif", array, photometric="rgb", compression=compression, **layout)
    assert np.array_equal(read_image(tmp_path / "deep.tif"), deep)


def test_deep_tiff_files_that_would_be_read_wrongly_are_refused(tmp_path: Path, deep: np.ndarray) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, deep[..., 0], photometric="miniswhite")
    with pytest.raises(ValueError, match=r"image .*odd\.tif cannot be decoded: black must be 0, got .* MINISWHITE"):
        read_image(path)
    tifffile.imwrite(path, np.stack([deep, deep]), photometric="rgb")
    with pytest.raises(ValueError, match=r"image .*odd\.tif must be RGB or grey, got uint16 of shape \(2, 48, 64, 3\)"):
        read_image(path)
    tifffile.imwrite(path, deep[..., 0] >> 4, photometric="minisblack", bitspersample=12)
    with pytest.raises(ValueError, match=r"odd\.tif cannot be decoded: it must have 8 or 16 bits per channel, got 12"):
        read_image(path)


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        ("Compression", 7, r"its compression must be one of NONE, LZW, .* got JPEG"),
        ("TileWidth", 60_000, r"it has 11520000000 bytes, more than 712000000"),
    ],
)
def test_deep_tiff_files_whose_pieces_may_be_of_any_size_are_refused(
    tmp_path: Path, deep: np.ndarray, tag: str, value: int, message: str
) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, deep, photometric="rgb", compression="lzw", tile=(32_000, 16))
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages.first.tags[tag].overwrite(value)
    with pytest.raises(ValueError, match=rf"bomb\.tif cannot be decoded: {message}"):
        read_image(path)


def png_bytes(deep: np.ndarray, *, interlacing: int) -> bytes:
    """Return a PNG file of an RGB image of 16 bits, by the W3C Recommendation, without filters."""
    passes = {
        0: [np.s_[:, :]],
        1: [np.s_[::8, ::8], np.s_[::8, 4::8], np.s_[4::8, ::4], np.s_[::4, 2::4], np.s_[2::4, ::2], np.s_[::2, 1::2],
            np.s_[1::2, :]],
    }[interlacing]  # fmt: skip
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for place in passes for row in deep[place])
    header = struct.pack(">IIBBBBB", deep.shape[1], deep.shape[0], 16, 2, 0, 0, interlacing)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("interlacing", [0, 1])
def test_deep_png_files_may_be_interlaced(tmp_path: Path, deep: np.ndarray, interlacing: int) -> None:
    (tmp_path / "deep.png").write_bytes(png_bytes(deep, interlacing=interlacing))
    assert np.array_equal(read_image(tmp_path / "deep.png"), deep)


def test_deep_png_files_with_wrong_or_too_few_pixels_are_refused(tmp_path: Path, deep: np.ndarray) -> None:
    path = tmp_path / "deep.png"
    content = bytearray(png_bytes(deep, interlacing=0))
    content[-14] ^= 1  # in the checksum of the pixels
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"deep\.png cannot be decoded: IDAT: CRC error"):
        read_image(path)
    header = png_bytes(deep, interlacing=0)[:33]
    path.write_bytes(header + png_bytes(deep[:40], interlacing=0)[33:])
    with pytest.raises(ValueError, match=r"deep\.png cannot be decoded: .*Not enough image data"):
        read_image(path)


def test_transparent_palettes_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8)).quantize(4)
    image.save(tmp_path / "palette.png", transparency=0)
    with pytest.raises(ValueError, match="palette.png must be RGB or grey, got Pillow mode 'P' with transparency"):
        read_image(tmp_path / "palette.png")


@pytest.mark.parametrize("compression", [None, "lzw", "png"])
def test_deep_files_that_are_cut_off_are_named(tmp_path: Path, deep: np.ndarray, compression: str | None) -> None:
    path = tmp_path / ("cut.png" if compression == "png" else "cut.tif")
    if compression == "png":
        write_image(path, deep)
    else:
        tifffile.imwrite(path, deep, photometric="rgb", compression=compression)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"image {path} cannot be decoded"):
        read_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_deep_image_that_claims_too_many_pixels_is_refused(tmp_path: Path, deep: np.ndarray) -> None:
    content = bytearray(png_bytes(deep, interlacing=0))
    content[16:24] = (10_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"bomb\.png cannot be decoded: it has 10000 x 10000 pixels, more than 89000000"
    ):
        read_image(path)


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_an_image_that_claims_too_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    """A header of a few bytes; Pillow itself would allocate the first and only refuse the second."""
    path = tmp_path / "bomb.bmp"
    Image.new("RGB", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = side.to_bytes(4, "little") * 2  # width and height
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(ValueError, match=r"bomb\.bmp cannot be decoded: .*pixels"):
            read_image(path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_stand_upright(orientation: int, tmp_path: Path) -> None:
    """6 means that the camera was turned: rows of the file are columns of the picture."""
    stored = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    turns = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), np.rot90(stored, turns))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_of_16_bits_stand_as_those_of_8_bits_do(orientation: int, tmp_path: Path, deep: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(to_8_bit(deep)).save(tmp_path / "photo.png", exif=exif)
    tag = (0x0112, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=[tag])
    found = read_image(tmp_path / "deep.tif")
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(to_8_bit(found), read_image(tmp_path / "photo.png"))


def test_a_file_of_another_format_is_refused_whatever_its_name(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match="a.png cannot be decoded: cannot identify image file"):
        read_image(tmp_path / "a.png")
