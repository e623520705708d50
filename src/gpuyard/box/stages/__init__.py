"""The stage runner: what runs a workload's stages on the rented box, under tmux, with a journal.

Python 3.10 or newer and the standard library. ``python -m gpuyard.box.stages --help`` shows its commands.
"""

from __future__ import annotations

from gpuyard.box.stages.spec import BoxSpec, Stage, load_spec
from gpuyard.formats.journal import Journal, Progress, fold, summary

__all__ = ["BoxSpec", "Journal", "Progress", "Stage", "fold", "load_spec", "summary"]
