"""The Darmstadt Noise Dataset (DND): read its noisy images, write what its server takes.

Called by the command `denoise-nas dnd`. There is no ground truth; scores come from the benchmark's server.
Plötz and Roth, "Benchmarking Denoising Algorithms with Real Photographs", CVPR 2017.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ops.files import write_atomically, written_beside

NUM_IMAGES, NUM_BOXES = 50, 20
_MAX_PIXELS = 89_000_000  # as of other images
_VERSION = "1.0"


def read_boxes(folder: Path | str) -> list[np.ndarray]:
    """Read where the crops lie.

    Args:
        folder: of DND, with `info.mat` in it.

    Returns:
        For every image (20, 4) integers: first row, end row, first column, end column; ends are not included.

    Raises:
        FileNotFoundError: no `info.mat`.
        ValueError: it lacks the boxes, or has others than DND's.
    """
    path = Path(folder) / "info.mat"
    with _open(path) as file:
        if "info/boundingboxes" not in file:
            raise ValueError(f"{path} must hold `info/boundingboxes`, got {', '.join(file) or 'nothing'}")
        references = _values(path, file, "info/boundingboxes", largest=NUM_IMAGES, kinds="O")
        boxes = [_values(path, file, reference, largest=4 * NUM_BOXES).T for reference in references.reshape(-1)]
    if len(boxes) != NUM_IMAGES or any(box.shape != (NUM_BOXES, 4) for box in boxes):
        raise ValueError(f"{path} must hold {NUM_IMAGES} lists of {NUM_BOXES} boxes, got {len(boxes)} of shapes "
                         f"{sorted({box.shape for box in boxes})}")  # fmt: skip
    found = []
    for box in boxes:  # first row, first column, last row, last column, counted from 1
        top, left, bottom, right = box.astype(int).T
        found.append(np.stack([top - 1, bottom, left - 1, right], axis=1))
    return found


def read_noisy(folder: Path | str, index: int) -> np.ndarray:
    """Read noisy image `index`, counted from 0: (H, W, 3) float32 in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: it lacks the image.
    """
    path = Path(folder) / "images_srgb" / f"{index + 1:04}.mat"
    with _open(path) as file:
        if "InoisySRGB" not in file:
            raise ValueError(f"{path} must hold `InoisySRGB`, got {', '.join(file) or 'nothing'}")
        image = _values(path, file, "InoisySRGB", largest=3 * _MAX_PIXELS).astype(np.float32).T
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"`InoisySRGB` in {path} must be 3 x W x H, got {image.T.shape}")
    return np.ascontiguousarray(image)


def write_submission(
    folder: Path | str,
    output: Path | str,
    denoise: Callable[[Tensor], Tensor],
    *,
    fingerprint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Denoise all crops and write the 50 files of a submission; files that are there are kept, so it resumes.

    All files of DND that are still needed are opened before the first is denoised.

    Args:
        folder: of DND.
        output: folder for `0001.mat` to `0050.mat`.
        denoise: maps (1, 3, H, W) float32 to the same shape on the CPU.
        fingerprint: of the denoiser and its tiles, kept beside `output` in `OUTPUT.model`; files of another one are not
            gone on with.
        progress: called with (images done, images in all).

    Returns:
        The files.

    Raises:
        FileNotFoundError: a file of DND is missing.
        ValueError: a file of DND is not as it must be, a crop lies outside its image, a result is not finite, or
            `output` holds files of another denoiser.
    """
    from scipy.io import savemat

    boxes, output = read_boxes(folder), Path(output).absolute()
    paths = [output / f"{index + 1:04}.mat" for index in range(NUM_IMAGES)]
    for source in (Path(folder) / "images_srgb" / path.name for path in paths if not path.exists()):
        with _open(source) as file:
            if "InoisySRGB" not in file:
                raise ValueError(f"{source} must hold `InoisySRGB`, got {', '.join(file) or 'nothing'}")
    if fingerprint is not None:
        mark = output.with_name(f"{output.name}.model")
        found = mark.read_text(encoding="utf-8").strip() if mark.exists() else "unknown"
        if found != fingerprint and any(path.exists() for path in paths):
            raise ValueError(
                f"`--output` {output} holds a submission of another model or tile size (fingerprint {found}, this is "
                f"{fingerprint}); remove it or choose another"
            )
        write_atomically(mark, fingerprint + "\n")
    for index, path in enumerate(paths):
        if not path.exists():
            noisy = read_noisy(folder, index)
            crops = np.empty(NUM_BOXES, dtype=object)
            for place, (top, bottom, left, right) in enumerate(boxes[index]):
                crop = noisy[top:bottom, left:right]
                if crop.shape[:2] != (bottom - top, right - left) or not crop.size:
                    raise ValueError(f"box {place + 1} of DND image {index + 1} lies outside the image {noisy.shape}")
                tensor = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]  # -> (1, 3, H, W)
                denoised = denoise(tensor)
                if not denoised.isfinite().all():
                    raise ValueError(f"the denoiser's output for DND image {index + 1} is not finite")
                crops[place] = denoised[0].clamp(0, 1).permute(1, 2, 0).numpy().astype(np.float32)
            with written_beside(path) as beside:
                savemat(beside, {"Idenoised": crops, "israw": False, "eval_version": _VERSION})
        if progress:
            progress(index + 1, NUM_IMAGES)
    return paths


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except Exception as error:  # h5py raises nearly every kind for damaged files
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read as a MATLAB 7.3 (HDF5) file: {error}") from error


def _values(path: Path, file: h5py.File, key: Any, *, largest: int, kinds: str = "fiu") -> np.ndarray:
    """Read an array that lies in the file itself, unless it claims to be larger than it can be."""
    found = file[key]
    if not isinstance(found, h5py.Dataset) or found.file != file or found.external or found.is_virtual:
        raise ValueError(f"{path} must hold the array {key} itself, got {found}")
    sizes = (math.prod(found.shape or (0,)), math.prod(found.chunks or (0,)))
    if found.shape is None or max(sizes) > largest or found.dtype.kind not in kinds:
        raise ValueError(f"{path} must hold at most {largest} numbers in {key}, got {found}")
    return found[()]
