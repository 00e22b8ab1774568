"""Named sets of images, clean or in noisy/clean pairs, read one image at a time.

Opened by the commands from what the user names; `docs/data.md` describes the kinds. Images are (H, W, 3) RGB,
uint8 or uint16.
"""

import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import sidd
from pipeline.data.images import VALIDATION_PHOTOGRAPHS, list_images, photographs, read_image, to_16_bit
from pipeline.settings import PHOTOGRAPHS

# Images of the test sets of the literature. A folder of such a name with another number is reported.
TEST_SETS = {"cbsd68": 68, "set5": 5, "live1": 29, "kodak24": 24, "mcmaster": 18}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a dataset.

    Attributes:
        name: of the image in its set.
        clean: (H, W, 3) uint8 or uint16.
        noisy: of the same size and type, or None where the noise is still to be made.
    """

    name: str
    clean: np.ndarray
    noisy: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A set of images in a fixed order.

    Attributes:
        name: in tables; the folder's name.
        names: of the images: file stems, sorted as strings; `scene/image` where several images show one scene.
        is_paired: every sample has its own noisy image.
        load: reads the image of that name.
        files: that the image of a name is read from; empty for what is not on disk.
    """

    name: str
    names: tuple[str, ...]
    is_paired: bool
    load: Callable[[str], Sample]
    files: Callable[[str], tuple[Path, ...]] = lambda name: ()

    def __len__(self) -> int:
        return len(self.names)


def open_dataset(
    source: Path | str, *, built_in: tuple[str, ...] = VALIDATION_PHOTOGRAPHS, promote_grey: bool = False
) -> Dataset:
    """Open a set of images without decoding them.

    Args:
        source: one of

            - a folder of clean images;
            - a folder that holds the folders `clean` and `noisy` with files of equal stems;
            - FOLDER:NOISY:CLEAN for pairs side by side, `{}` for the common part: `polyu:{}_real:{}_mean`; with a slash
              for pairs in two folders: `mine:shot/{}:truth/{}`;
            - the folder of SIDD-Medium (sRGB), or its validation blocks `ValidationNoisyBlocksSrgb.mat`;
            - `photographs`, see `built_in`.
        built_in: photographs of scikit-image that `photographs` stands for.
        promote_grey: let grey images in, see `pipeline.data.images.read_image`.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: it holds no image, an image without its partner, or two of one stem.
    """
    text = os.path.expanduser(source)  # of `data.training=~/photos`, where shells leave the tilde
    if text == PHOTOGRAPHS:
        images = photographs(built_in)
        return Dataset(
            name=text, names=tuple(images), is_paired=False,
            load=lambda name: Sample(name=name, clean=images[name]),
        )  # fmt: skip
    folder_name, *patterns = text.rsplit(":", 2)
    if len(patterns) == 2 and all(pattern.count("{}") == 1 for pattern in patterns):
        noisy, clean = (_match(Path(folder_name), pattern) for pattern in patterns)
        return _pairs(Path(folder_name), clean, noisy, promote_grey=promote_grey)
    folder = Path(text)
    if folder.suffix == ".mat":
        return _validation_blocks(folder)
    if (folder / "clean").is_dir():
        clean, noisy = (_by_stem(list_images(folder / part)) for part in ("clean", "noisy"))
        return _pairs(folder, clean, noisy, promote_grey=promote_grey)
    scenes = sidd.find_scenes(folder)
    if scenes:
        clean, noisy = ({name: pair[index] for name, pair in scenes.items()} for index in (0, 1))
        return _pairs(folder, clean, noisy, promote_grey=promote_grey)
    paths = _by_stem(list_images(folder))
    _report_other_number(folder, len(paths))
    return Dataset(
        name=_name(folder), names=tuple(sorted(paths)), is_paired=False,
        load=lambda name: Sample(name=name, clean=read_image(paths[name], promote_grey=promote_grey)),
        files=lambda name: (paths[name],),
    )  # fmt: skip


def _pairs(folder: Path, clean: Mapping[str, Path], noisy: Mapping[str, Path], *, promote_grey: bool) -> Dataset:
    if clean.keys() != noisy.keys():
        alone = sorted(clean.keys() ^ noisy.keys())
        shown = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        raise ValueError(f"folder {folder} must hold pairs of noisy and clean images; without a partner: {shown}")

    def load(name: str) -> Sample:
        images = [read_image(paths[name], promote_grey=promote_grey) for paths in (clean, noisy)]
        if images[0].shape != images[1].shape:
            raise ValueError(
                f"the pair {name} of {folder} must be of one size, got clean {clean[name].name} "
                f"{_size(images[0])} and noisy {noisy[name].name} {_size(images[1])}"
            )
        if images[0].dtype != images[1].dtype:
            images = [to_16_bit(image) for image in images]
        return Sample(name=name, clean=images[0], noisy=images[1])

    return Dataset(
        name=_name(folder), names=tuple(sorted(clean)), is_paired=True, load=load,
        files=lambda name: (clean[name], noisy[name]),
    )  # fmt: skip


def _validation_blocks(path: Path) -> Dataset:
    clean_path = path.with_name(path.name.replace("Noisy", "Gt"))
    if clean_path == path:
        raise ValueError(f"{path} must be named as in SIDD, ValidationNoisyBlocksSrgb.mat, with ...Gt... beside it")
    noisy, clean = sidd.ValidationBlocks(path), sidd.ValidationBlocks(clean_path)
    if noisy.names != clean.names:
        raise ValueError(f"{path} and {clean_path.name} must hold as many blocks, got {noisy.shape} and {clean.shape}")
    return Dataset(
        name="SIDD-validation", names=noisy.names, is_paired=True,
        load=lambda name: Sample(name=name, clean=clean.read(name), noisy=noisy.read(name)),
        files=lambda name: (clean_path, path),
    )  # fmt: skip


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise ValueError(f"images need distinct names without their endings, got {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def _match(folder: Path, pattern: str) -> dict[str, Path]:
    """Return the images of `folder` whose stems fit `pattern`, by what stands for `{}`."""
    place, _, stem_pattern = pattern.rpartition("/")
    before, after = stem_pattern.split("{}")
    found = {}
    for stem, path in _by_stem(list_images(folder / place)).items():
        if stem.startswith(before) and stem.endswith(after) and len(stem) > len(before) + len(after):
            found[stem[len(before) : len(stem) - len(after)]] = path
    if not found:
        raise ValueError(f"folder {folder / place} holds no image named {stem_pattern} (without its ending)")
    return found


@functools.cache  # a command opens a set as often as it needs it
def _report_other_number(folder: Path, num_images: int) -> None:
    """Warn, once, of a folder that is named like a test set and has not its number of images."""
    expected = TEST_SETS.get(_name(folder).lower())
    if expected not in (None, num_images):
        logging.getLogger(__name__).warning(
            "%s holds %d images, the set %s has %d", folder, num_images, _name(folder), expected
        )


def _name(folder: Path) -> str:
    """Return the folder's name, of `.` and `..` too."""
    return Path(os.path.abspath(folder)).name


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
