"""Is a searched network as good as a plain one that is as fast, after the same seconds of training? (quick scale)

    python benchmarks/quick_quality.py

For every seed: the plain residual U-Net of `pipeline.baselines` is trained on clean patches; its measured latency is
the budget (`target_ms`) of a search with the quick preset; the searched network is trained as the preset says, from the
weights that the search left, with the prior's denoised patches as second target. Controls, all with the prior's patches
too: the searched network from scratch; three random architectures of the space, every part within 10 % of the searched
one's predicted latency, from scratch; the plain net. Every training gets the same seconds, those of the prior's patches
included, on the same photographs (astronaut, coffee, rocket; sigma 25; Adam 2e-3 with a cosine; batches of 16 patches
of 48x48), one at a time. PSNR is that of rounded images on chelsea and the crop of motorcycle_left, seed 0. Results are
written after every network; the same command goes on where it was.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import print_table, write_result

from latency import LatencyTable, keep_freed_memory, measure_network_ms
from pipeline.baselines import PlainUNet
from pipeline.cluster import ray_session
from pipeline.config import load_config
from pipeline.data.distilled import training_patches
from pipeline.evaluate import evaluate_denoiser, mean_score
from pipeline.run import Run, open_run
from pipeline.search_inputs import cost_models, part_budgets, predicted_ms
from pipeline.training import Trainer
from search_space import (
    ArchParameters,
    CostModel,
    Genotype,
    PartGenotype,
    SearchSpace,
    build_network,
    derive,
    gumbel_noise,
    num_parameters,
    restrict_to_budget,
)

NUM_RANDOM = 3
TOLERANCE = 0.1
MAX_DRAWS = 5000
DEVICE = torch.device("cpu")


def train_and_score(run: Run, network: torch.nn.Module, seed: int, seconds: float, *, distill: bool) -> dict[str, Any]:
    """Train for `seconds`; return PSNR, latency, parameters and the number of steps that fitted."""
    start = time.perf_counter()
    config = run.config if distill else run.config.with_settings({"retrain.distilled_patches": 0})
    torch.set_num_threads(config.retrain.threads_per_worker)
    source = training_patches(config, list(run.training_images.values()), run.prior, seed=seed)
    seconds -= time.perf_counter() - start
    trainer = Trainer(network, source, config.retrain, prior=run.prior, seed=seed, device=DEVICE, max_seconds=seconds)
    while trainer.progress < 1:
        trainer.run_epoch()
    network.eval()
    scores = evaluate_denoiser(network, run.validation_images, sigma=run.config.noise.validation_sigma, device=DEVICE)
    return {
        "psnr_db": round(mean_score(scores).psnr_db, 3),
        "images": {score.name: round(score.psnr_db, 3) for score in scores},
        "measured_ms": round(latency(run, network), 3),
        "num_parameters": num_parameters(network),
        "num_steps": trainer.num_steps,
    }


def latency(run: Run, network: torch.nn.Module) -> float:
    settings = run.config.latency
    size = settings.image_size
    return measure_network_ms(network, height=size, width=size, device=DEVICE, num_threads=settings.num_threads)


def random_genotypes(run: Run, table: LatencyTable, searched: Genotype, seed: int) -> list[Genotype]:
    """Draw architectures whose every part is predicted within `TOLERANCE` of the searched part's latency."""
    generator = torch.Generator().manual_seed(1000 + seed)
    costs = cost_models(run.config, run.space, table.__getitem__)
    budgets = part_budgets(run.config, costs)
    return [
        dataclasses.replace(
            searched,
            parts=tuple(
                random_part(run.space, cost, budget, cost.of(part), run.config.search.threshold, generator)
                for cost, budget, part in zip(costs, budgets, searched.parts, strict=True)
            ),
        )
        for _ in range(NUM_RANDOM)
    ]


def random_part(
    space: SearchSpace, costs: CostModel, budget: float | None, target: float, threshold: float,
    generator: torch.Generator,
) -> PartGenotype:  # fmt: skip
    """Draw a part of about `target` ms with the search's `threshold`, without regard to quality.

    A random part of the space, restricted to the budget as the search is; then one random cell after another is drawn
    anew, and kept where that brings the latency no further from the target. Parts as light as a searched one are too
    rare to wait for.

    Raises:
        ValueError: `MAX_DRAWS` cells do not suffice.
    """
    arch = ArchParameters(space, generator=generator)
    assert budget is not None
    restrict_to_budget(arch, costs, budget)
    # Noise alone as logits: of which the largest is a uniform choice, and the softmax keeps random sets of pathways.
    for parameter in arch.parameters():
        parameter.requires_grad_(False).copy_(gumbel_noise(parameter.shape, generator))
    part = derive(arch, threshold=threshold)
    for _ in range(MAX_DRAWS):
        distance = abs(costs.of(part) / target - 1)
        if distance <= TOLERANCE:
            return part
        cell = int(torch.randint(len(space.cells), (1,), generator=generator))
        before = {name: parameter[cell].clone() for name, parameter in arch.named_parameters()}
        for parameter in arch.parameters():
            parameter[cell] = gumbel_noise(parameter[cell].shape, generator)
        other = derive(arch, threshold=threshold)
        if abs(costs.of(other) / target - 1) <= distance:
            part = other
        else:
            for name, parameter in arch.named_parameters():
                parameter[cell] = before[name]
    raise ValueError(f"no random part within {TOLERANCE:.0%} of {target:.2f} ms in {MAX_DRAWS} draws")


