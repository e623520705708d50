"""Workloads: what is to be trained, with what, on what kind of machine, and what it may cost.

A workload is a YAML file. It is checked completely before anything is rented, and every mistake in it is reported with
file, line and key, all of them at once.
"""

from gpuyard.workload.reading import known_workloads
from gpuyard.workload.resolving import (
    Origin,
    Resolved,
    again,
    from_document,
    load_workload,
    parse_workload,
    resolve,
    to_document,
)
from gpuyard.workload.schema import Needs, Stage, Workload

__all__ = [
    "Needs",
    "Origin",
    "Resolved",
    "Stage",
    "Workload",
    "again",
    "from_document",
    "known_workloads",
    "load_workload",
    "parse_workload",
    "resolve",
    "to_document",
]
