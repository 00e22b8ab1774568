"""Score one model on one set with one noise.

Called by `pipeline.evaluation.command`.
"""

import hashlib
from collections.abc import Callable
from statistics import fmean

import torch

from latency import DeviceInfo
from pipeline.data.datasets import Dataset
from pipeline.data.images import to_tensor
from pipeline.evaluate import score_image
from pipeline.evaluation.models import BLOCK_MATCHING, NOISY, EvaluatedModel
from pipeline.evaluation.noise import TestNoise
from pipeline.evaluation.table import ImageRow, Row


def measure_row(
    model: EvaluatedModel, dataset: Dataset, noise: TestNoise, *, progress: Callable[[int, int], None]
) -> tuple[Row, list[ImageRow]]:
    """Denoise and score every image.

    A network is run once on the first image before it is timed, so that what a device sets up is not in its seconds.

    Args:
        model: to score.
        dataset: its images.
        noise: that they have, or get.
        progress: called with (images done, images in all).

    Raises:
        ValueError: an image cannot be used, or the model's output is not finite; the message names both.
    """
    digits = fingerprint(model, dataset)  # before: a file that changes meanwhile is measured again
    denoise = model.for_noise(noise.sigma)
    images: list[ImageRow] = []
    for sample in noise.samples(dataset):
        if not images and model.name not in (NOISY, BLOCK_MATCHING):
            denoise(to_tensor(sample.noisy))
        try:
            score = score_image(denoise, name=sample.name, clean=sample.clean, noisy=sample.noisy)
        except ValueError as error:
            raise ValueError(f"model {model.name} on {dataset.name} with {noise.name}: {error}") from error
        height, width = sample.clean.shape[:2]
        images.append(
            ImageRow(
                model=model.name, dataset=dataset.name, noise=noise.name, image=sample.name, height=height, width=width,
                psnr_db=score.psnr_db, psnr_unrounded_db=score.psnr_unrounded_db, ssim=score.ssim,
                ssim_3d=score.ssim_3d,
                seconds=score.seconds,
            )
        )  # fmt: skip
        progress(len(images), len(dataset))
    seconds = sum(image.seconds for image in images)
    num_threads = torch.get_num_threads()
    row = Row(
        model=model.name,
        dataset=dataset.name,
        noise=noise.name,
        num_images=len(images),
        psnr_db=fmean(image.psnr_db for image in images),
        psnr_unrounded_db=fmean(image.psnr_unrounded_db for image in images),
        ssim=fmean(image.ssim for image in images),
        ssim_3d=fmean(image.ssim_3d for image in images),
        num_parameters=model.costs.num_parameters,
        macs=model.costs.macs,
        seconds_per_image=seconds / len(images),
        seconds_per_megapixel=seconds * 1e6 / sum(image.height * image.width for image in images),
        peak_memory_mb=model.costs.peak_memory_mb,
        device=DeviceInfo.current(torch.device(model.device), num_threads=num_threads).device_name,
        num_threads=num_threads,
        fingerprint=digits,
    )
    return row, images


def fingerprint(model: EvaluatedModel, dataset: Dataset) -> str:
    """Return twelve hexadecimal digits over the model's weights, the images, and where and how it runs.

    The images' pixels are not read for it: path, size and time of modification stand for them.
    """
    paths = dict.fromkeys(path for name in dataset.names for path in dataset.files(name))
    files = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    facts = (model.fingerprint, dataset.names, files, model.device, model.tile_size, torch.get_num_threads())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
