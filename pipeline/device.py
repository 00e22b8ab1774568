"""Refuse a device that torch does not have. Called by the commands before they decode images."""

import torch

from pipeline.settings import DEVICES


def check_device(device: str, *, name: str = "--device") -> None:
    """Check a device by its name.

    Args:
        device: such as `cpu`, `cuda` or `cuda:1`.
        name: of the option or setting, for the message.

    Raises:
        ValueError: another kind of device, or CUDA where torch sees none.
    """
    kind = device.partition(":")[0]
    if kind not in DEVICES:
        raise ValueError(f"`{name}` must be {' or '.join(DEVICES)}, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`{name}` is {device}, but torch sees no CUDA device")
