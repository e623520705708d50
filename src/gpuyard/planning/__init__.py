"""Everything about a run that can be known before it costs money, and every reason not to start it."""

from gpuyard.planning.plan import Checked, Plan, check, make
from gpuyard.planning.request import Connections, Mode, PlanRequest

__all__ = ["Checked", "Connections", "Mode", "Plan", "PlanRequest", "check", "make"]
