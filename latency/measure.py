"""Time one module: warm up, synchronise, repeat until the median is stable, report median and spread.

Called by `latency.build` for every row of a table, and by `pipeline` for whole networks.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

_NS_PER_MS = 1e6
_MAX_CALLS_PER_REPEAT = 10_000
# Of a normal distribution: the standard error of a median of n is sqrt(pi / 2) * std / sqrt(n), and std = IQR / 1.349.
_MEDIAN_ERROR_PER_IQR = math.sqrt(math.pi / 2) / 1.349


@dataclass(frozen=True, kw_only=True)
class TimingRule:
    """When to stop repeating a measurement.

    Repeats end with the first of

    - *stable*: at least `min_repeats`, and the standard error of the median, 0.93 IQR / sqrt(repeats), is at most
      `relative_error` of the median. It is checked at `min_repeats`, then whenever a quarter more has been taken;
    - *time is up*: at least `min_repeats`, which together lasted `max_seconds` or longer;
    - *enough*: `max_repeats`, the paper's 1000 by default.

    Attributes:
        warmup_runs: untimed calls before the first repeat.
        min_repeats: never fewer.
        max_repeats: never more.
        max_seconds: of repeats, without the warm-up.
        relative_error: of the median, see above.
        min_repeat_ms: a faster module is called so often that one repeat lasts this long, and the repeat counts with
            its mean; without it the clock and the synchronisation would be most of what is measured.

    Raises:
        ValueError: a number is out of range.
    """

    warmup_runs: int = 10
    min_repeats: int = 20
    max_repeats: int = 1000
    max_seconds: float = 6.0
    relative_error: float = 0.01
    min_repeat_ms: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_runs < 1:
            raise ValueError(f"`warmup_runs` must be at least 1, got {self.warmup_runs}")
        if not 1 <= self.min_repeats <= self.max_repeats:
            raise ValueError(
                "`min_repeats` must be from 1 to `max_repeats`, "
                f"got min_repeats {self.min_repeats} and max_repeats {self.max_repeats}"
            )
        for name in ("max_seconds", "relative_error", "min_repeat_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be finite and not negative, got {value}")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one call takes.

    Attributes:
        median_ms: median over the repeats.
        iqr_ms: interquartile range over the repeats.
        num_repeats: how many there were.

    Raises:
        ValueError: a time is negative or not finite, or there was no repeat.
    """

    median_ms: float
    iqr_ms: float
    num_repeats: int

    def __post_init__(self) -> None:
        for name in ("median_ms", "iqr_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be finite and not negative, got {value}")
        if self.num_repeats < 1:
            raise ValueError(f"`num_repeats` must be positive, got {self.num_repeats}")


def measure(
    module: Callable[..., object],
    inputs: Sequence[Tensor],
    *,
    device: torch.device,
    num_threads: int,
    rule: TimingRule | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Time `module(*inputs)` in inference mode; a module is put into evaluation mode meanwhile.

    Args:
        module: module or function, on `device` already.
        inputs: its positional arguments, on `device` already.
        device: what to synchronise with.
        num_threads: threads that torch may use on the host; restored afterwards.
        rule: when to stop, `TimingRule()` by default.
        clock: returns nanoseconds.
    """
    rule = rule or TimingRule()

    def run_ns(num_calls: int) -> float:
        """Time `num_calls` calls between two synchronisations and return the mean of one in ns."""
        _synchronise(device)
        start = clock()
        for _ in range(num_calls):
            module(*inputs)
        _synchronise(device)
        return (clock() - start) / num_calls

    with pinned_threads(num_threads), _evaluation_mode(module), _cudnn_benchmark(device), torch.inference_mode():
        fastest_ns = min(run_ns(1) for _ in range(rule.warmup_runs))
        wanted_calls = math.ceil(rule.min_repeat_ms * _NS_PER_MS / max(fastest_ns, 1.0))
        num_calls = min(max(wanted_calls, 1), _MAX_CALLS_PER_REPEAT)
        return _repeat(lambda: run_ns(num_calls), num_calls=num_calls, rule=rule)


def measure_network_ms(
    network: nn.Module,
    *,
    height: int,
    width: int,
    device: torch.device,
    num_threads: int,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 1,
    rule: TimingRule | None = None,
) -> float:
    """Return the median time of one call of a denoiser on random (B, 3, height, width) images.

    A copy is timed, in the memory format of the latency tables, so `network` stays where and as it is.
    """
    network = to_channels_last(copy.deepcopy(network), device=device, dtype=dtype)
    noisy = random_input(batch_size, 3, height, width, device=device, dtype=dtype)
    return measure(network, [noisy], device=device, num_threads=num_threads, rule=rule).median_ms


def to_channels_last(module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move `module` itself to the device, dtype and memory format that latency tables are measured in."""
    return module.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def random_input(
    batch_size: int, channels: int, height: int, width: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return the same (B, C, H, W) in [0, 1] at every call, in channels-last order."""
    x = torch.rand(batch_size, channels, height, width, generator=torch.Generator().manual_seed(0))
    return x.to(device=device, dtype=dtype, memory_format=torch.channels_last)


@contextmanager
def pinned_threads(num_threads: int) -> Iterator[None]:
    """Let torch compute with `num_threads` threads, then restore the number from before.

    Raises:
        ValueError: `num_threads` is not positive.
    """
    if num_threads < 1:
        raise ValueError(f"`num_threads` must be positive, got {num_threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _repeat(run_ns: Callable[[], float], *, num_calls: int, rule: TimingRule) -> Timing:
    """Collect repeats until `rule` is met."""
    repeats_ns: list[float] = []
    elapsed_ns = 0.0
    next_check = rule.min_repeats
    while True:
        repeats_ns.append(run_ns())
        elapsed_ns += repeats_ns[-1] * num_calls
        num_repeats = len(repeats_ns)
        if num_repeats < rule.min_repeats:
            continue
        is_over = num_repeats == rule.max_repeats or elapsed_ns >= rule.max_seconds * 1e9
        if not is_over and num_repeats < next_check:
            continue
        next_check = num_repeats + max(1, num_repeats // 4)
        lower, median, upper = (float(value) for value in np.percentile(repeats_ns, (25, 50, 75)))
        iqr = upper - lower
        if is_over or _MEDIAN_ERROR_PER_IQR * iqr / math.sqrt(num_repeats) <= rule.relative_error * median:
            return Timing(median_ms=median / _NS_PER_MS, iqr_ms=iqr / _NS_PER_MS, num_repeats=num_repeats)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _evaluation_mode(module: Callable[..., object]) -> Iterator[None]:
    """Put a module into evaluation mode, then give every submodule its mode back; functions pass through."""
    if not isinstance(module, nn.Module):
        yield
        return
    training_modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for submodule, is_training in training_modes:
            submodule.training = is_training


@contextmanager
def _cudnn_benchmark(device: torch.device) -> Iterator[None]:
    """Let cuDNN choose its fastest algorithm during the warm-up, as a deployed network of fixed size would."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
