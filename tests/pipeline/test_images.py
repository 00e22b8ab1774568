from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.images import (
    TRAINING_PHOTOGRAPHS,
    VALIDATION_PHOTOGRAPHS,
    list_images,
    load_folder,
    load_pairs,
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


def test_a_folder_is_read_by_file_stem(folder: Path, images: list[np.ndarray]) -> None:
    found = load_folder(folder, minimum_size=40)
    assert list(found) == ["a", "b"]
    assert np.array_equal(found["a"], images[1])
    assert np.array_equal(found["b"], images[0])


def test_all_unusable_files_are_named_together(folder: Path) -> None:
    whole = (folder / "b.PNG").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    Image.new("RGBA", (64, 64)).save(folder / "transparent.png")
    Image.new("I;16", (64, 64)).save(folder / "deep.png")
    write_image(folder / "small.png", np.zeros((64, 20, 3), np.uint8))
    with pytest.raises(ValueError) as caught:
        load_folder(folder, minimum_size=32)
    lines = str(caught.value).splitlines()
    assert [Path(line.split()[1]).name for line in lines] == [
        "deep.png", "small.png", "text.jpg", "transparent.png", "truncated.png",
    ]  # fmt: skip
    assert "must be 8-bit RGB or grey, got Pillow mode 'I;16'" in lines[0]
    assert "is 20x64, smaller than the patch size 32" in lines[1]
    assert "cannot be decoded" in lines[2]
    assert "got Pillow mode 'RGBA'" in lines[3]
    assert "cannot be decoded" in lines[4]


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
        load_folder(tmp_path / "none")


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


@pytest.fixture
def pairs(tmp_path: Path, images: list[np.ndarray]) -> Path:
    """A folder with two pairs; the noisy image is the clean one, darker."""
    folder = tmp_path / "pairs"
    for name, divisor in (("clean", 1), ("noisy", 2)):
        (folder / name).mkdir(parents=True)
        for stem, image in zip("ab", images, strict=True):
            write_image(folder / name / f"{stem}.png", image // divisor)
    return folder


def test_pairs_are_read_clean_channels_first(pairs: Path, images: list[np.ndarray]) -> None:
    found = load_pairs(pairs, minimum_size=40)
    assert list(found) == ["a", "b"]
    for pair, image in zip(found.values(), images, strict=True):
        assert np.array_equal(pair[..., :3], image)
        assert np.array_equal(pair[..., 3:], image // 2)


def test_all_images_without_a_fitting_partner_are_named(pairs: Path, images: list[np.ndarray]) -> None:
    write_image(pairs / "clean" / "alone.png", images[0])
    write_image(pairs / "noisy" / "b.png", images[1][:50])
    with pytest.raises(ValueError) as caught:
        load_pairs(pairs)
    assert [line.partition(" of ")[0] for line in str(caught.value).splitlines()] == [
        "image alone is in only one",
        "the pair b",
    ]


def test_pairs_need_both_folders(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="image folder .*clean does not exist"):
        load_pairs(folder)
