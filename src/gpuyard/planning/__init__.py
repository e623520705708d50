"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from gpuyard.planning.plan import Plan, make
from gpuyard.planning.request import Mode, PlanRequest

__all__ = ["Mode", "Plan", "PlanRequest", "make"]
