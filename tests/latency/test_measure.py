from itertools import chain, repeat

import pytest
import torch
from torch import nn

from latency import Timing, TimingRule, measure, measure_network_ms, pinned_threads
from latency.measure import random_input

CPU = torch.device("cpu")
MS = 1_000_000  # nanoseconds


class FakeClock:
    """A clock that only the measured call moves on."""

    def __init__(self):
        self.now_ns = 0
        self.num_calls = 0

    def __call__(self):
        return self.now_ns

    def callable_taking(self, durations_ns):
        """Return a function whose n-th call takes the n-th duration."""
        durations = iter(durations_ns)

        def call():
            self.num_calls += 1
            self.now_ns += next(durations)

        return call


@pytest.fixture
def clock():
    return FakeClock()


def timed(clock, durations_ns, **rule):
    rule = TimingRule(**{"warmup_runs": 2, "min_repeats": 5, "min_repeat_ms": 0.0, **rule})
    return measure(clock.callable_taking(durations_ns), [], device=CPU, num_threads=1, rule=rule, clock=clock)


def test_steady_callable_needs_only_the_minimum(clock):
    assert timed(clock, repeat(3 * MS)) == Timing(median_ms=3.0, iqr_ms=0.0, num_repeats=5)
    assert clock.num_calls == 2 + 5


def test_warmup_does_not_count(clock):
    timing = timed(clock, chain([900 * MS, 500 * MS], repeat(1 * MS)))
    assert timing == Timing(median_ms=1.0, iqr_ms=0.0, num_repeats=5)


def test_median_and_interquartile_range_of_the_repeats(clock):
    timing = timed(clock, [0, 0, 1 * MS, 2 * MS, 3 * MS, 4 * MS, 100 * MS], max_repeats=5)
    assert timing == Timing(median_ms=3.0, iqr_ms=2.0, num_repeats=5)


def test_repeats_until_the_median_is_stable(clock):
    durations = (duration * MS for _ in repeat(None) for duration in (9, 10, 11))
    timing = timed(clock, durations, relative_error=0.02, max_seconds=100)
    # 0.93 * IQR / sqrt(n) <= 0.02 * 10 ms at IQR 2 ms: n >= 86, and checks come a quarter apart.
    assert 86 <= timing.num_repeats <= 86 * 1.25
    assert timing.iqr_ms == pytest.approx(2.0)


def test_unsteady_callable_stops_at_the_cap(clock):
    durations = (duration * MS for _ in repeat(None) for duration in (1, 1000))
    assert timed(clock, durations, max_repeats=1000, max_seconds=1e6).num_repeats == 1000


def test_time_budget_stops_repeats_after_the_minimum(clock):
    durations = (duration * MS for _ in repeat(None) for duration in (50, 150))
    assert timed(clock, durations, max_seconds=1.95).num_repeats == 20  # 20 repeats of 100 ms on average
    clock.num_calls = 0
    assert timed(clock, durations, max_seconds=0.0).num_repeats == 5


def test_fast_callable_is_called_many_times_per_repeat(clock):
    timing = timed(clock, repeat(2_000), min_repeat_ms=0.1)  # 2 us
    assert timing == Timing(median_ms=0.002, iqr_ms=0.0, num_repeats=5)
    assert clock.num_calls == 2 + 5 * 50


def test_clock_that_stands_still_gives_zero(clock):
    assert timed(clock, repeat(0)).median_ms == 0.0


class ModeRecorder(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm2d(3).eval()
        self.seen = set()

    def forward(self, x):
        self.seen.add((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


def test_module_runs_in_evaluation_and_inference_mode_with_the_threads_asked_for():
    module = ModeRecorder()
    rule = TimingRule(min_repeats=2, max_repeats=2, min_repeat_ms=0.0)
    timing = measure(module, [torch.zeros(1, 3, 4, 4)], device=CPU, num_threads=3, rule=rule)
    assert module.seen == {(False, True, 3)}
    assert timing.num_repeats == 2


def test_modes_and_thread_count_are_restored_even_after_an_error():
    class Broken(ModeRecorder):
        def forward(self, x):
            raise RuntimeError("broken")

    threads = torch.get_num_threads()
    module = Broken().train()
    module.frozen.eval()
    with pytest.raises(RuntimeError, match="broken"):
        measure(module, [torch.zeros(1)], device=CPU, num_threads=threads + 1)
    assert module.training and not module.frozen.training
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


def test_pinned_threads_restores_and_refuses_zero():
    threads = torch.get_num_threads()
    with pinned_threads(threads + 1):
        assert torch.get_num_threads() == threads + 1
    assert torch.get_num_threads() == threads
    with pytest.raises(ValueError, match="`num_threads` must be positive, got 0"), pinned_threads(0):
        pass


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_runs": 0}, "`warmup_runs` must be at least 1, got 0"),
        ({"min_repeats": 0}, "`min_repeats` must be from 1 to `max_repeats`"),
        ({"min_repeats": 5, "max_repeats": 4}, "got min_repeats 5 and max_repeats 4"),
        ({"max_seconds": float("nan")}, "`max_seconds` must be finite and not negative, got nan"),
        ({"relative_error": -0.1}, "`relative_error` must be finite and not negative, got -0.1"),
    ],
)
def test_timing_rule_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        TimingRule(**values)


@pytest.mark.parametrize("median_ms", [-1.0, float("nan"), float("inf")])
def test_timing_refuses_impossible_times(median_ms):
    with pytest.raises(ValueError, match="`median_ms` must be finite and not negative"):
        Timing(median_ms=median_ms, iqr_ms=0.0, num_repeats=1)


def test_larger_network_is_slower_and_stays_as_it_was():
    """The larger one does 64 times the arithmetic, so that even a busy machine orders them."""
    small, large = nn.Conv2d(3, 1, 1), nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1))
    rule = TimingRule(warmup_runs=2, min_repeats=5, max_seconds=0.05)
    small_ms, large_ms = (
        measure_network_ms(network, height=96, width=64, device=CPU, num_threads=1, rule=rule)
        for network in (small, large.train())
    )
    assert 0 < small_ms < large_ms
    assert large.training and large[1].weight.is_contiguous()


def test_network_sees_images_of_the_size_and_type_asked_for():
    seen = set()

    class Recorder(nn.Module):
        def forward(self, noisy):
            seen.add((noisy.shape, noisy.dtype, noisy.is_contiguous(memory_format=torch.channels_last)))
            return noisy

    rule = TimingRule(min_repeats=1, max_repeats=1)
    measure_network_ms(
        Recorder(), height=6, width=10, device=CPU, num_threads=1, dtype=torch.bfloat16, batch_size=2, rule=rule
    )
    assert seen == {(torch.Size([2, 3, 6, 10]), torch.bfloat16, True)}


def test_random_input_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    x = random_input(1, 3, 4, 5, device=CPU, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, random_input(1, 3, 4, 5, device=CPU, dtype=torch.float32))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_network_is_timed_until_it_has_finished():
    device, rule = torch.device("cuda"), TimingRule(min_repeats=5, max_seconds=0.2)
    network = nn.Sequential(*[nn.Conv2d(3, 3, 9, padding=4) for _ in range(4)])
    small_ms, large_ms = (
        measure_network_ms(network, height=size, width=size, device=device, num_threads=1, rule=rule)
        for size in (16, 2048)
    )
    assert 0 < small_ms < large_ms
