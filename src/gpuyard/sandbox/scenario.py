"""What is to go wrong, as somebody writes it: one fault, or a scenario file with several."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gpuyard.errors import UsageError
from gpuyard.sandbox.faults import KINDS, Place
from gpuyard.sandbox.model import Fault, ProviderName

MOST_TIMES = 10_000


class FaultRequest(BaseModel):
    """Something that is to go wrong (docs: What can go wrong in the sandbox). Times are seconds from now."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    provider: ProviderName
    count: int | None = Field(default=None, ge=1, le=MOST_TIMES)
    place: Place | None = None
    after_s: float = Field(default=0, ge=0, le=366 * 86_400)
    for_s: float | None = Field(default=None, gt=0, le=366 * 86_400)
    chance: float = Field(default=1, gt=0, le=1)
    seed: int = 0

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"there is no fault of this name, only {', '.join(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _of_requests(self) -> Self:
        if self.place is not None and not KINDS[self.kind].place:
            raise ValueError(f"{self.kind} strikes no requests that could be chosen, so leave out place")
        return self

    def fault(self, now: float) -> Fault:
        """Return it as the sandbox keeps it, from ``now`` on the clouds' clock."""
        begins = now + self.after_s
        return Fault(
            self.kind,
            self.provider,
            self.count or (1 if self.for_s is None else MOST_TIMES),
            place=self.place or "",
            from_time=begins,
            until_time=None if self.for_s is None else begins + self.for_s,
            chance=self.chance,
            seed=self.seed,
        )


class Scenario(BaseModel):
    """A bad day: how far the clouds' clock is set forward first, and what goes wrong."""

    model_config = ConfigDict(extra="forbid")

    advance_s: float = Field(default=0, ge=0, le=366 * 86_400)
    faults: list[FaultRequest] = Field(default_factory=list)


def read(file: Path) -> Scenario:
    """Return a scenario file's content; :class:`UsageError` names the file and everything that is wrong in it."""
    try:
        return Scenario.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise UsageError(f"The scenario {file} is not one: {wrong(error)}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UsageError(f"The scenario {file} cannot be read: {reason}.") from None


def wrong(error: ValidationError) -> str:
    """Return what is wrong, in one line."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'all of it'}: {item['msg'].removeprefix('Value error, ')}"
        for item in error.errors()
    )
