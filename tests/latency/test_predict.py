import subprocess
import sys

import pytest

from latency import predict_latency_ms


def test_prediction_is_the_sum_with_repetitions(small_table, spec):
    specs = [spec("conv_d1"), spec("skip", 16, 8), spec("conv_d1")]
    assert predict_latency_ms(small_table, specs) == pytest.approx(0.5 + 1 / 3 + 0.5)
    assert predict_latency_ms(small_table, iter(specs)) == predict_latency_ms(small_table, specs[::-1])


def test_prediction_of_nothing_is_zero(small_table):
    assert predict_latency_ms(small_table, []) == 0.0


def test_prediction_needs_every_row(small_table, spec):
    with pytest.raises(KeyError, match="no row for OpSpec"):
        predict_latency_ms(small_table, [spec("conv_d1"), spec("swin")])


def test_import_is_lean():
    code = (
        "import sys, latency, torch; "
        "loaded = {'ray', 'mlflow', 'optuna', 'search_space', 'pipeline'} & set(sys.modules); "
        "assert not loaded, loaded; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
