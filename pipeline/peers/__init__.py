"""Two other architecture searches for denoisers, re-made at our scale: CLEARER's and HiNAS's spaces.

Compared with the searched networks at equal noise, patches and seconds; Table III of arXiv 2502.13359.
"""

from pipeline.peers.clearer import ClearerNetwork, ClearerSupernet
from pipeline.peers.clearer_space import ClearerGenotype, ClearerSpace, sample_clearer
from pipeline.peers.darts import DartsResult, DartsSettings, search_darts
from pipeline.peers.hinas import HinasNetwork, HinasSupernet
from pipeline.peers.hinas_space import HinasGenotype, HinasSpace, sample_hinas

__all__ = [
    "ClearerGenotype",
    "ClearerNetwork",
    "ClearerSpace",
    "ClearerSupernet",
    "DartsResult",
    "DartsSettings",
    "HinasGenotype",
    "HinasNetwork",
    "HinasSpace",
    "HinasSupernet",
    "sample_clearer",
    "sample_hinas",
    "search_darts",
]
