import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipeline.data.images import (
    TRAINING_PHOTOGRAPHS,
    VALIDATION_PHOTOGRAPHS,
    list_images,
    photographs,
    read_image,
    to_image,
    to_tensor,
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


def test_grey_images_get_three_equal_channels(tmp_path: Path, images: list[np.ndarray]) -> None:
    Image.fromarray(images[0][..., 0]).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.repeat(images[0][..., :1], 3, axis=2))


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


def test_images_survive_the_way_through_tensors(images: list[np.ndarray]) -> None:
    tensor = to_tensor(images[0])
    assert tensor.shape == (1, 3, 48, 64)
    assert tensor.dtype == torch.float32
    assert np.array_equal(to_image(tensor), images[0])


def test_tensors_are_clamped_and_rounded_half_to_even() -> None:
    values = torch.tensor([-0.1, 1.1, 0.4 / 255, 0.6 / 255, 127.5 / 255, 7.5 / 255])
    assert to_image(values.expand(3, 1, 6))[0, :, 0].tolist() == [0, 255, 0, 1, 128, 8]


def test_deep_images_are_rounded_to_8_bits(tmp_path: Path) -> None:
    """65535 / 255 = 257 levels of 16 bits make one of 8."""
    deep = (np.arange(64 * 48, dtype=np.uint32) * 21 % 65536).astype(np.uint16).reshape(64, 48)
    Image.fromarray(deep).save(tmp_path / "grey.png")
    expected = np.round(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(expected[..., None], 3, axis=2))
    colours = np.stack([deep, deep[::-1], deep[:, ::-1]], axis=2)
    tifffile.imwrite(tmp_path / "colour.tif", colours)
    assert np.array_equal(read_image(tmp_path / "colour.tif"), np.round(colours / 257).astype(np.uint8))


def test_deep_images_with_an_alpha_channel_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "four.tif", np.zeros((16, 16, 4), np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match=r"image .*four.tif must be RGB or grey, got uint16 of shape \(16, 16, 4\)"):
        read_image(tmp_path / "four.tif")


@pytest.fixture
def deep(images: list[np.ndarray]) -> np.ndarray:
    """A uint16 image that uses all 16 bits."""
    return images[0].astype(np.uint16) * 257 + np.arange(64, dtype=np.uint16)[:, np.newaxis] % 7


@pytest.mark.parametrize("options", [{"compression": "zlib"}, {"planarconfig": "separate"}], ids=str)
def test_deep_tiff_files_of_other_layouts_are_read(tmp_path: Path, deep: np.ndarray, options: dict[str, str]) -> None:
    array = deep.transpose(2, 0, 1) if "planarconfig" in options else deep
    tifffile.imwrite(tmp_path / "deep.tif", array, photometric="rgb", **options)
    assert np.array_equal(read_image(tmp_path / "deep.tif"), np.round(deep / 257))


def test_deep_tiff_files_that_would_be_read_wrongly_are_refused(tmp_path: Path, deep: np.ndarray) -> None:
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, deep[..., 0], photometric="miniswhite")
    with pytest.raises(ValueError, match=r"image .*odd\.tif cannot be decoded: black must be 0, got .* MINISWHITE"):
        read_image(path)
    tifffile.imwrite(path, np.stack([deep, deep]), photometric="rgb")
    with pytest.raises(ValueError, match=r"image .*odd\.tif must be RGB or grey, got uint16 of shape \(2, 48, 64, 3\)"):
        read_image(path)


def test_transparent_palettes_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8)).quantize(4)
    image.save(tmp_path / "palette.png", transparency=0)
    with pytest.raises(ValueError, match="palette.png must be RGB or grey, got Pillow mode 'P' with transparency"):
        read_image(tmp_path / "palette.png")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_files_that_are_cut_off_are_named(tmp_path: Path, deep: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(deep[..., 0]).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"image {path} cannot be decoded"):
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
