"""Load a denoiser of any kind by one name or path.

Called by the commands `evaluate` and `denoise`.
"""

from pathlib import Path

import torch

from pipeline.baselines import is_baseline, load_baseline
from pipeline.checkpoint import fill_by_name, load_metadata, load_weights
from pipeline.priors import load_prior
from search_space import Genotype, build_network


def load_denoiser(path: Path | str) -> torch.nn.Module:
    """Load a found network, a trained baseline or a prior.

    Args:
        path: a run's folder, or the `model.safetensors` or `genotype.json` in it; a baseline's file, or a folder that
            holds it as `model.safetensors`; a prior's name or checkpoint file.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the weights do not belong to the genotype beside them.
    """
    folder = Path(path).parent if Path(path).name == "genotype.json" else Path(path)
    weights = folder / "model.safetensors" if folder.is_dir() else folder
    if is_baseline(weights):
        return load_baseline(weights)
    genotype_path = weights.parent / "genotype.json"
    if weights.name != "model.safetensors" or not genotype_path.exists():
        if folder.is_dir():
            raise FileNotFoundError(f"{folder} holds no `model.safetensors` with a `genotype.json` beside it")
        return load_prior(path)
    genotype = Genotype.load(genotype_path)
    network = build_network(genotype)
    of_another = f"weights {weights} do not belong to genotype {genotype.genotype_id}"
    if (trained := load_metadata(weights).get("genotype_id", genotype.genotype_id)) != genotype.genotype_id:
        raise ValueError(
            f"{of_another}, they are of {trained}"
        )  # operators may have parameters of equal names and shapes
    fill_by_name(network, load_weights(weights), of_another)
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
