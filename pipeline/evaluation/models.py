"""Open what the evaluation is asked for, by one text each: everything that may fail about a model fails here.

Called by `pipeline.evaluation.command` before any image is denoised.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.denoise import default_overlap, denoise_image
from pipeline.evaluation.costs import Costs, network_costs
from pipeline.models import load_denoiser

NOISY, BLOCK_MATCHING = "noisy", "bm3d"


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A denoiser and what does not depend on the images.

    Attributes:
        name: as the user gave it.
        module: maps (1, 3, H, W) to the same shape; lies on `device`.
        device: where it runs.
        tile_size: see `denoise_image`.
        costs: parameters, MACs and memory.
        fingerprint: changes with the weights.
    """

    name: str
    module: nn.Module
    device: str
    tile_size: int | None
    costs: Costs
    fingerprint: str

    def for_noise(self, sigma: float | None) -> Callable[[Tensor], Tensor]:
        """Return the denoising of one image; `sigma` on the [0, 1] scale, or None, is told to BM3D alone."""
        if self.name == BLOCK_MATCHING:
            self.module.sigma = sigma  # type: ignore[assignment]
        overlap = default_overlap(self.tile_size)
        return lambda noisy: denoise_image(
            self.module, noisy, tile_size=self.tile_size, tile_overlap=overlap, device=self.device
        )


def open_model(name: str, *, device: str, tile_size: int | None = None) -> EvaluatedModel:
    """Open `noisy` (the input itself), `bm3d`, an ONNX file, or what `load_denoiser` knows.

    Args:
        name: of the model.
        device: for networks; BM3D and ONNX files run on the CPU.
        tile_size: in pixels, or None for whole images; an ONNX file of a fixed size is its own tile.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a damaged file, weights of another network, or a package that is not installed.
    """
    if name == NOISY:
        nothing = Costs(num_parameters=0, macs=0, peak_memory_mb=None)
        return EvaluatedModel(
            name=name, module=nn.Identity(), device="cpu", tile_size=None, costs=nothing, fingerprint=""
        )
    if name == BLOCK_MATCHING:
        return _open_block_matching(tile_size)
    if Path(name).suffix == ".onnx":
        return _open_onnx(name, tile_size)
    network = load_denoiser(name).to(device)
    return EvaluatedModel(
        name=name, module=network, device=device, tile_size=tile_size, costs=network_costs(network, device=device),
        fingerprint=_fingerprint(network),
    )  # fmt: skip


def _open_block_matching(tile_size: int | None) -> EvaluatedModel:
    try:
        from pipeline.evaluation.block_matching import BM3D
    except ImportError as error:
        raise ValueError(
            f"model bm3d needs the package bm3d ({error}); install it with: pip install 'denoise-nas[bm3d]'"
        ) from error
    costs = Costs(num_parameters=0, macs=None, peak_memory_mb=None)  # nothing is learned
    return EvaluatedModel(
        name=BLOCK_MATCHING, module=BM3D(), device="cpu", tile_size=tile_size, costs=costs, fingerprint=""
    )


def _open_onnx(name: str, tile_size: int | None) -> EvaluatedModel:
    try:
        from pipeline.evaluation.onnx_model import OnnxDenoiser
    except ImportError as error:
        raise ValueError(
            f"model {name} needs ONNX Runtime ({error}); install it with: pip install 'denoise-nas[onnx]'"
        ) from error
    module = OnnxDenoiser(name, num_threads=torch.get_num_threads())
    costs = Costs(  # known of files that the command `export` wrote
        num_parameters=_count(module.metadata.get("num_parameters", "")),
        macs=_count(module.metadata.get("macs_256", "")),
        peak_memory_mb=None,
    )
    return EvaluatedModel(
        name=name, module=module, device="cpu", tile_size=module.size or tile_size, costs=costs,
        fingerprint=hashlib.sha256(Path(name).read_bytes()).hexdigest()[:12],
    )  # fmt: skip


def _count(text: str) -> int | None:
    """Read a number of somebody's metadata; None where it is none, or larger than any network has."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _fingerprint(network: nn.Module) -> str:
    digest = hashlib.sha256(str(getattr(network, "genotype", type(network).__name__)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
