"""What a collection of architectures prefers: statistics, figures, the paper's guidelines, and a report.

Called by `pipeline.commands`; reads the data set that `pipeline.records` describes. "Denoising Designs-inherited Search
Framework for Image Denoising", arXiv 2502.13359, Section IV-F.
"""

from pipeline.study.analyze import Study, analyze
from pipeline.study.guidelines import Answer

__all__ = ["Answer", "Study", "analyze"]
