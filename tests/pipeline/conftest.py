"""What the pipeline's tests share: photograph-like images, a tiny space, cached features of an invented prior."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.data.part_data import PatchSet, compute_patch_set
from pipeline.data.patches import PatchSource
from pipeline.priors import MIRNet, Prior
from search_space import SearchSpace

PATCH_SIZE = 16
SIGMA = 25 / 255


def make_image(height: int, width: int, seed: int) -> np.ndarray:
    """Return an (H, W, 3) uint8 image of smooth waves, different in every channel."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width][..., np.newaxis] / 10
    frequencies, phases = random.uniform(0.3, 1.5, (2, 3)), random.uniform(0, 6, 3)
    waves = np.sin(rows * frequencies[0] + columns * frequencies[1] + phases)
    return np.round(127.5 + 100 * waves).astype(np.uint8)


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    return [make_image(48, 64, seed=0), make_image(70, 40, seed=1)]


@pytest.fixture
def source(images: list[np.ndarray]) -> PatchSource:
    return PatchSource(images, patch_size=PATCH_SIZE, sigma_range=(SIGMA, SIGMA))


@pytest.fixture(scope="session")
def tiny_space() -> SearchSpace:
    """Four cells: (0, 1), (0, 2), (1, 2), (0, 3)."""
    return SearchSpace(num_channels=16, num_resolutions=2, num_layers=3, candidate_ops=("conv_d1", "conv_r", "skip"))


class ConvolutionPrior(Prior):
    """Three random convolutions: quick, deterministic, and different in every part."""

    def __init__(self, num_channels: int = 16) -> None:
        super().__init__()
        self.num_channels = num_channels
        generator = torch.Generator().manual_seed(0)
        shapes = [(num_channels, 3), (num_channels, num_channels), (3, num_channels)]
        self.kernels = torch.nn.ParameterList(
            torch.randn(*shape, 3, 3, generator=generator) / (3 * shape[1]) for shape in shapes
        )
        self.num_calls = 0

    def run_part(self, part_index: int, x: Tensor) -> Tensor:
        self.num_calls += 1
        y = torch.nn.functional.conv2d(x, self.kernels[part_index], padding=1)
        return x + y if part_index == 1 else y


@pytest.fixture
def quick_prior() -> ConvolutionPrior:
    return ConvolutionPrior().requires_grad_(False)


@pytest.fixture
def small_mirnet() -> MIRNet:
    """A MIRNet of 8 channels with seeded weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MIRNet(num_channels=8, num_blocks=1).eval()


@pytest.fixture
def patch_set(quick_prior: ConvolutionPrior, source: PatchSource) -> PatchSet:
    return compute_patch_set(
        quick_prior,
        {"weights": source, "architecture": source},
        num_patches=24,
        architecture_share=0.5,
        batch_size=8,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.fixture(scope="session")
def processes() -> Callable[[tuple[str, ...], str], list[int]]:
    """Find the processes whose title begins with one of `titles` and whose environment holds `mark`."""

    def find(titles: tuple[str, ...], mark: str) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                title = (entry / "cmdline").read_bytes().decode(errors="replace")
                if title.startswith(titles) and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    return find


@pytest.fixture(scope="session")
def listens_beyond_loopback() -> Callable[[int], bool]:
    """Return a function that tells whether a process or a descendant listens on more; one of them has to listen."""

    def listens(pid: int) -> bool:
        found = _listening_addresses(pid)
        assert found, "Ray's own processes listen"
        return not found <= {"0100007F", "0000000000000000FFFF00000100007F"}  # the second is the first within IPv6

    return listens


def _listening_addresses(pid: int) -> set[str]:
    """Return the addresses, as the kernel writes them, that a process and all its descendants listen on."""
    sockets: dict[str, str] = {}
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc/net") / table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A":
                sockets[f"socket:[{rest[5]}]"] = local.partition(":")[0]
    found, family = set(), [pid]
    for member in family:  # grows while it is walked
        folder = Path("/proc") / str(member)
        with suppress(OSError):
            for task in (folder / "task").iterdir():
                family += [int(child) for child in (task / "children").read_text().split()]
            for descriptor in (folder / "fd").iterdir():
                with suppress(OSError):
                    found.add(sockets.get(os.readlink(descriptor)))
    return {address for address in found if address is not None}
