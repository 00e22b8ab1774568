"""Predicted latency: the sum of a network's operator calls in a table.

Called by `pipeline` for derived networks, whole or one part at a time.
"""

import math
from collections.abc import Iterable

from latency.table import LatencyTable
from ops import OpSpec


def predict_latency_ms(table: LatencyTable, specs: Iterable[OpSpec]) -> float:
    """Return the sum of the medians of `specs`, each counted as often as it occurs; 0.0 for none.

    Raises:
        KeyError: a spec has no row.
    """
    return math.fsum(table[spec] for spec in specs)
