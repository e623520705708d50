"""STAND-IN for PyTorch: it saves and loads dictionaries, and its numbers are all the same one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Tensor:
    """A number that every computation leaves as it is."""

    def __sub__(self, other: Any) -> Tensor:
        return self

    def sum(self, **words: Any) -> Tensor:
        return self

    pow = mean = lambda self, *words: self

    def backward(self) -> None:
        """Do nothing."""

    def item(self) -> float:
        return 0.5


class _Stateful:
    def __init__(self, *words: Any, **options: Any) -> None:
        self.state: dict[str, int] = {"steps": 0}

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs

    def parameters(self) -> list[Tensor]:
        return []

    def zero_grad(self) -> None:
        """Do nothing."""

    def step(self) -> None:
        self.state["steps"] += 1

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.state = state


nn = SimpleNamespace(Linear=_Stateful)
optim = SimpleNamespace(Adam=_Stateful)


def manual_seed(seed: int) -> None:
    """Do nothing."""


def randn(*shape: int) -> Tensor:
    return Tensor()


def save(state: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(state))


def load(path: Path, *, weights_only: bool) -> Any:
    return json.loads(path.read_text())
