import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.datasets import open_dataset
from pipeline.data.images import write_image


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture(rng: np.random.Generator, height: int = 24, width: int = 32) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, image)
    return image


def test_a_folder_of_clean_images(tmp_path: Path, rng: np.random.Generator) -> None:
    images = {name: write(tmp_path / "mine" / f"{name}.png", picture(rng)) for name in ("b", "a", "c")}
    dataset = open_dataset(tmp_path / "mine")
    assert (dataset.name, dataset.names, dataset.is_paired) == ("mine", ("a", "b", "c"), False)
    for name, image in images.items():
        sample = dataset.load(name)
        assert sample.noisy is None
        np.testing.assert_array_equal(sample.clean, image)


def test_two_images_of_one_stem_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path / "a.png", picture(rng))
    write(tmp_path / "a.bmp", picture(rng))
    with pytest.raises(ValueError, match=r"distinct names without their endings, got .*a\.bmp and .*a\.png"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("source", "clean", "noisy"),
    [
        ("", "clean/{}.png", "noisy/{}.png"),
        (":{}_real:{}_mean", "{}_mean.png", "{}_real.png"),
        (":shot/n-{}:truth/{}", "truth/{}.png", "shot/n-{}.png"),
    ],
)
def test_pairs(tmp_path: Path, rng: np.random.Generator, source: str, clean: str, noisy: str) -> None:
    folder = tmp_path / "set"
    expected = {
        name: (write(folder / clean.format(name), picture(rng)), write(folder / noisy.format(name), picture(rng)))
        for name in ("two", "one")
    }
    dataset = open_dataset(f"{folder}{source}")
    assert (dataset.name, dataset.names, dataset.is_paired) == ("set", ("one", "two"), True)
    for name, pair in expected.items():
        sample = dataset.load(name)
        np.testing.assert_array_equal(sample.clean, pair[0])
        np.testing.assert_array_equal(sample.noisy, pair[1])


def test_images_without_a_partner_are_named(tmp_path: Path, rng: np.random.Generator) -> None:
    for name in ("clean/a", "clean/b", "noisy/a"):
        write(tmp_path / f"{name}.png", picture(rng))
    with pytest.raises(ValueError, match="must hold pairs of noisy and clean images; without a partner: b"):
        open_dataset(tmp_path)


def test_a_pattern_that_fits_nothing_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path / "a_mean.png", picture(rng))
    with pytest.raises(ValueError, match="holds no image named {}_real"):
        open_dataset(f"{tmp_path}:{{}}_real:{{}}_mean")


def test_a_pair_of_two_sizes_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    write(tmp_path / "clean" / "a.png", picture(rng, 24, 32))
    write(tmp_path / "noisy" / "a.png", picture(rng, 24, 30))
    with pytest.raises(ValueError, match=r"the pair a of .* clean a\.png 32x24 and noisy a\.png 30x24"):
        open_dataset(tmp_path).load("a")


@pytest.mark.parametrize("inside", ["", "Data"])
def test_sidd_medium_is_read_by_scene(tmp_path: Path, rng: np.random.Generator, inside: str) -> None:
    expected = {}
    for number, scene in (("0001", "0001_001_S6_00100_00060_3200_L"), ("0002", "0002_001_IP_00800_01000_5500_N")):
        for shot in ("010", "011"):
            folder = tmp_path / "SIDD" / inside / scene
            expected[f"{scene}/{shot}"] = (
                write(folder / f"{number}_GT_SRGB_{shot}.PNG", picture(rng)),
                write(folder / f"{number}_NOISY_SRGB_{shot}.PNG", picture(rng)),
            )
    dataset = open_dataset(tmp_path / "SIDD")
    assert dataset.names == tuple(sorted(expected))
    assert dataset.is_paired
    for name, (clean, noisy) in expected.items():
        np.testing.assert_array_equal(dataset.load(name).clean, clean)
        np.testing.assert_array_equal(dataset.load(name).noisy, noisy)
    next((tmp_path / "SIDD").rglob("*_GT_SRGB_011.PNG")).unlink()
    with pytest.raises(ValueError, match="NOISY_SRGB_011.PNG must have its clean picture"):
        open_dataset(tmp_path / "SIDD")


def test_a_test_set_with_missing_images_is_reported(
    tmp_path: Path, rng: np.random.Generator, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "Set5" / "baby.png", picture(rng))
    with caplog.at_level(logging.WARNING):
        open_dataset(tmp_path / "Set5")
        open_dataset(tmp_path / "Set5")
    (message,) = caplog.messages
    assert message.endswith("Set5 holds 1 images, the set Set5 has 5")


def test_transparent_and_truncated_images_name_themselves(tmp_path: Path, rng: np.random.Generator) -> None:
    Image.new("RGBA", (16, 16)).save(tmp_path / "transparent.png")
    write(tmp_path / "cut.png", picture(rng))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    dataset = open_dataset(tmp_path)
    with pytest.raises(ValueError, match=r"image .*transparent\.png must be RGB or grey, got Pillow mode 'RGBA'"):
        dataset.load("transparent")
    with pytest.raises(ValueError, match=r"image .*cut\.png cannot be decoded"):
        dataset.load("cut")


@pytest.mark.parametrize("folder", ["", "clean", "noisy"])
def test_grey_images_are_let_in_on_request(tmp_path: Path, rng: np.random.Generator, folder: str) -> None:
    for name in ("clean", "noisy") if folder else ("",):
        write(tmp_path / name / "a.png", picture(rng)[..., 0] if name == folder else picture(rng))
    with pytest.raises(ValueError, match=r"image .*a\.png must be RGB, got grey"):
        open_dataset(tmp_path).load("a")
    sample = open_dataset(tmp_path, promote_grey=True).load("a")
    assert sample.clean.shape == (24, 32, 3)
    grey = sample.noisy if folder == "noisy" else sample.clean
    assert grey is not None and (grey == grey[..., :1]).all()


def test_the_photographs_are_a_set_too() -> None:
    dataset = open_dataset("photographs")
    assert dataset.names == ("chelsea", "motorcycle_left")
    assert dataset.load("motorcycle_left").clean.shape == (384, 512, 3)
    assert dataset.files("chelsea") == ()


def test_a_tilde_is_the_home_folder_and_a_dot_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "photos" / "a.png", np.zeros((16, 16, 3), np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "photos")
    assert open_dataset("~/photos").names == ("a",)
    assert open_dataset(".").name == open_dataset("../photos").name == "photos"
