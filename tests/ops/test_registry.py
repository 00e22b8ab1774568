import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import ops
from ops import OpSpec, create_op, list_ops, register_op, registry

REPOSITORY = Path(__file__).parents[2]


def make_spec(name: str) -> OpSpec:
    return OpSpec(name=name, in_channels=16, out_channels=12, base_channels=16, height=8, width=8)


def test_candidates_are_listed_in_the_order_of_the_paper_then_ours() -> None:
    assert list_ops() == ("conv_d1", "conv_d2", "conv_d3", "conv_r", "skip", "ib", "hin", "swin", "naf")


@pytest.mark.parametrize("name", ["down", "up", "conv3x3"])
def test_structure_is_created_by_name_but_is_no_candidate(name: str) -> None:
    assert name not in list_ops()
    assert isinstance(create_op(make_spec(name)), nn.Module)


def test_unknown_name_raises_and_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown operator 'conv_d9'; known are conv_d1, conv_d2, .*swin"):
        create_op(make_spec("conv_d9"))


def test_repeated_name_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    with pytest.raises(ValueError, match="operator 'conv_d1' is registered already"):
        register_op("conv_d1")(lambda spec: nn.Identity())


def test_operator_of_equal_widths_gets_an_adapter_only_where_widths_differ() -> None:
    def adapter(in_channels: int, slimmable: bool) -> nn.Module | None:
        spec = OpSpec(name="ib", in_channels=in_channels, out_channels=12, base_channels=16, height=8, width=8)
        return create_op(spec, slimmable=slimmable).adapter

    assert adapter(12, slimmable=False) is None
    assert adapter(16, slimmable=False) is not None
    assert adapter(12, slimmable=True) is not None


def test_public_names_exist() -> None:
    assert all(hasattr(ops, name) for name in ops.__all__)


def test_import_is_lean() -> None:
    """Importing `ops` loads neither ray, mlflow nor optuna, and touches no GPU."""
    script = (
        "import sys, ops, torch; "
        "loaded = {'ray', 'mlflow', 'optuna', 'pipeline'} & set(sys.modules); "
        "assert not loaded, loaded; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)
