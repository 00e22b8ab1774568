"""Read, write and list images; the photographs that come with scikit-image.

Called by every command that takes images. Images in memory are (H, W, 3) uint8 RGB; tensors are (B, 3, H, W) float32 in
[0, 1].
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline.checkpoint import written_beside

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Disjoint photographs that scikit-image carries in its wheel; "left" of the stereo pair validates, "right" is not used.
TRAINING_PHOTOGRAPHS = ("astronaut", "coffee", "rocket")
VALIDATION_PHOTOGRAPHS = ("chelsea", "motorcycle_left")
_VALIDATION_CROPS = {"motorcycle_left": (384, 512)}  # height, width from the top left: both images of similar size


def list_images(folder: Path | str) -> list[Path]:
    """List the image files of `folder`, sorted by name.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"image folder {folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def read_image(path: Path | str) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 RGB; grey images are repeated over the three channels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an image that can be decoded, or has an alpha channel or more than 8 bits.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    try:
        with Image.open(path) as image:
            mode = image.mode
            if mode == "P":
                mode = "RGB"
            if mode not in ("RGB", "L", "1"):
                raise ValueError(f"image {path} must be 8-bit RGB or grey, got Pillow mode {image.mode!r}")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image {path} cannot be decoded: {error}") from error


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 image; the format follows the file name."""
    with written_beside(path) as beside:
        Image.fromarray(image).save(beside)


def load_folder(folder: Path | str, *, minimum_size: int = 1) -> dict[str, np.ndarray]:
    """Read every image of `folder`, keyed by file stem.

    Raises:
        ValueError: some files cannot be decoded or are smaller than `minimum_size`; all of them are named at once.
    """
    images: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for path in list_images(folder):
        try:
            image = read_image(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if min(image.shape[:2]) < minimum_size:
            height, width = image.shape[:2]
            problems.append(f"image {path} is {width}x{height}, smaller than the patch size {minimum_size}")
        images[path.stem] = image
    if problems:
        raise ValueError("\n".join(problems))
    return images


def load_pairs(folder: Path | str, *, minimum_size: int = 1) -> dict[str, np.ndarray]:
    """Read pairs of equal file stems from `folder`/clean and `folder`/noisy.

    Returns:
        (H, W, 6) uint8 by stem: the clean image's channels, then the noisy one's.

    Raises:
        FileNotFoundError: one of the two folders does not exist.
        ValueError: an image cannot be used, has no partner, or one of another size; all of them are named at once.
    """
    clean, noisy = (load_folder(Path(folder) / name, minimum_size=minimum_size) for name in ("clean", "noisy"))
    problems = [f"image {name} is in only one of {folder}/clean and {folder}/noisy" for name in clean.keys() ^ noisy]
    problems += [
        f"the pair {name} of {folder} has different sizes: clean {clean[name].shape[:2]}, noisy {noisy[name].shape[:2]}"
        for name in clean.keys() & noisy.keys()
        if clean[name].shape != noisy[name].shape
    ]
    if problems:
        raise ValueError("\n".join(sorted(problems)))
    return {name: np.concatenate([clean[name], noisy[name]], axis=2) for name in clean}


def photographs(names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return photographs of scikit-image by name, for example `astronaut`; validation ones cropped as documented."""
    from skimage import data  # here: importing it costs half a second that most commands do not need

    images = {}
    for name in names:
        if name == "motorcycle_left":
            image = data.stereo_motorcycle()[0]
        else:
            image = getattr(data, name)()
        if name in _VALIDATION_CROPS:
            height, width = _VALIDATION_CROPS[name]
            image = image[:height, :width]
        images[name] = np.ascontiguousarray(image[..., :3])
    return images


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 in [0, 255] or float in [0, 1] -> (1, 3, H, W) float32 in [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return tensor.float() / 255 if image.dtype == np.uint8 else tensor.float()


def to_image(tensor: Tensor) -> np.ndarray:
    """(1, 3, H, W) or (3, H, W) in [0, 1] -> (H, W, 3) uint8, clamped, rounded half to even."""
    array = tensor.detach().reshape(tensor.shape[-3:]).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return np.ascontiguousarray(array.transpose(1, 2, 0))
