"""Two other architecture searches for denoisers, re-made at our scale: CLEARER's and HiNAS's spaces.

The experiment `nas` compares them with our search, which sees as many patches; Table III of arXiv 2502.13359.
"""

from pipeline.peers.clearer import ClearerNetwork, ClearerSupernet
from pipeline.peers.clearer_space import ClearerGenotype, ClearerSpace
from pipeline.peers.darts import DartsSettings, search_darts
from pipeline.peers.hinas import HinasNetwork, HinasSupernet
from pipeline.peers.hinas_space import HinasGenotype, HinasSpace

__all__ = [
    "ClearerGenotype",
    "ClearerNetwork",
    "ClearerSpace",
    "ClearerSupernet",
    "DartsSettings",
    "HinasGenotype",
    "HinasNetwork",
    "HinasSpace",
    "HinasSupernet",
    "search_darts",
]
