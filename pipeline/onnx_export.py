"""Export a denoiser as an ONNX file, checked against ONNX Runtime (extra `[onnx]`).

Called by the command `export`.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ops.files import written_beside
from search_space import network_macs, num_parameters

_MAX_ERROR = 1e-3  # of a pixel in [0, 1]; float32 sums in another order differ by 1e-6 to 1e-5


def export_onnx(network: nn.Module, path: Path | str, *, size: int) -> float:
    """Write `network` with input `noisy` and output `denoised`, both (1, 3, size, size) float32.

    The size is fixed: windows of attention and paddings depend on height and width, and an exported graph of any size
    gave other results, or none, where these were no multiple of 8 (torch 2.13, ONNX Runtime 1.32). Images of other
    sizes go in tiles, as `evaluate` does. Parameters and MACs at 256x256 stand in the file's metadata.

    Args:
        network: on the CPU, in evaluation mode.
        path: of the file; never holds half of one.
        size: height and width in pixels.

    Returns:
        The largest difference between ONNX Runtime and torch on one random image.

    Raises:
        ValueError: a package is missing, `size` is not positive, or ONNX Runtime computes something else.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ValueError(
            f"the export needs onnx, onnxscript and onnxruntime ({error}); "
            "install them with: pip install 'denoise-nas[onnx]'"
        ) from error
    noisy = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = _exported(network, noisy)
    program.model.metadata_props.update(
        num_parameters=str(num_parameters(network)),
        macs_256=str(network_macs(network, height=256, width=256)),
    )
    with written_beside(path) as beside:
        program.save(beside)
        session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])
        (denoised,) = session.run(None, {"noisy": noisy.numpy()})
        with torch.inference_mode():
            difference = float((torch.from_numpy(denoised) - network(noisy)).abs().max())
        if not difference <= _MAX_ERROR:
            raise ValueError(
                f"ONNX Runtime differs from torch by {difference:.2g} at {size}x{size}, so nothing was written"
            )
    return difference


def _exported(network: nn.Module, noisy: Tensor) -> torch.onnx.ONNXProgram:
    """Run torch's exporter without what it says on the way: steps, missing torchvision, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (noisy,), dynamo=True, verbose=False, input_names=["noisy"], output_names=["denoised"]
            )
    finally:
        logger.setLevel(level)
    assert program is not None, "torch's exporter returns the program when it has no file to write"
    return program
