import subprocess
import sys


def test_importing_the_search_space_loads_no_ray_mlflow_optuna_or_matplotlib() -> None:
    """`draw` needs matplotlib and is imported by its own name; CUDA stays untouched."""
    program = (
        "import sys, search_space, torch; "
        "heavy = {'ray', 'mlflow', 'optuna', 'matplotlib', 'latency', 'pipeline'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert not torch.cuda.is_initialized()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
