"""Which networks CLEARER's space holds: one of two modules at every place, written down and drawn.

Read by `pipeline.peers.clearer`. Gou et al., NeurIPS 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODULES = ("parallel", "fusion")


@dataclass(frozen=True, kw_only=True)
class ClearerSpace:
    """The skeleton: stages of 2, 3, .. branches, each with a number of searchable modules.

    Attributes:
        num_channels: of every branch, full resolution first, each branch at half the resolution of the one before.
            Published: 32, 64, 128, 256; ours at quick scale: 8, 16, 32, 64.
        modules_per_stage: 4 as published, so three stages make 12 binary choices.

    Raises:
        ValueError: a count is impossible.
    """

    num_channels: tuple[int, ...] = (32, 64, 128, 256)
    modules_per_stage: int = 4

    def __post_init__(self) -> None:
        if len(self.num_channels) < 2 or min(self.num_channels) < 1:
            raise ValueError(f"`num_channels` must hold at least two positive counts, got {self.num_channels}")
        if self.modules_per_stage < 1:
            raise ValueError(f"`modules_per_stage` must be at least 1, got {self.modules_per_stage}")

    @property
    def num_modules(self) -> int:
        """Number of binary choices."""
        return self.modules_per_stage * (len(self.num_channels) - 1)


@dataclass(frozen=True, kw_only=True)
class ClearerGenotype:
    """One architecture.

    Attributes:
        num_channels: see `ClearerSpace`.
        modules: `parallel` or `fusion`, stage by stage.

    Raises:
        ValueError: another name, or modules that do not divide evenly among the stages.
    """

    num_channels: tuple[int, ...]
    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        num_stages = len(self.num_channels) - 1
        if num_stages < 1 or not self.modules or len(self.modules) % num_stages:
            raise ValueError(f"`modules` must fill {num_stages} stages evenly, got {len(self.modules)}")
        unknown = [name for name in self.modules if name not in MODULES]
        if unknown:
            raise ValueError(f"`modules` must be among {', '.join(MODULES)}, got {unknown[0]!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {"num_channels": list(self.num_channels), "modules": list(self.modules)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ClearerGenotype":
        """Build from what `to_dict` returns."""
        return cls(num_channels=tuple(data["num_channels"]), modules=tuple(data["modules"]))
