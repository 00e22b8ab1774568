"""Mixed precision by name. Called by the part searches and by retraining."""

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a forward pass computes in `precision`; backward passes stay outside.

    Args:
        device: where the pass computes.
        precision: `float32` changes nothing; `bfloat16` lets torch choose it operation by operation. It has the range
            of float32, so losses need no scaling.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
