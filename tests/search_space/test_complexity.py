import pytest

from ops import OpSpec, list_ops
from search_space import op_macs, op_num_parameters


def make_spec(name: str, in_channels: int = 16, out_channels: int = 12, height: int = 10, width: int = 14) -> OpSpec:
    return OpSpec(
        name=name, in_channels=in_channels, out_channels=out_channels, base_channels=16, height=height, width=width
    )


@pytest.mark.parametrize(
    ("name", "weights", "biases", "pixels"),
    [
        ("conv_d1", 9 * 16 * 12, 12, 140),
        ("conv_d3", 9 * 16 * 12, 12, 140),
        ("conv_r", 9 * 16 * 12, 12, 140),
        ("conv3x3", 9 * 16 * 12, 12, 140),
        ("down", 9 * 16 * 12, 12, 35),
        ("skip", 0, 0, 140),
    ],
)
def test_convolutions_by_hand(name: str, weights: int, biases: int, pixels: int) -> None:
    assert op_num_parameters(make_spec(name)) == weights + biases
    assert op_macs(make_spec(name)) == weights * pixels


def test_up_sampling_by_hand() -> None:
    expand, fuse = 9 * 16 * 4 * 12, 12 * 12  # 3x3 to 4C at the coarse size, 1x1 of either input at the fine one
    assert op_num_parameters(make_spec("up")) == expand + 4 * 12 + 2 * fuse + 12
    product = 12 * (expand + 4 * 12)  # the 1x1 of the coarse input is multiplied into the 3x3
    assert op_macs(make_spec("up")) == expand * 140 + fuse * 4 * 140 + product


@pytest.mark.parametrize("name", list_ops())
def test_four_times_the_pixels_are_four_times_the_multiply_adds(name: str) -> None:
    small, large = make_spec(name, height=16, width=16), make_spec(name, height=32, width=32)
    # The attention of naf works on one mean per channel, up multiplies weights.
    constant = {"naf": 12 * 12, "up": 12 * 4 * 12 * (9 * 16 + 1)}.get(name, 0)
    assert op_macs(large) - constant == 4 * (op_macs(small) - constant)
    assert op_num_parameters(large) == op_num_parameters(small)


@pytest.mark.parametrize("name", list_ops())
def test_narrower_is_cheaper(name: str) -> None:
    wide, narrow = make_spec(name, 16, 16), make_spec(name, 8, 8)
    assert op_macs(narrow) < op_macs(wide) or name == "skip"
    assert op_num_parameters(narrow) < op_num_parameters(wide) or name == "skip"
