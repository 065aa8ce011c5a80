"""Figures of studies for papers, from their rows: each function gives ``(figure, axes)``, and ``save`` writes a file.

The page of a study (``lipbridge.report``) is drawn by the same functions, in the colours of the page.
"""

from lipbridge.plot.ablation import ablation
from lipbridge.plot.certified import certified
from lipbridge.plot.frontier import frontier
from lipbridge.plot.scaling import scaling
from lipbridge.plot.style import require_matplotlib, require_suffix, save
from lipbridge.plot.tightness import tightness
from lipbridge.plot.training import history, training

__all__ = [
    "ablation",
    "certified",
    "frontier",
    "history",
    "require_matplotlib",
    "require_suffix",
    "save",
    "scaling",
    "tightness",
    "training",
]
