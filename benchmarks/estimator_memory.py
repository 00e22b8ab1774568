"""Memory and time of an architecture step under the three estimators as operators are added (Table II, Fig. 9b).

    python benchmarks/estimator_memory.py

A part search's architecture step (forward and backward through part 1, C = 16, 8 patches of 48x48) with 1, 2, 4 and 8
operators on offer. Operators differ a lot in what they keep (swin 20 times a convolution), so "n operators" averages
over disjoint sets of n that together hold all eight: eight sets of one, four of two, two of four, one of eight. Every
cell runs at full width. Bytes are those of the tensors that autograd keeps for the backward pass, each storage once,
parameters left out.
"""

import argparse
import statistics
import time

import torch
from common import print_table, write_result

from latency import keep_freed_memory
from pipeline.experiments.memory import saved_bytes
from pipeline.losses import feature_distance
from search_space import DEFAULT_OPS, ESTIMATORS, PartSupernet, SearchSpace

NUM_OPERATORS = (1, 2, 4, 8)
# Neighbours in this order differ in weight, so that sets of two and four are alike.
ORDER = ("swin", "skip", "ib", "conv_d1", "hin", "conv_d2", "conv_r", "conv_d3")


def saved_bytes_and_seconds(supernet: PartSupernet, estimator: str, generator: torch.Generator) -> tuple[int, float]:
    """Run one architecture step; return bytes kept for the backward pass and the wall time."""
    x = torch.rand(8, 16, 48, 48, generator=generator).to(memory_format=torch.channels_last)
    target = torch.rand(8, 16, 48, 48, generator=generator).to(memory_format=torch.channels_last)

    def forward() -> torch.Tensor:
        choices = supernet.arch.sample(estimator=estimator, temperature=1.0, generator=generator, with_gradient=True)
        return feature_distance(supernet(x, choices), target)

    start = time.perf_counter()
    loss, total = saved_bytes(forward, supernet.parameters())
    torch.autograd.grad(loss, list(supernet.arch.parameters()))
    return total, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4, help="steps per set of operators where all of them run")
    parser.add_argument("--samples", type=int, default=240, help="steps per number of operators where one is sampled")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    assert sorted(ORDER) == sorted(DEFAULT_OPS)
    megabytes: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    milliseconds: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for num_operators in NUM_OPERATORS:
        sets = [ORDER[i : i + num_operators] for i in range(0, len(ORDER), num_operators)]
        for estimator in ESTIMATORS:
            sizes, times = [], []
            for names in sets:
                generator = torch.Generator().manual_seed(options.seed)
                torch.manual_seed(options.seed)
                space = SearchSpace(num_channels=16, candidate_ops=names)
                supernet = PartSupernet(1, space, generator=generator).to(memory_format=torch.channels_last)
                with torch.no_grad():
                    supernet.arch.gamma[:, 0] += 100.0  # full width everywhere
                saved_bytes_and_seconds(supernet, estimator, generator)  # warm-up
                is_random = estimator == "sampled" and num_operators > 1
                repeats = options.samples // len(sets) if is_random else options.repeats
                runs = [saved_bytes_and_seconds(supernet, estimator, generator) for _ in range(repeats)]
                sizes.append(statistics.fmean(size for size, _ in runs))
                times.append(statistics.median(seconds for _, seconds in runs) if estimator != "sampled"
                             else statistics.fmean(seconds for _, seconds in runs))  # fmt: skip
            megabytes[estimator].append(statistics.fmean(sizes) / 1e6)
            milliseconds[estimator].append(statistics.fmean(times) * 1e3)
    result = {
        "num_operators": list(NUM_OPERATORS),
        "saved_megabytes": megabytes,
        "step_milliseconds": milliseconds,
        "growth": {name: values[-1] / values[0] for name, values in megabytes.items()},
        "step_time_mixture_over_sampled": milliseconds["mixture"][-1] / milliseconds["sampled"][-1],
    }
    rows = [
        [name, *(f"{mb:.0f} / {ms:.0f}" for mb, ms in zip(megabytes[name], milliseconds[name], strict=True)),
         f"{result['growth'][name]:.2f}"]
        for name in ESTIMATORS
    ]  # fmt: skip
    print_table(
        "kept for backward, MB / time of an architecture step, ms",
        ["estimator", *(f"{n} operators" for n in NUM_OPERATORS), "growth of memory"], rows,
    )  # fmt: skip
    print(f"mixture step over sampled step with 8 operators: {result['step_time_mixture_over_sampled']:.1f}x in time")
    print(write_result("estimator_memory", result, seeds=[options.seed], num_threads=options.threads))


if __name__ == "__main__":
    main()
