import logging
from collections import Counter

import pytest
import torch

from latency import LatencyTable, SentinelRule, Timing, TimingRule, build_table, time_op
from latency.build import _op_inputs
from ops import OpSpec, list_ops

CPU = torch.device("cpu")
QUICK = TimingRule(warmup_runs=1, min_repeats=2, max_repeats=3, max_seconds=0.01, min_repeat_ms=0.02)
SENTINEL_NAME = "conv_d1"


class FakeMachine:
    """Times any spec; the load that multiplies all times is given per sentinel reading, the last one stays."""

    def __init__(self, loads=(1.0,)):
        self.loads = list(loads)
        self.calls = Counter()
        self.num_readings = -1  # the first call of the sentinel warms it up

    def __call__(self, spec):
        if spec.name == SENTINEL_NAME:
            self.num_readings += 1
            return self._timing(1.0, max(self.num_readings - 1, 0))
        self.calls[spec] += 1
        return self._timing(float(spec.in_channels), self.num_readings)

    def _timing(self, quiet_ms, index):
        load = self.loads[min(index, len(self.loads) - 1)]
        return Timing(median_ms=quiet_ms * load, iqr_ms=0.0, num_repeats=5)


def rows(spec, count):
    """Return `count` specs whose quiet time is 1, 2, ... ms."""
    return [spec("skip", in_channels, 16) for in_channels in range(1, count + 1)]


def build(specs, timer, *, rows_per_reading=2, max_remeasures=2, **settings):
    sentinel_rule = SentinelRule(rows_per_reading=rows_per_reading, max_remeasures=max_remeasures)
    return build_table(specs, device=CPU, num_threads=1, sentinel_rule=sentinel_rule, timer=timer, **settings)


def quiet_times(specs):
    return {spec: float(spec.in_channels) for spec in specs}


def times(table):
    return {spec: table[spec] for spec in table}


def test_every_spec_is_measured_once_on_a_quiet_machine(spec):
    machine, specs = FakeMachine(), rows(spec, 5)
    table = build([*specs, specs[0], specs[3]], machine)
    assert times(table) == quiet_times(specs)
    assert machine.calls == Counter(specs)
    assert machine.num_readings == 1 + 3  # before the first row, after every two rows, at the end


def test_rows_of_a_slow_spell_are_measured_again(spec, caplog):
    machine, specs = FakeMachine([1.0, 1.0, 2.0, 1.0]), rows(spec, 8)  # the third reading is slow
    with caplog.at_level(logging.WARNING):
        table = build(specs, machine)
    assert times(table) == quiet_times(specs)
    assert [machine.calls[row] for row in specs] == [1, 1, 2, 2, 2, 2, 1, 1]  # the batches on both sides of it
    assert not caplog.records


def test_slow_spell_that_lasts_through_several_readings_is_noticed(spec):
    """Neighbouring readings agree in it, so only a comparison with the quietest one finds it."""
    machine, specs = FakeMachine([3.0, 3.0, 3.0, 1.0, 1.0]), rows(spec, 8)
    assert times(build(specs, machine)) == quiet_times(specs)
    assert [machine.calls[row] for row in specs] == [2, 2, 2, 2, 2, 2, 1, 1]


def test_small_drift_is_tolerated(spec, caplog):
    machine, specs = FakeMachine([1.0, 1.1, 1.0, 1.14]), rows(spec, 6)
    build(specs, machine)
    assert machine.calls == Counter(specs)
    assert not caplog.records


def test_rows_that_stay_disturbed_are_kept_and_counted(spec, caplog):
    machine, specs = FakeMachine([1.0, 1.0, *[2.0] * 100]), rows(spec, 6)
    with caplog.at_level(logging.WARNING):
        table = build(specs, machine, max_remeasures=1)
    assert len(table) == 6
    assert [machine.calls[row] for row in specs] == [1, 1, 2, 2, 2, 2]
    assert "4 of 6 rows were measured while the sentinel (conv_d1) ran more than 15 % slower" in caplog.text


def test_no_remeasure_when_none_is_allowed(spec):
    machine, specs = FakeMachine([1.0, 2.0]), rows(spec, 4)
    build(specs, machine, max_remeasures=0)
    assert machine.calls == Counter(specs)


def test_sentinel_is_the_full_width_convolution_at_the_largest_size(spec):
    seen = []

    def timer(spec):
        seen.append(spec)
        return Timing(median_ms=1.0, iqr_ms=0.0, num_repeats=1)

    build([spec("skip", 2, 4, size=4), spec("skip", 2, 4, size=8)], timer)
    sentinel = spec("conv_d1", 16, 16, size=8)
    assert seen == [sentinel, sentinel, spec("skip", 2, 4, size=4), spec("skip", 2, 4, size=8), sentinel]


def test_continued_build_measures_only_missing_rows(spec):
    specs = rows(spec, 5)
    begun = build(specs[:3], FakeMachine())
    machine = FakeMachine()
    table = build(specs, machine, table=begun)
    assert machine.calls == Counter(specs[3:])
    assert times(table) == quiet_times(specs)
    assert len(begun) == 3  # not changed
    complete = FakeMachine()
    assert times(build(specs, complete, table=table)) == quiet_times(specs)
    assert complete.num_readings == -1  # nothing to do: not even a sentinel


def test_rows_of_a_slower_session_are_measured_again(spec, tmp_path):
    """All of the first session ran at twice the load, which it could not know; the second one is quiet in the end."""
    path, specs = tmp_path / "table.parquet", rows(spec, 6)
    build(specs[:3], FakeMachine([2.0]), save_path=path)
    begun = LatencyTable.load(path, expected=None)
    assert times(begun) == {row: 2 * ms for row, ms in quiet_times(specs[:3]).items()}
    machine = FakeMachine([2.0, 1.0])
    table = build(specs, machine, table=begun, save_path=path)
    assert times(table) == times(LatencyTable.load(path, expected=None)) == quiet_times(specs)
    assert [machine.calls[row] for row in specs] == [1, 1, 1, 2, 2, 1]


