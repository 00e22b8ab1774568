import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from ops import OpSpec

SPEC = OpSpec(name="conv_d1", in_channels=16, out_channels=12, base_channels=16, height=37, width=31)
NUMBERS = ("in_channels", "out_channels", "base_channels", "height", "width")


def test_spec_round_trips_through_json() -> None:
    assert OpSpec(**json.loads(json.dumps(SPEC.to_dict()))) == SPEC


def test_spec_is_a_frozen_sortable_key() -> None:
    wider = replace(SPEC, width=32)
    assert {SPEC: 1.0}[replace(wider, width=31)] == 1.0
    assert sorted([wider, SPEC]) == [SPEC, wider]
    with pytest.raises(FrozenInstanceError):
        SPEC.width = 32  # type: ignore[misc]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [0, -1])
def test_number_must_be_positive(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"`{field}` of OpSpec must be positive, got {value}"):
        replace(SPEC, **{field: value})


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [16.0, "16", None, True])
def test_number_must_be_an_integer(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`{field}` of OpSpec must be an integer, got {value!r}"):
        replace(SPEC, **{field: value})
