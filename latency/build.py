"""Fill a latency table: time every operator call of a search space, and notice when the machine was disturbed.

Called by `pipeline` once per device and search space; a build that was killed goes on from its last saved table.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latency.device import DeviceInfo
from latency.measure import Timing, TimingRule, measure, random_input, to_channels_last
from latency.table import LatencyTable, Sentinel
from ops import OpSpec, create_op

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SentinelRule:
    """How other load on the machine is noticed.

    One fixed operator, the sentinel, is timed before the first row and after every `rows_per_reading` rows. The level
    of a row is the slower of the two readings around it. When all rows are measured, those whose level exceeds the
    quietest reading of the whole build by more than `drift_tolerance` are measured again, `max_remeasures` times at
    most, and each row keeps the timing of its lowest level. So a slow-down that begins and stays is noticed too, which
    a comparison of neighbouring readings would take for steadiness. A build that goes on times the same sentinel; the
    rows that are there count as measured at the quietest reading of the builds before.

    Attributes:
        rows_per_reading: rows between two readings.
        drift_tolerance: relative excess over the quietest reading that is accepted.
        max_remeasures: how often a row may be measured again.

    Raises:
        ValueError: a number is out of range.
    """

    rows_per_reading: int = 32
    drift_tolerance: float = 0.15
    max_remeasures: int = 2

    def __post_init__(self) -> None:
        if self.rows_per_reading < 1:
            raise ValueError(f"`rows_per_reading` must be positive, got {self.rows_per_reading}")
        if not self.drift_tolerance > 0:
            raise ValueError(f"`drift_tolerance` must be positive, got {self.drift_tolerance}")
        if self.max_remeasures < 0:
            raise ValueError(f"`max_remeasures` must not be negative, got {self.max_remeasures}")


def build_table(
    specs: Iterable[OpSpec],
    *,
    device: torch.device,
    num_threads: int,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 1,
    rule: TimingRule | None = None,
    sentinel_rule: SentinelRule | None = None,
    table: LatencyTable | None = None,
    save_path: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    timer: Callable[[OpSpec], Timing] | None = None,
) -> LatencyTable:
    """Measure every spec that `table` lacks and return a table with the rows of both.

    Rows of `table` are measured again where the machine was slower throughout, see `SentinelRule`.

    Args:
        specs: operator calls; repeated ones are measured once.
        device: where to measure.
        num_threads: threads that torch may use on the host.
        dtype: of weights and inputs.
        batch_size: images per call.
        rule: when a measurement ends, `TimingRule()` by default.
        sentinel_rule: how other load is noticed, `SentinelRule()` by default.
        table: to go on from; it is not changed.
        save_path: where the rows within tolerance so far are written after every sentinel reading, and all at the end.
        progress: called after every row with rows done, rows to do (more, once rows are measured again) and its name.
        timer: measures one spec, `time_op` by default.

    Raises:
        ValueError: `table` belongs to another device or other settings.
        KeyError: a spec names an unknown operator.
    """
    device_info = DeviceInfo.current(device, num_threads=num_threads, dtype=dtype, batch_size=batch_size)
    if table is not None and (differences := table.device_info.differences(device_info)):
        raise ValueError(f"`table` cannot be continued here ({'; '.join(differences)})")
    if table is None:
        table = LatencyTable(device_info)
    else:
        table = LatencyTable(device_info, {spec: table.timing(spec) for spec in table}, sentinel=table.sentinel)
    missing = [spec for spec in dict.fromkeys(specs) if spec not in table]

    def time_spec(spec: OpSpec) -> Timing:
        return time_op(spec, device=device, num_threads=num_threads, dtype=dtype, batch_size=batch_size, rule=rule)

    if missing:
        _fill(
            table,
            missing,
            timer=timer or time_spec,
            sentinel_rule=sentinel_rule or SentinelRule(),
            save_path=save_path,
            progress=progress or (lambda num_done, num_rows, name: None),
        )
    if save_path is not None:
        table.save(save_path)
    return table


def time_op(
    spec: OpSpec,
    *,
    device: torch.device,
    num_threads: int,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 1,
    rule: TimingRule | None = None,
) -> Timing:
    """Build the fixed-width operator of `spec` in channels-last order and time it; torch's random state is kept.

    Raises:
        KeyError: unknown operator.
    """
    with torch.random.fork_rng(devices=[]):
        module = to_channels_last(create_op(spec), device=device, dtype=dtype)
    inputs = _op_inputs(spec, device=device, dtype=dtype, batch_size=batch_size)
    return measure(module, inputs, device=device, num_threads=num_threads, rule=rule)


def _op_inputs(spec: OpSpec, *, device: torch.device, dtype: torch.dtype, batch_size: int) -> list[Tensor]:
    """Return random inputs: (B, in_channels, H, W), for `up` also the fine feature (B, out_channels, 2H, 2W)."""
    inputs = [random_input(batch_size, spec.in_channels, spec.height, spec.width, device=device, dtype=dtype)]
    if spec.name == "up":
        fine_size = 2 * spec.height, 2 * spec.width
        inputs.append(random_input(batch_size, spec.out_channels, *fine_size, device=device, dtype=dtype))
    return inputs


def _fill(
    table: LatencyTable,
    missing: Sequence[OpSpec],
    *,
    timer: Callable[[OpSpec], Timing],
    sentinel_rule: SentinelRule,
    save_path: Path | None,
    progress: Callable[[int, int, str], None],
) -> None:
    """Add a row for every missing spec to `table`, as `SentinelRule` says."""
    earlier = table.sentinel
    sentinel = _sentinel_spec(missing) if earlier is None else earlier.spec
    timer(sentinel)  # warm up caches, threads and the processor's clock frequency
    before_ms = timer(sentinel).median_ms
    quietest_ms = before_ms if earlier is None else min(before_ms, earlier.quietest_ms)
    levels_ms = dict.fromkeys(table, 0.0 if earlier is None else earlier.quietest_ms)  # 0: of unknown load, trusted
    num_done, num_rows = 0, len(missing)
    pending = list(missing)
    for _ in range(1 + sentinel_rule.max_remeasures):
        for batch in _batches(pending, sentinel_rule.rows_per_reading):
            timings = {}
            for spec in batch:
                timings[spec] = timer(spec)
                num_done += 1
                progress(num_done, num_rows, spec.name)
            after_ms = timer(sentinel).median_ms
            level_ms = max(before_ms, after_ms)
            before_ms, quietest_ms = after_ms, min(quietest_ms, after_ms)
            for spec, timing in timings.items():
                if level_ms < levels_ms.get(spec, float("inf")):
                    levels_ms[spec] = level_ms
                    table.add(spec, timing)
            limit_ms = (1 + sentinel_rule.drift_tolerance) * quietest_ms
            table.sentinel = Sentinel(spec=sentinel, quietest_ms=quietest_ms)
            if save_path is not None:
                steady = {spec: table.timing(spec) for spec, level_ms in levels_ms.items() if level_ms <= limit_ms}
                LatencyTable(table.device_info, steady, sentinel=table.sentinel).save(save_path)
        pending = [spec for spec, level_ms in levels_ms.items() if level_ms > limit_ms]
        if not pending:
            return
        num_rows += len(pending)
    _logger.warning(
        "%d of %d rows were measured while the sentinel (%s) ran more than %.0f %% slower than at its quietest, "
        "%.3f ms; they are kept. Build the table again on a quiet machine.",
        len(pending),
        len(levels_ms),
        sentinel.name,
        100 * sentinel_rule.drift_tolerance,
        quietest_ms,
    )


def _sentinel_spec(specs: Sequence[OpSpec]) -> OpSpec:
    """Return the plain convolution at full width, as large as the largest spec."""
    largest = max(specs, key=lambda spec: spec.height * spec.width)
    channels = largest.base_channels
    return OpSpec(
        name="conv_d1",
        in_channels=channels,
        out_channels=channels,
        base_channels=channels,
        height=largest.height,
        width=largest.width,
    )


def _batches(specs: Sequence[OpSpec], size: int) -> Iterator[Sequence[OpSpec]]:
    for start in range(0, len(specs), size):
        yield specs[start : start + size]
