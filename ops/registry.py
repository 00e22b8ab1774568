"""From an operator name to a module; what operator files register stays for the life of the process.

Operator files register themselves when imported; `search_space` lists and creates what is registered.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ops.slimmable import SlimmableConv2d
from ops.spec import OpSpec

OpBuilder = Callable[[OpSpec], nn.Module]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    build: OpBuilder
    equal_widths: bool
    candidate: bool


_REGISTRY: dict[str, _Entry] = {}


def register_op(name: str, *, equal_widths: bool = False, candidate: bool = True) -> Callable[[OpBuilder], OpBuilder]:
    """Register the builder below under `name`.

    A builder takes an `OpSpec` and returns a module whose `forward(x, out_channels=None)` accepts any prefix of its
    input channels, (B, <= in_channels, H, W), and returns the first `out_channels` of its output channels (all of them
    by default). It must have the prefix property of `ops.slimmable`; `tests/ops` holds the contract.

    Args:
        name: what configurations and genotypes call the operator.
        equal_widths: the operator needs as many output as input channels. It is built with
            `in_channels = out_channels`, and a slimmable 1x1 convolution goes in front where the widths differ.
        candidate: cells may choose it; stems, tails and resamplers are not candidates.

    Raises:
        ValueError: the name is taken.
    """

    def decorate(build: OpBuilder) -> OpBuilder:
        if name in _REGISTRY:
            raise ValueError(f"operator {name!r} is registered already")
        _REGISTRY[name] = _Entry(build=build, equal_widths=equal_widths, candidate=candidate)
        return build

    return decorate


def list_ops() -> tuple[str, ...]:
    """Return the names of the candidate operations, in order of registration."""
    return tuple(name for name, entry in _REGISTRY.items() if entry.candidate)


def create_op(spec: OpSpec, *, slimmable: bool = False) -> nn.Module:
    """Build the module of `spec`.

    Args:
        spec: operator and shape.
        slimmable: the module will run at narrower widths too, so it gets a width adapter even where `spec` needs none.

    Raises:
        KeyError: no operator of that name; the message lists the known ones.
    """
    if spec.name not in _REGISTRY:
        raise KeyError(f"unknown operator {spec.name!r}; known are {', '.join(_REGISTRY)}")
    entry = _REGISTRY[spec.name]
    if not entry.equal_widths:
        return entry.build(spec)
    inner = entry.build(replace(spec, in_channels=spec.out_channels))
    needs_adapter = slimmable or spec.in_channels != spec.out_channels
    adapter = SlimmableConv2d(spec.in_channels, spec.out_channels, 1) if needs_adapter else None
    return _WidthAdapted(inner, adapter, spec.out_channels)


class _WidthAdapted(nn.Module):
    """An operator that keeps its width, with a 1x1 convolution in front wherever input and output widths differ."""

    def __init__(self, op: nn.Module, adapter: SlimmableConv2d | None, out_channels: int) -> None:
        super().__init__()
        self.op = op
        self.adapter = adapter
        self.out_channels = out_channels

    def forward(self, x: Tensor, out_channels: int | None = None) -> Tensor:
        out_channels = out_channels or self.out_channels
        if self.adapter is not None and x.shape[1] != out_channels:
            x = self.adapter(x, out_channels)
        return self.op(x, out_channels)
