from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.datasets import open_dataset
from pipeline.data.images import write_image
from pipeline.data.loading import check_datasets, check_disjoint, load_images
from pipeline.data.mapped import MappedArray
from pipeline.data.part_data import split_images
from pipeline.data.patches import PatchSource
from pipeline.data.scenes import scenes_of


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """Two folders of two images each; one stem is in both."""
    rng = np.random.default_rng(0)
    for name in ("one/a", "one/b", "two/a", "two/c"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(path, rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return [str(tmp_path / "one"), str(tmp_path / "two")]


def test_one_source_keeps_its_names_and_several_are_told_apart(sources: list[str]) -> None:
    assert list(load_images(sources[:1])) == ["a", "b"]
    assert list(load_images(sources)) == ["one:a", "one:b", "two:a", "two:c"]
    assert list(load_images(sources, exclude=["two:a"])) == ["one:a", "one:b", "two:c"]


def test_what_cannot_be_excluded_is_named(sources: list[str]) -> None:
    with pytest.raises(ValueError, match="`data.exclude` names 'a', which is not in"):
        load_images(sources, exclude=["a"])
    with pytest.raises(ValueError, match="no image of .* is left after `data.exclude`"):
        load_images(sources[:1], exclude=["a", "b"])


def test_sources_must_differ(sources: list[str]) -> None:
    with pytest.raises(ValueError, match="image sources need distinct folder names"):
        load_images([sources[0], sources[0]])
    with pytest.raises(ValueError, match="must hold at least one, got none"):
        load_images([])


def test_photographs_that_are_not_offered_are_refused(sources: list[str]) -> None:
    with pytest.raises(ValueError, match="`photographs` of scikit-image are not offered here; give folders of images"):
        load_images(["photographs", sources[0]])


def test_what_is_trained_on_is_not_scored(sources: list[str], tmp_path: Path) -> None:
    one, two = sources
    check_disjoint([one], [], {"data.validation": [two], "experiment.data": []})
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "b.png").symlink_to(Path(one) / "a.png")
    (mixed / "d.png").symlink_to(Path(two) / "c.png")
    expected = f"`data.training` and `data.validation` must have no image in common, got 2 files in both, such as {one}"
    with pytest.raises(ValueError, match=f"{expected}/a.png; leave them out with `data.exclude`"):
        check_disjoint([one, two], [], {"data.validation": [str(mixed)]})
    check_disjoint([one, two], ["one:a", "two:c"], {"data.validation": [str(mixed)]})
    check_disjoint([one, "photographs"], ["photographs:coffee"], {"data.validation": ["photographs"]})


def test_all_unusable_files_are_named_together(tmp_path: Path, sources: list[str]) -> None:
    folder = Path(sources[0])
    whole = (folder / "b.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    Image.new("RGBA", (64, 64)).save(folder / "transparent.png")
    write_image(folder / "small.png", np.zeros((64, 20, 3), np.uint8))
    write_image(folder / "grey.png", np.zeros((64, 64), np.uint8))
    write_image(folder / "deep-grey.png", np.zeros((64, 64), np.uint16))
    with pytest.raises(ValueError) as caught:
        load_images(sources, minimum_size=32)
    lines = str(caught.value).splitlines()
    assert [Path(line.split()[1]).name for line in lines] == [
        "deep-grey.png", "grey.png", "small.png", "text.jpg", "transparent.png", "truncated.png",
    ]  # fmt: skip
    assert all("must be RGB, got grey; `data.promote_grey=true`" in line for line in lines[:2])
    assert "small.png must have at least 32 pixels on both sides, got 20x64" in lines[2]
    write_image(folder / "tiny.png", np.zeros((10, 64, 3), np.uint8))
    with pytest.raises(ValueError) as caught:
        check_datasets([open_dataset(source) for source in sources])
    lines = str(caught.value).splitlines()
    assert len(lines) == 6  # a small image can be scored, but not one that SSIM's window does not fit into
    assert any("tiny.png must have at least 11 pixels on both sides, got 64x10" in line for line in lines)


def test_many_unusable_files_are_all_named(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_text("no image")
    (tmp_path / "away.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError) as caught:
        load_images([str(tmp_path)])
    lines = str(caught.value).splitlines()
    assert len(lines) == 32
    assert lines[-2:] == [f"image {tmp_path}/{name}.png does not exist" for name in ("away", "folder")]


def test_pairs_are_stacked_clean_channels_first(tmp_path: Path) -> None:
    images = {}
    for name, level in (("clean", 10), ("noisy", 20)):
        (tmp_path / name).mkdir()
        images[name] = np.full((16, 16, 3), level, np.uint8)
        write_image(tmp_path / name / "a.png", images[name])
    (pair,) = load_images([str(tmp_path)], paired=True).values()
    np.testing.assert_array_equal(pair, np.concatenate([images["clean"], images["noisy"]], axis=2))
    (clean,) = load_images([str(tmp_path)]).values()
    np.testing.assert_array_equal(clean, images["clean"])


@pytest.mark.parametrize("noisy_type", [np.uint8, np.uint16])
def test_a_pair_with_one_deep_image_is_deep(tmp_path: Path, noisy_type: type) -> None:
    write_image(tmp_path / "clean" / "a.png", np.full((16, 16, 3), 12345, np.uint16))
    write_image(tmp_path / "noisy" / "a.png", np.full((16, 16, 3), 100, noisy_type))
    (pair,) = load_images([str(tmp_path)], paired=True).values()
    assert pair.dtype == np.uint16
    assert pair[0, 0].tolist() == [12345] * 3 + [100 * (257 if noisy_type == np.uint8 else 1)] * 3


def test_clean_images_are_no_pairs(sources: list[str]) -> None:
    with pytest.raises(
        ValueError, match="`noise.model` pairs needs noisy images beside the clean ones; .*one has none"
    ):
        load_images(sources, paired=True)


def test_cached_images_are_mapped_and_give_the_same_patches(tmp_path: Path, sources: list[str]) -> None:
    cache = tmp_path / "cache"
    plain, mapped = load_images(sources), load_images(sources, cache=cache)
    assert all(isinstance(image, MappedArray) for image in mapped.values())
    assert len(list(cache.iterdir())) == 4
    batches = [
        PatchSource(list(images.values()), patch_size=16, sigma_range=(0.1, 0.1)).sample(
            8, torch.Generator().manual_seed(3)
        )
        for images in (plain, mapped)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)


def test_cached_images_keep_their_bits(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (40, 48, 3), dtype=np.uint16)
    write_image(tmp_path / "set" / "a.png", deep)
    (mapped,) = load_images([str(tmp_path / "set")], cache=tmp_path / "cache").values()
    assert isinstance(mapped, MappedArray) and mapped.dtype == np.uint16
    np.testing.assert_array_equal(mapped, deep)


def test_the_cache_lets_no_grey_image_in_that_was_not_asked_for(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a.png", np.full((16, 16), 7, np.uint8))
    source, cache = [str(tmp_path / "set")], tmp_path / "cache"
    assert load_images(source, promote_grey=True, cache=cache)["a"].shape == (16, 16, 3)
    with pytest.raises(ValueError, match=r"a\.png must be RGB, got grey"):
        load_images(source, cache=cache)


def test_the_cache_is_used_until_the_file_changes(tmp_path: Path, sources: list[str]) -> None:
    cache, image = tmp_path / "cache", Path(sources[0]) / "a.png"
    load_images(sources[:1], cache=cache)
    (first, second) = (path.stat().st_mtime_ns for path in sorted(cache.iterdir()))
    load_images(sources[:1], cache=cache)
    assert sorted(path.stat().st_mtime_ns for path in cache.iterdir()) == sorted([first, second])
    write_image(image, np.full((40, 48, 3), 7, np.uint8))
    assert (load_images(sources[:1], cache=cache)["a"] == 7).all()


def test_pictures_of_one_scene_stay_in_one_half() -> None:
    names = [f"scene{index // 2}/{index % 2}" for index in range(12)]
    images = [np.full((8, 8, 3), index, np.uint8) for index in range(12)]
    halves = split_images(images, 0.5, patch_size=8, scenes=scenes_of(names))
    scenes = [{int(image[0, 0, 0]) // 2 for image in half} for half in halves]
    assert len(halves[0]) == len(halves[1]) == 6
    assert not scenes[0] & scenes[1]


def test_one_scene_alone_cannot_be_divided() -> None:
    images = [np.zeros((8, 8, 3), np.uint8)] * 10
    with pytest.raises(ValueError, match="10 training images of 1 scenes cannot be divided"):
        split_images(images, 0.5, patch_size=8, scenes=["a"] * 10)
