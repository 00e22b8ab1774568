"""Files of the Smartphone Image Denoising Dataset (SIDD): scene folders of SIDD-Medium, blocks of its validation set.

Used by `pipeline.data.datasets`. Abdelhamed et al., "A High-Quality Denoising Dataset for Smartphone
Cameras", CVPR 2018.
"""

import math
import re
from functools import cached_property
from pathlib import Path

import numpy as np

_MAX_INFLATION = 1100  # a compressed MATLAB file unpacks to at most 1032 times its size
_MAX_VALUES = 2**31  # more than an array of such a file can have; SIDD's have 252 million

_SCENE = re.compile(r"\d{4}_\d{3}_\w+")  # number, scene, camera, ISO, shutter, temperature, light
_NOISY = re.compile(r"(?P<scene>\d{4})_NOISY_SRGB_(?P<shot>\d{3})\.png", re.IGNORECASE)


def find_scenes(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Return the pairs of SIDD-Medium (sRGB) as `scene/shot`: (clean file, noisy file).

    Args:
        folder: of the scene folders, or one that holds them in `Data`. Pictures lie in them as NNNN_NOISY_SRGB_010.PNG
            and NNNN_GT_SRGB_010.PNG.

    Returns:
        Nothing, if `folder` does not look like SIDD.

    Raises:
        ValueError: a noisy picture lacks its clean one.
    """
    root = folder / "Data" if (folder / "Data").is_dir() else folder
    if not root.is_dir():
        return {}
    pairs: dict[str, tuple[Path, Path]] = {}
    for scene in sorted(path for path in root.iterdir() if path.is_dir() and _SCENE.fullmatch(path.name)):
        for noisy in sorted(scene.iterdir()):
            match = _NOISY.fullmatch(noisy.name)
            if match is None:
                continue
            clean = noisy.with_name(re.sub("NOISY", "GT", noisy.name, flags=re.IGNORECASE))
            if not clean.exists():
                raise ValueError(f"{noisy} must have its clean picture {clean.name} beside it")
            pairs[f"{scene.name}/{match['shot']}"] = (clean, noisy)
    return pairs


class ValidationBlocks:
    """One of the two .mat files of the validation set: (images, blocks, 256, 256, 3) uint8 RGB.

    Args:
        path: named as the array in it: ValidationNoisyBlocksSrgb.mat or ValidationGtBlocksSrgb.mat.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or lacks the array.
    """

    def __init__(self, path: Path) -> None:
        from scipy.io import whosmat  # here: few commands need it

        if not path.is_file():
            raise FileNotFoundError(f"file {path} does not exist")
        try:
            found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        except Exception as error:  # scipy raises many kinds for damaged files
            raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
        if path.stem not in found:
            raise ValueError(f"{path} must hold the array `{path.stem}`, got {', '.join(found) or 'none'}")
        self.shape, kind = found[path.stem]
        if len(self.shape) != 5 or self.shape[-1] != 3 or kind != "uint8":
            raise ValueError(
                f"`{path.stem}` in {path} must be uint8 of shape (images, blocks, H, W, 3), got {kind} {self.shape}"
            )
        num_values = math.prod(map(int, self.shape))
        if min(self.shape) < 1 or num_values > min(_MAX_VALUES, _MAX_INFLATION * path.stat().st_size):
            raise ValueError(
                f"{path} is damaged: its header claims {num_values} values {self.shape} in a file of "
                f"{path.stat().st_size} bytes"
            )
        self.path = path

    @property
    def names(self) -> tuple[str, ...]:
        """`image/block`, from 00/00 on."""
        return tuple(f"{image:02}/{block:02}" for image in range(self.shape[0]) for block in range(self.shape[1]))

    def read(self, name: str) -> np.ndarray:
        """Return a block, (H, W, 3) uint8."""
        image, block = map(int, name.split("/"))
        if isinstance(self._blocks, ValueError):
            raise self._blocks
        return np.ascontiguousarray(self._blocks[image, block])

    @cached_property
    def _blocks(self) -> np.ndarray | ValueError:
        """The blocks, or why they cannot be read: the file is tried once."""
        from scipy.io import loadmat

        try:
            blocks = loadmat(self.path, variable_names=[self.path.stem])[self.path.stem]
            if blocks.shape != self.shape or blocks.dtype != np.uint8:
                raise ValueError(f"its array is {blocks.dtype} {blocks.shape}")
            return blocks
        except Exception as error:  # likewise
            return ValueError(f"{self.path} cannot be read as a MATLAB file: {error}")