def test_rows_of_a_slower_session_are_not_kept_by_a_build_that_is_killed(spec, tmp_path):
    path, specs = tmp_path / "table.parquet", rows(spec, 6)
    begun, machine = build(specs[:3], FakeMachine([2.0])), FakeMachine()

    def killed_before_the_last(spec):
        if spec == specs[5]:
            raise KeyboardInterrupt
        return machine(spec)

    with pytest.raises(KeyboardInterrupt):
        build(specs, killed_before_the_last, table=begun, save_path=path)
    assert times(LatencyTable.load(path, expected=None)) == quiet_times(specs[3:5])


def test_a_slower_session_knows_how_quiet_the_one_before_was(spec, tmp_path, caplog):
    path, specs = tmp_path / "table.parquet", rows(spec, 4)
    build(specs[:2], FakeMachine(), save_path=path)
    machine = FakeMachine([2.0])
    with caplog.at_level(logging.WARNING):
        build(specs, machine, table=LatencyTable.load(path, expected=None))
    assert [machine.calls[row] for row in specs] == [0, 0, 3, 3]
    assert "2 of 4 rows were measured while the sentinel (conv_d1) ran more than 15 % slower" in caplog.text


def test_a_build_goes_on_with_the_sentinel_of_the_one_before(spec):
    begun = build([spec("skip", 2, 4, size=4)], FakeMachine())
    machine, seen = FakeMachine(), []

    def timer(spec):
        seen.append(spec)
        return machine(spec)

    build([spec("skip", 2, 4, size=8)], timer, table=begun)
    assert {row for row in seen if row.name == SENTINEL_NAME} == {spec("conv_d1", 16, 16, size=4)}


def test_killed_build_leaves_its_steady_rows_and_goes_on(spec, tmp_path):
    path, specs = tmp_path / "table.parquet", rows(spec, 8)
    machine = FakeMachine([1.0, 1.0, 1.0, 2.0])

    def killed_at_the_last_row(spec):
        if spec == specs[7]:
            raise KeyboardInterrupt
        return machine(spec)

    with pytest.raises(KeyboardInterrupt):
        build(specs, killed_at_the_last_row, save_path=path)
    begun = LatencyTable.load(path, expected=None)
    assert times(begun) == quiet_times(specs[:4])  # rows 4 and 5 are disturbed, row 6 stood alone

    machine = FakeMachine()
    build(specs, machine, table=begun, save_path=path)
    assert machine.calls == Counter(specs[4:])
    assert times(LatencyTable.load(path, expected=begun.device_info)) == quiet_times(specs)


def test_table_of_other_settings_is_not_continued(spec):
    begun = build(rows(spec, 1), FakeMachine())
    with pytest.raises(ValueError, match="`table` cannot be continued here .*num_threads: table 1, here 2; dtype: .*"):
        build_table(rows(spec, 2), device=CPU, num_threads=2, dtype=torch.bfloat16, table=begun, timer=FakeMachine())


def test_progress_counts_the_rows_that_are_measured_again(spec):
    seen = []
    specs = rows(spec, 6)
    build(specs, FakeMachine([1.0, 1.0, 2.0, 1.0]), progress=lambda *call: seen.append(call))
    assert seen == [(n, 6, "skip") for n in range(1, 7)] + [(n, 10, "skip") for n in range(7, 11)]


def test_empty_build_gives_an_empty_table_of_this_device(tmp_path):
    table = build_table([], device=CPU, num_threads=1, save_path=tmp_path / "table.parquet")
    assert len(table) == 0
    assert len(LatencyTable.load(tmp_path / "table.parquet", expected=table.device_info)) == 0


def test_unknown_operator_is_refused(spec):
    with pytest.raises(KeyError, match="unknown operator 'warp'"):
        build_table([spec("warp")], device=CPU, num_threads=1, rule=QUICK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows_per_reading": 0}, "`rows_per_reading` must be positive, got 0"),
        ({"drift_tolerance": float("nan")}, "`drift_tolerance` must be positive, got nan"),
        ({"max_remeasures": -1}, "`max_remeasures` must not be negative, got -1"),
    ],
)
def test_sentinel_rule_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        SentinelRule(**values)


@pytest.mark.parametrize("name", [*list_ops(), "conv3x3", "down", "up"])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(16, 16), (16, 8), (10, 14)])
def test_every_operator_can_be_priced(name, in_channels, out_channels):
    spec = OpSpec(name=name, in_channels=in_channels, out_channels=out_channels, base_channels=16, height=16, width=24)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    timing = time_op(spec, device=CPU, num_threads=1, rule=QUICK)
    assert timing.median_ms > 0
    assert timing.num_repeats >= QUICK.min_repeats
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_up_gets_a_fine_feature_of_twice_the_size(spec):
    coarse, fine = _op_inputs(spec("up", 10, 14, size=8), device=CPU, dtype=torch.float32, batch_size=2)
    assert coarse.shape == (2, 10, 8, 8)
    assert fine.shape == (2, 14, 16, 16)
    assert fine.is_contiguous(memory_format=torch.channels_last)


def test_real_table_orders_skip_before_swin(spec):
    specs = [spec("skip", size=32), spec("swin", size=32)]
    table = build_table(specs, device=CPU, num_threads=1, rule=QUICK, sentinel_rule=SentinelRule(max_remeasures=0))
    assert table[specs[0]] < table[specs[1]]
