"""A denoiser from an ONNX file behind the interface of a network, run by ONNX Runtime (extra `[onnx]`).

Built by `pipeline.evaluation.models`, which imports this module only when an ONNX file is asked for.
"""

from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OnnxDenoiser(nn.Module):
    """An ONNX model of one input (1, 3, H, W) and one output of the same shape, on the CPU.

    Args:
        path: of the file.
        num_threads: that ONNX Runtime may use.

    Attributes:
        metadata: texts by name, as stored in the file; those of `pipeline.onnx_export` tell parameters and MACs.
        size: height and width that the model is fixed to, or None for any.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no ONNX model, or one of other inputs and outputs.
    """

    def __init__(self, path: Path | str, *, num_threads: int) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise FileNotFoundError(f"ONNX model {path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 4  # errors come as exceptions
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own errors share no base class but this
            raise ValueError(f"ONNX model {path} cannot be read: {str(error).splitlines()[0]}") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        shapes = [entry.shape for entry in (*inputs, *outputs)]
        is_image = len(inputs) == len(outputs) == 1 and len(shapes[0]) == 4 and shapes[0][1] == 3
        if not is_image or inputs[0].type != "tensor(float)":
            raise ValueError(
                f"ONNX model {path} must map one float32 image (1, 3, H, W) to another, "
                f"got shapes {shapes[: len(inputs)]} -> {shapes[len(inputs) :]}"
            )
        height, width = (side if isinstance(side, int) else None for side in shapes[0][2:])
        if height != width:
            raise ValueError(f"ONNX model {path} must take square images or images of any size, got {shapes[0]}")
        self.path = path
        self.size = height
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)

    def forward(self, noisy: Tensor) -> Tensor:
        """Denoise (1, 3, H, W); what is smaller than a fixed size is padded with its border and cut again.

        Raises:
            RuntimeError: ONNX Runtime fails, for example with a size that the graph does not bear.
        """
        height, width = noisy.shape[2:]
        if self.size is not None:
            noisy = F.pad(noisy, (0, self.size - width, 0, self.size - height), mode="replicate")
        name = self.session.get_inputs()[0].name
        try:
            (denoised,) = self.session.run(None, {name: noisy.contiguous().numpy()})
        except Exception as error:  # see above
            raise RuntimeError(
                f"ONNX model {self.path} fails on an image of {width}x{height}: {str(error).splitlines()[0]}"
            ) from error
        return torch.from_numpy(denoised)[..., :height, :width]
