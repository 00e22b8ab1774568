"""Read all images that a run trains or validates on, from one source or several.

Called when a run is opened, by prior training and before files are denoised. Everything is decoded once before work
starts, so that unreadable files are reported together; with a cache, decoded images lie on disk and are mapped into
memory.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ops.files import written_beside
from pipeline.data.datasets import Dataset, open_dataset
from pipeline.data.images import TRAINING_PHOTOGRAPHS, VALIDATION_PHOTOGRAPHS, decode_image
from pipeline.data.mapped import map_array
from pipeline.metrics import SSIM_WINDOW_SIZE
from pipeline.settings import PHOTOGRAPHS

_MIN_PROGRESS = 20  # fewer images are read within a moment


class UnusableImagesError(ValueError):
    """Images that cannot be read, are grey, too small or of two sizes in a pair: a line for each."""


def load_images(
    sources: Sequence[str],
    *,
    photographs: tuple[str, ...] = (),
    paired: bool = False,
    minimum_size: int = 1,
    exclude: Sequence[str] = (),
    promote_grey: bool = False,
    cache: Path | str | None = None,
    progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> dict[str, np.ndarray]:
    """Read the images of all sources.

    Args:
        sources: see `pipeline.data.datasets.open_dataset`.
        photographs: of scikit-image that the source `photographs` stands for.
        paired: pairs are wanted; otherwise the clean images.
        minimum_size: of both sides in pixels.
        exclude: names to leave out.
        promote_grey: let grey images in, repeated over the three channels.
        cache: folder for decoded images; see the module.
        progress: called with (`read images`, images done, images in all).

    Returns:
        (H, W, 3) uint8 or uint16 clean images by name; (H, W, 6) for pairs, the clean image's channels first. With
        several sources, names are `source:name`.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: no sources, clean images where pairs are wanted, or a name to exclude that is not there.
        UnusableImagesError: some images cannot be used; all of them are named at once.
    """
    if PHOTOGRAPHS in sources and not photographs:
        raise ValueError(f"`{PHOTOGRAPHS}` of scikit-image are not offered here; give folders of images")
    datasets = [open_dataset(source, built_in=photographs, promote_grey=promote_grey) for source in sources]
    for dataset, source in zip(datasets, sources, strict=True):
        if paired and not dataset.is_paired:
            raise ValueError(f"`noise.model` pairs needs noisy images beside the clean ones; {source} has none")
    wanted = _wanted(datasets, sources, exclude)
    images: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for done, (key, (dataset, name)) in enumerate(wanted.items(), start=1):
        try:
            image = _read(
                dataset, name, paired=paired, promote_grey=promote_grey, cache=None if cache is None else Path(cache)
            )
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        problems += _too_small(image, dataset, name, minimum_size)
        images[key] = image
        if len(wanted) > _MIN_PROGRESS:
            progress("read images", done, len(wanted))
    _raise(problems)
    return images


def check_disjoint(training: Sequence[str], exclude: Sequence[str], tests: Mapping[str, Sequence[str]]) -> None:
    """Refuse to score on images that are trained on; a copy of a file is not recognised.

    Args:
        training: sources of `data.training`.
        exclude: names to leave out of them.
        tests: sources of what is scored, by the name of their setting.

    Raises:
        ValueError: a file is in both.
    """
    trained = _files(training, TRAINING_PHOTOGRAPHS, exclude)
    for setting, sources in tests.items():
        common = sorted(trained & _files(sources, VALIDATION_PHOTOGRAPHS, ())) if sources else []
        if common:
            raise ValueError(
                f"`data.training` and `{setting}` must have no image in common, got {len(common)} files in both, such "
                f"as {common[0]}; leave them out with `data.exclude`"
            )


def check_datasets(datasets: Iterable[Dataset]) -> None:
    """Decode every image once, before they are scored.

    Raises:
        UnusableImagesError: some cannot be used; those of all sets are named at once.
    """
    _raise([problem for dataset in datasets for problem in _problems(dataset)])


def check_images(paths: Iterable[str], *, allow_grey: bool) -> None:
    """Decode every image file once, keeping none.

    Raises:
        UnusableImagesError: some cannot be used; all of them are named at once.
    """
    problems = []
    for path in paths:
        try:
            decode_image(path, allow_grey=allow_grey)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    _raise(problems)


def _wanted(
    datasets: Sequence[Dataset], sources: Sequence[str], exclude: Sequence[str]
) -> dict[str, tuple[Dataset, str]]:
    """Return the images of all sets: by name, the set and the name in it."""
    if not sources:
        raise ValueError("the list of image sources must hold at least one, got none")
    if len({dataset.name for dataset in datasets}) < len(datasets):
        raise ValueError(f"image sources need distinct folder names, got {', '.join(sources)}")
    wanted = {
        f"{dataset.name}:{name}" if len(datasets) > 1 else name: (dataset, name)
        for dataset in datasets
        for name in dataset.names
    }
    for name in exclude:
        if wanted.pop(name, None) is None:
            raise ValueError(f"`data.exclude` names {name!r}, which is not in {', '.join(sources)}")
    if not wanted:
        raise ValueError(f"no image of {', '.join(sources)} is left after `data.exclude`")
    return wanted


def _files(sources: Sequence[str], photographs: tuple[str, ...], exclude: Sequence[str]) -> set[Path]:
    """Return the files of all images; those of scikit-image have none."""
    datasets = [open_dataset(source, built_in=photographs) for source in sources]
    wanted = _wanted(datasets, sources, exclude).values()
    return {path.resolve() for dataset, name in wanted for path in dataset.files(name)}


def _problems(dataset: Dataset) -> Iterator[str]:
    for name in dataset.names:
        try:
            image = dataset.load(name).clean
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        yield from _too_small(image, dataset, name, SSIM_WINDOW_SIZE)


def _too_small(image: np.ndarray, dataset: Dataset, name: str, minimum_size: int) -> list[str]:
    height, width = image.shape[:2]
    if min(height, width) >= minimum_size:
        return []
    place = next(iter(dataset.files(name)), f"{name} of {dataset.name}")
    return [f"image {place} must have at least {minimum_size} pixels on both sides, got {width}x{height}"]


def _raise(problems: Iterable[str]) -> None:
    distinct = dict.fromkeys(problems)  # images of one file fail for one reason
    if distinct:
        raise UnusableImagesError("\n".join(distinct))


def _read(dataset: Dataset, name: str, *, paired: bool, promote_grey: bool, cache: Path | None) -> np.ndarray:
    files = dataset.files(name)
    if cache is None or not files:
        return _decode(dataset, name, paired=paired)
    facts = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr((facts, name, paired, promote_grey)).encode()).hexdigest()[:24]
    path = cache / f"{digest}.npy"
    if not path.exists():
        image = _decode(dataset, name, paired=paired)
        with written_beside(path) as beside, beside.open("wb") as file:
            np.save(file, image)
    return map_array(path)


def _decode(dataset: Dataset, name: str, *, paired: bool) -> np.ndarray:
    sample = dataset.load(name)
    return sample.clean if sample.noisy is None or not paired else np.concatenate([sample.clean, sample.noisy], axis=2)
