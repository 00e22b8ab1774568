"""OpSpec: the identity of one operator call, which modules are built from and latency tables price.

Created by `search_space` for every cell, stem, tail and resampler; read by `ops.registry` and `latency`.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, order=True)
class OpSpec:
    """One operator applied to one shape of input.

    Attributes:
        name: registered name, for example `conv_d1`.
        in_channels: channels of the input.
        out_channels: channels of the output.
        base_channels: C of the search space, the full width; some operators (swin's head dimension) depend on it.
        height: of the input in pixels.
        width: of the input in pixels.

    Raises:
        ValueError: a number is not positive.
        TypeError: a number is not an integer.
    """

    name: str
    in_channels: int
    out_channels: int
    base_channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if field == "name":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{field}` of OpSpec must be an integer, got {value!r}")
            if value <= 0:
                raise ValueError(f"`{field}` of OpSpec must be positive, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary; `OpSpec(**spec.to_dict())` gives the spec back."""
        return asdict(self)
