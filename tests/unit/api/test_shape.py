"""The verbs of the api have one shape: a site, dataclasses in and out, a text for people (V1, X2)."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pytest

from gpuyard.api import account, closing, end, follow, hosts, instances, launch, logs, offers, resources, status
from gpuyard.api.site import Site
from gpuyard.providers.base import PlannedCall


def verbs() -> list[Callable[..., Any]]:
    """Return every public function that works at a site; the others only serve these."""
    found = []
    for module in (account, closing, end, follow, hosts, instances, launch, logs, offers, resources, status):
        own = [
            function
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == module.__name__ and not name.startswith("_")
        ]
        verbs_here = [function for function in own if Site in typing.get_type_hints(function).values()]
        assert verbs_here, module.__name__
        found += verbs_here
    return found


@pytest.mark.parametrize("verb", verbs(), ids=lambda verb: f"{verb.__module__}.{verb.__name__}")
def test_v1_every_verb_takes_a_site_and_returns_a_dataclass(verb: Callable[..., Any]) -> None:
    hints = typing.get_type_hints(verb)
    parameters = list(inspect.signature(verb).parameters.values())
    assert hints[parameters[0].name] is Site and verb.__doc__
    result = hints["return"]
    assert dataclasses.is_dataclass(result) and result.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert result.__doc__ and callable(result.to_dict)  # type: ignore[attr-defined]


def test_x2_what_check_mode_would_call_is_in_the_answer() -> None:
    call = PlannedCall("DELETE", "https://cloud.invalid/1")
    assert end.Change(True, planned=[call]).to_dict()["planned_calls"] == [
        {"method": "DELETE", "url": "https://cloud.invalid/1", "body": None}
    ]
    assert "planned_calls" not in end.Change(True).to_dict()
