"""Table VIII: what the complexity regulariser counts, at matched strength.

arXiv 2502.13359, Sections III-C and IV-E. The same lambda (`search.complexity_weight` of the preset) weighs parameters,
multiply-adds or milliseconds in units of the cost of the uniform architecture, so that all three pull equally hard.
"""

from pipeline.experiments.experiment import CellJob, Claim, Column, Experiment, Values, Variant, compare
from pipeline.experiments.networks import COST_COLUMNS, PSNR
from pipeline.experiments.searches import (
    ENTROPY,
    GENOTYPE_FILE,
    measure_searched,
    regardless_of_cost,
    search_network,
)
from pipeline.search_inputs import predicted_ms
from search_space import Genotype

NONE = "none"
PREDICTED = Column(key="predicted_ms", title="predicted, ms")


def run(job: CellJob) -> Values:
    """Search with the variant's cost, retrain and score; predict milliseconds from the table.

    Raises:
        ValueError: the preset's `search.complexity_weight` is 0, so that there is nothing to compare.
    """
    strength = job.config.search.complexity_weight
    if strength == 0:
        raise ValueError("`search.complexity_weight` must be above 0 to compare regularisers, got 0")
    config = regardless_of_cost(job.config)
    if job.variant != NONE:
        config = config.with_settings({"search.complexity_weight": strength, "search.cost": job.variant})
    values = search_network(job, config)
    genotype = Genotype.load(job.folder / GENOTYPE_FILE)
    return values | {"predicted_ms": predicted_ms(job.table, genotype, config.latency.image_size)}


EXPERIMENT = Experiment(
    name="cost",
    title="parameters, multiply-adds or milliseconds as the regulariser (Table VIII)",
    description=(
        "Searches that differ in what the complexity regulariser counts, with the same lambda in units of the uniform"
        " architecture's cost; networks are retrained from scratch; same seeds, patches and steps. The paper's row "
        "without a regulariser is its network of Table IV."
    ),
    variants=(
        Variant(name=NONE, label="none",
                paper={"psnr_db": 40.12, "num_parameters": 8.01, "macs": 98.51, "measured_ms": 70.33}),
        Variant(name="parameters", label="parameters",
                paper={"psnr_db": 39.72, "num_parameters": 3.02, "macs": 57.28, "measured_ms": 64.27}),
        Variant(name="macs", label="multiply-adds",
                paper={"psnr_db": 39.65, "num_parameters": 4.26, "macs": 34.60, "measured_ms": 60.95}),
        Variant(name="latency", label="milliseconds",
                paper={"psnr_db": 39.66, "num_parameters": 4.51, "macs": 43.32, "measured_ms": 60.59}),
    ),
    columns=(PSNR, *COST_COLUMNS, PREDICTED, ENTROPY),
    claims=(
        Claim(text="counting milliseconds gives a faster network than counting parameters",
              estimate=compare("measured_ms", "parameters", "latency", relative=True), unit="of the latter's ms",
              paper=0.06),
        Claim(text="counting milliseconds gives a faster network than counting multiply-adds",
              estimate=compare("measured_ms", "macs", "latency", relative=True), unit="of the latter's ms", paper=0.01),
        Claim(text="counting parameters gives fewer parameters than counting milliseconds",
              estimate=compare("num_parameters", "latency", "parameters", relative=True),
              unit="of the latter's parameters", paper=0.49),
        Claim(text="counting multiply-adds gives fewer of them than counting milliseconds",
              estimate=compare("macs", "latency", "macs", relative=True), unit="of the latter's MACs", paper=0.25),
        Claim(text="a regulariser of milliseconds makes the network faster",
              estimate=compare("measured_ms", NONE, "latency", relative=True), unit="of the latter's ms", paper=0.16),
    ),
    run=run,
    measure=measure_searched,
    needs_prices=True,
)  # fmt: skip
