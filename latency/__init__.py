"""What an operator or a network costs on a named device: measure, tabulate, predict."""

from latency.build import SentinelRule, build_table, time_op
from latency.device import DeviceInfo
from latency.measure import Timing, TimingRule, measure, measure_network_ms, pinned_threads
from latency.memory import freed_memory_is_kept, keep_freed_memory
from latency.predict import predict_latency_ms
from latency.table import LatencyTable

__all__ = [
    "DeviceInfo",
    "LatencyTable",
    "SentinelRule",
    "Timing",
    "TimingRule",
    "build_table",
    "freed_memory_is_kept",
    "keep_freed_memory",
    "measure",
    "measure_network_ms",
    "pinned_threads",
    "predict_latency_ms",
    "time_op",
]
