"""DeviceInfo: the machine and the settings that a measured time belongs to.

Written into every latency table by `latency.build`, compared by `latency.table` before a table is used.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from latency.memory import freed_memory_is_kept

_CPU_INFO = Path("/proc/cpuinfo")
_ALLOCATOR_VARIABLES = ("LD_PRELOAD", "GLIBC_TUNABLES")  # and all that begin with MALLOC_


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """Everything that makes two times comparable; times of unequal `DeviceInfo` are not.

    Attributes:
        device_type: `cpu` or `cuda`.
        device_name: of the processor or GPU. A virtual machine may hide all but the family ("AMD EPYC").
        capability: instruction set that torch uses ("AVX2"), or compute capability of the GPU ("9.0").
        machine: architecture of the host, for example `x86_64`.
        num_threads: threads that torch computes with on the host.
        dtype: of weights and inputs, for example `float32`.
        batch_size: images per call.
        memory_format: of weights and inputs.
        allocator: variables of the environment that change how the host allocates memory, or `default`. They matter:
            on an AMD EPYC (2 virtual cores, 1 thread, glibc, torch 2.13, 2026-11-23) conv_r at 16 channels and 128x128
            took 1.19 ms by default, 500 page faults a call, and 0.41 ms without faults under MALLOC_MMAP_THRESHOLD_
            and MALLOC_TRIM_THRESHOLD_ of 1 GB and MALLOC_TOP_PAD_ of 64 MB.
        torch_version: with its build tag, for example `2.9.0+cu128`.

    Raises:
        TypeError: a text is not a text, or a count is not an integer.
        ValueError: the device type is unknown, or a count is not positive.
    """

    device_type: str
    device_name: str
    capability: str
    machine: str
    num_threads: int
    dtype: str
    batch_size: int
    memory_format: str
    allocator: str
    torch_version: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, field.type) or isinstance(value, bool):  # type: ignore[arg-type]
                raise TypeError(f"`{field.name}` of DeviceInfo must be {field.type}, got {value!r}")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"`{field.name}` of DeviceInfo must be positive, got {value}")
        if self.device_type not in ("cpu", "cuda"):
            raise ValueError(f"`device_type` of DeviceInfo must be 'cpu' or 'cuda', got {self.device_type!r}")

    @classmethod
    def current(
        cls, device: torch.device, *, num_threads: int, dtype: torch.dtype = torch.float32, batch_size: int = 1
    ) -> "DeviceInfo":
        """Describe `device` of this machine, used with these settings.

        Raises:
            ValueError: `device` is neither a processor nor a CUDA device, or a count is not positive.
        """
        if device.type == "cuda":
            device_name = torch.cuda.get_device_name(device)
            capability = ".".join(str(number) for number in torch.cuda.get_device_capability(device))
        else:
            device_name = _processor_name()
            capability = torch.backends.cpu.get_cpu_capability()
        return cls(
            device_type=device.type,
            device_name=device_name,
            capability=capability,
            machine=platform.machine(),
            num_threads=num_threads,
            dtype=str(dtype).removeprefix("torch."),
            batch_size=batch_size,
            memory_format="channels_last",
            allocator=_allocator_settings(),
            torch_version=str(torch.__version__),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DeviceInfo":
        """Build from the dictionary of `to_dict`.

        Raises:
            ValueError: a field is missing or unknown.
            TypeError: a field has the wrong type.
        """
        expected = {field.name for field in fields(cls)}
        if set(values) != expected:
            missing, unknown = sorted(expected - set(values)), sorted(set(values) - expected)
            raise ValueError(f"DeviceInfo lacks the fields {missing} and does not know {unknown}")
        return cls(**values)

    def differences(self, other: "DeviceInfo") -> list[str]:
        """Return what differs between a table (`self`) and here (`other`), such as `num_threads: table 1, here 2`."""
        return describe_differences(self.to_dict(), other.to_dict())


def describe_differences(table: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return one line per key whose values differ, in the order of `here`; a key that one side lacks counts too."""
    keys = [*here, *(key for key in table if key not in here)]
    return [
        f"{key}: table {table.get(key, '(none)')}, here {here.get(key, '(none)')}"
        for key in keys
        if key not in table or key not in here or table[key] != here[key]
    ]


def _processor_name() -> str:
    """Return the processor's model name, or the best that the operating system tells instead."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _allocator_settings() -> str:
    """Return what chooses or tunes the memory allocator, in one line: the environment and `keep_freed_memory`."""
    names = sorted(name for name in os.environ if name in _ALLOCATOR_VARIABLES or name.startswith("MALLOC_"))
    settings = [f"{name}={os.environ[name]}" for name in names if os.environ[name]]
    if freed_memory_is_kept():
        settings.append("keeps freed memory")
    return " ".join(settings) or "default"
