"""Is a finding of the paper seen here? Decided by one rule, from paired differences over seeds.

Called by `report`. Both networks of a pair have the same seed, so the same patches, noise and steps; what is left
between them is the variant and chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.experiments.experiment import Claim, ValuesBySeed
from pipeline.experiments.intervals import Estimate

RULE = (
    "A claim is seen where the 95 % interval of the mean paired difference over seeds (Student's t) lies wholly above "
    "its threshold, 0 where none is given; not seen where it lies wholly below; not decided otherwise, and with one "
    "seed. Where the difference is a share of one of the two numbers, mean and interval are those of the logarithm of "
    "their ratio. A claim about the order of many architectures has a bootstrap interval over these instead. The "
    "finding is seen if all its claims are, not seen if one is not, and not decided otherwise; controls that the paper "
    "lacks do not count."
)
Verdict = Literal["seen", "not seen", "not decided"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of a claim.

    Attributes:
        claim: the claim.
        estimate: its number; None where the seeds do not tell.
        verdict: by `RULE`.
    """

    claim: Claim
    estimate: Estimate | None
    verdict: Verdict


def judge(claim: Claim, values: ValuesBySeed) -> Finding:
    """Judge a claim."""
    estimate = claim.estimate(values)
    verdict: Verdict = "not decided"
    if estimate is not None and estimate.low > claim.threshold:
        verdict = "seen"
    elif estimate is not None and estimate.high < claim.threshold:
        verdict = "not seen"
    return Finding(claim=claim, estimate=estimate, verdict=verdict)


def overall(findings: Sequence[Finding]) -> Verdict:
    """Return the verdict on the finding that several claims make up."""
    verdicts = {finding.verdict for finding in findings if finding.claim.is_papers}
    if verdicts == {"seen"}:
        return "seen"
    return "not seen" if "not seen" in verdicts else "not decided"
