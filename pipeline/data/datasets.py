"""Named sets of images, clean or in noisy/clean pairs, read one image at a time.

Opened by the commands from what the user names: a folder, or `photographs`. Images are (H, W, 3) RGB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.images import VALIDATION_PHOTOGRAPHS, list_images, photographs, read_image


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a dataset.

    Attributes:
        name: file stem.
        clean: (H, W, 3) uint8.
        noisy: (H, W, 3) uint8 of the same size, or None where the noise is still to be made.
    """

    name: str
    clean: np.ndarray
    noisy: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A set of images in a fixed order.

    Attributes:
        name: in tables; the folder's name.
        names: of the images, sorted as strings.
        is_paired: every sample has its own noisy image.
        load: reads the image of that name.
    """

    name: str
    names: tuple[str, ...]
    is_paired: bool
    load: Callable[[str], Sample]

    def __len__(self) -> int:
        return len(self.names)


def open_dataset(source: Path | str) -> Dataset:
    """Open a set of images without reading them.

    Args:
        source: `photographs` (two validation photographs of scikit-image), a folder of clean images, or a folder that
            holds the folders `clean` and `noisy` with files of equal stems.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no image, or an image without its partner.
    """
    if str(source) == "photographs":
        images = photographs(VALIDATION_PHOTOGRAPHS)
        return Dataset(
            name="photographs", names=tuple(sorted(images)), is_paired=False,
            load=lambda name: Sample(name=name, clean=images[name]),
        )  # fmt: skip
    folder = Path(source)
    if not (folder / "clean").is_dir():
        paths = {path.stem: path for path in list_images(folder)}
        return Dataset(
            name=folder.name, names=tuple(sorted(paths)), is_paired=False,
            load=lambda name: Sample(name=name, clean=read_image(paths[name])),
        )  # fmt: skip
    clean, noisy = ({path.stem: path for path in list_images(folder / part)} for part in ("clean", "noisy"))
    if clean.keys() != noisy.keys():
        alone = ", ".join(sorted(clean.keys() ^ noisy.keys()))
        raise ValueError(f"folder {folder} must hold pairs of equal names in `clean` and `noisy`; alone: {alone}")
    return Dataset(
        name=folder.name, names=tuple(sorted(clean)), is_paired=True,
        load=lambda name: Sample(name=name, clean=read_image(clean[name]), noisy=read_image(noisy[name])),
    )  # fmt: skip
