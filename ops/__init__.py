"""What a network is made of: operators that run at any prefix of their channels, created by name from an `OpSpec`.

The imports below register the operators; candidates are listed in this order everywhere.
"""

from ops import conv, skip, invertible, half_instance_norm, swin, naf, resample  # noqa: F401, I001 - order of registration
from ops.registry import create_op, list_ops, register_op
from ops.slimmable import SlimmableConv2d, SlimmableLayerNorm, SlimmableLinear, fit_channels, load_prefix
from ops.spec import OpSpec

# Raised when an operator computes in another way: latency tables measured before are then refused.
OPS_VERSION = 2  # 2: one head in narrow `swin`, one convolution less in `up`

__all__ = [
    "OPS_VERSION",
    "OpSpec",
    "SlimmableConv2d",
    "SlimmableLayerNorm",
    "SlimmableLinear",
    "create_op",
    "fit_channels",
    "list_ops",
    "load_prefix",
    "register_op",
]
