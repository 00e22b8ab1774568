from dataclasses import replace

import pytest
import torch

import latency.device
from latency import DeviceInfo


def test_current_describes_the_processor_and_the_settings():
    info = DeviceInfo.current(torch.device("cpu"), num_threads=3, dtype=torch.bfloat16, batch_size=2)
    assert (info.device_type, info.num_threads, info.dtype, info.batch_size) == ("cpu", 3, "bfloat16", 2)
    assert info.memory_format == "channels_last"
    assert info.torch_version == str(torch.__version__)
    assert info.device_name and info.machine and info.capability


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_current_describes_the_gpu():
    info = DeviceInfo.current(torch.device("cuda"), num_threads=1)
    assert info.device_type == "cuda"
    assert info.device_name == torch.cuda.get_device_name()


def test_current_refuses_a_device_that_cannot_be_timed():
    with pytest.raises(ValueError, match="`device_type` of DeviceInfo must be 'cpu' or 'cuda', got 'meta'"):
        DeviceInfo.current(torch.device("meta"), num_threads=1)


def test_dictionary_round_trip(device_info):
    assert DeviceInfo.from_dict(device_info.to_dict()) == device_info


def test_from_dict_names_missing_and_unknown_fields(device_info):
    values = device_info.to_dict() | {"colour": "red"}
    del values["dtype"]
    with pytest.raises(ValueError, match=r"lacks the fields \['dtype'\] and does not know \['colour'\]"):
        DeviceInfo.from_dict(values)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("num_threads", 0, ValueError), ("batch_size", "1", TypeError), ("num_threads", True, TypeError),
     ("dtype", None, TypeError)],
)  # fmt: skip
def test_wrong_fields_are_refused(device_info, field, value, error):
    with pytest.raises(error, match=f"`{field}` of DeviceInfo must be"):
        replace(device_info, **{field: value})


def test_differences_lists_every_field_that_differs(device_info):
    other = replace(device_info, num_threads=2, dtype="bfloat16")
    assert device_info.differences(other) == ["num_threads: table 1, here 2", "dtype: table float32, here bfloat16"]
    assert device_info.differences(device_info) == []


def test_processor_name_is_the_model_name(tmp_path, monkeypatch):
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nmodel name\t: Abacus 3000: turbo\nflags\t: fpu\n")
    monkeypatch.setattr(latency.device, "_CPU_INFO", cpu_info)
    info = DeviceInfo.current(torch.device("cpu"), num_threads=1)
    assert info.device_name == "Abacus 3000: turbo"


@pytest.mark.parametrize("processor", ["z/Architecture", ""])
def test_processor_name_without_a_model_name(tmp_path, monkeypatch, processor):
    monkeypatch.setattr(latency.device, "_CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(latency.device.platform, "processor", lambda: processor)
    monkeypatch.setattr(latency.device.platform, "machine", lambda: "s390x")
    info = DeviceInfo.current(torch.device("cpu"), num_threads=1)
    assert info.device_name == (processor or "s390x")


def test_allocator_settings_of_the_environment_are_recorded(monkeypatch):
    for name in ("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    default = DeviceInfo.current(torch.device("cpu"), num_threads=1)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    tuned = DeviceInfo.current(torch.device("cpu"), num_threads=1)
    assert default.differences(tuned) == ["allocator: table default, here MALLOC_TRIM_THRESHOLD_=1000"]