def benchmark_seed(seed: int, options: argparse.Namespace, folder: Path, rows: dict[str, Any]) -> None:
    """Fill `rows` with the networks of one seed that it lacks."""
    base = load_config(
        "quick",
        [
            f"seed={seed}",
            f"output={folder}/seed{seed}",
            f"latency.table={folder}/latency.parquet",
            *options.overrides,
        ],
    )
    torch.manual_seed(seed)
    plain = PlainUNet()

    def record(name: str, make: Any) -> None:
        if name not in rows:
            rows[name] = make()
            (folder / "rows.json").write_text(json.dumps(options.rows, indent=2))
            print(f"seed {seed} {name}: {rows[name]['psnr_db']} dB, {rows[name]['measured_ms']} ms", flush=True)

    data = open_run(dataclasses.replace(base, output=f"{base.output}_plain"))
    record("plain_unet", lambda: train_and_score(data, plain, seed, options.seconds, distill=False))
    torch.manual_seed(seed)
    distilled = PlainUNet()
    record("plain_unet_distilled", lambda: train_and_score(data, distilled, seed, options.seconds, distill=True))
    target = rows["plain_unet"]["measured_ms"]
    run = open_run(dataclasses.replace(base, search=dataclasses.replace(base.search, target_ms=target)))
    table = run.latency_table()
    with ray_session(base.ray):
        genotype, parts = run.search(table)
    size = run.config.latency.image_size
    predicted = predicted_ms(table, genotype, size)

    def searched(inherited: bool) -> dict[str, Any]:
        torch.manual_seed(seed)
        network = build_network(genotype)
        if inherited:
            for part, result in zip(network.parts, parts, strict=True):
                part.load_state_dict(result.weights)
        result = train_and_score(run, network, seed, options.seconds, distill=True)
        return result | {"genotype_id": genotype.genotype_id, "predicted_ms": round(predicted, 3), "target_ms": target}

    record("searched", lambda: searched(True))
    record("searched_from_scratch", lambda: searched(False))
    for index, other in enumerate(random_genotypes(run, table, genotype, seed)):
        other.save(run.path(f"random{index}.json"))

        def random(other: Genotype = other) -> dict[str, Any]:
            torch.manual_seed(seed)
            result = train_and_score(run, build_network(other), seed, options.seconds, distill=True)
            ms = round(predicted_ms(table, other, size), 3)
            return result | {"genotype_id": other.genotype_id, "predicted_ms": ms}

        record(f"random{index}", random)


def remeasure(options: argparse.Namespace) -> None:
    """Time all networks once more, one right after the other."""
    config = load_config("quick", options.overrides)
    size, threads = config.latency.image_size, config.latency.num_threads
    for seed in options.seeds:
        rows = options.rows[str(seed)]
        folder = options.folder / f"seed{seed}"
        searched = build_network(Genotype.load(folder / "genotype.json"))
        networks: dict[str, torch.nn.Module] = {"plain_unet": PlainUNet(), "searched": searched}
        for i in range(NUM_RANDOM):
            networks[f"random{i}"] = build_network(Genotype.load(folder / f"random{i}.json"))
        for name, network in networks.items():
            ms = measure_network_ms(network, height=size, width=size, device=DEVICE, num_threads=threads)
            rows[name]["measured_ms"] = round(ms, 3)
        rows["searched_from_scratch"]["measured_ms"] = rows["searched"]["measured_ms"]
        rows["plain_unet_distilled"]["measured_ms"] = rows["plain_unet"]["measured_ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=90.0, help="of every training")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "quick_quality")
    parser.add_argument("overrides", nargs="*", help="settings of the quick preset, such as search.num_epochs=20")
    options = parser.parse_args()
    keep_freed_memory()
    options.folder.mkdir(parents=True, exist_ok=True)
    stored = options.folder / "rows.json"
    options.rows = json.loads(stored.read_text()) if stored.exists() else {}
    for seed in options.seeds:
        benchmark_seed(seed, options, options.folder, options.rows.setdefault(str(seed), {}))
    remeasure(options)
    seeds = [options.rows[str(seed)] for seed in options.seeds]
    names = ["searched", "searched_from_scratch", "plain_unet", "plain_unet_distilled"]
    psnr: dict[str, list[float]] = {name: [rows[name]["psnr_db"] for rows in seeds] for name in names}
    psnr["random"] = [rows[f"random{i}"]["psnr_db"] for rows in seeds for i in range(NUM_RANDOM)]
    result = {"seconds": options.seconds, "overrides": options.overrides, "psnr_db": psnr, "networks": options.rows}
    table_rows = [
        [f"{name}, seed {seed}", f"{row['psnr_db']:.2f}", f"{row['measured_ms']:.1f}",
         f"{row.get('predicted_ms', 0):.1f}", f"{row['num_parameters'] / 1e3:.1f}", str(row["num_steps"])]
        for seed, rows in zip(options.seeds, seeds, strict=True) for name, row in rows.items()
    ]  # fmt: skip
    columns = ["network", "PSNR, dB", "measured ms", "predicted ms", "parameters, k", "steps"]
    print_table(f"after {options.seconds:g} s of training each", columns, table_rows)
    for name, values in psnr.items():
        print(f"{name}: mean {sum(values) / len(values):.2f} dB, {min(values):.2f} to {max(values):.2f}")
    print(write_result("quick_quality", result, seeds=options.seeds, num_threads=2))


if __name__ == "__main__":
    main()
