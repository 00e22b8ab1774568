"""What the latency tests share: specs, an invented device, and a small table."""

import pytest

from latency import DeviceInfo, LatencyTable, Timing
from ops import OpSpec


def make_spec(name="conv_d1", in_channels=16, out_channels=16, size=8):
    return OpSpec(
        name=name, in_channels=in_channels, out_channels=out_channels, base_channels=16, height=size, width=size
    )


@pytest.fixture
def spec():
    """Return a function that makes an `OpSpec` from few words."""
    return make_spec


@pytest.fixture
def device_info():
    return DeviceInfo(
        device_type="cpu",
        device_name="Abacus 3000",
        capability="AVX2",
        machine="x86_64",
        num_threads=1,
        dtype="float32",
        batch_size=1,
        memory_format="channels_last",
        allocator="default",
        torch_version="2.9.0",
    )


@pytest.fixture
def small_table(device_info):
    timings = {
        make_spec("conv_d1"): Timing(median_ms=0.5, iqr_ms=0.01, num_repeats=40),
        make_spec("skip", 16, 8): Timing(median_ms=1 / 3, iqr_ms=0.0, num_repeats=20),
        make_spec("up", 8, 10, size=4): Timing(median_ms=7.25, iqr_ms=0.125, num_repeats=1000),
    }
    return LatencyTable(device_info, timings)
