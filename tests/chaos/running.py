"""One run of chaos after another: strikes, checks after each, and the figures of it."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import faults
from .checks import WrongError
from .world import World, adopt_orphans, isolate_mounts

_PER_WORLD = 10
# Every so many runs has a real S3 server as its bucket, beginning with the second; the others have a folder.
_S3_EVERY = 5
_has_mounts = False


@dataclass(frozen=True)
class Setting:
    """What a world is made of: its number, how many faults strike it, and the number of the first one."""

    number: int
    seed: str
    count: int
    first: int
    folder: str = ""
    s3_endpoint: str = ""


@dataclass
class Struck:
    """One fault: its number, what it was, what was done, and how the training went on."""

    number: int
    kind: str
    note: str
    seconds: float | None = None
    repeated: int = 0


@dataclass
class Result:
    """How one world ended; ``problem`` says what did not hold, "" when all did."""

    world: int
    store: str
    faults: list[Struck] = field(default_factory=list)
    seconds: float = 0.0
    problem: str = ""
    folder: str = ""
    missing: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The number of the fault after which it was found."""
        return self.faults[-1].number if self.faults else 0

    def as_document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def settings(faults: int, seed: str) -> list[Setting]:
    """Return the worlds in which so many faults strike, some ten in each."""
    worlds = -(-faults // _PER_WORLD)
    counts = [faults // worlds + (number < faults % worlds) for number in range(worlds)]
    return [Setting(number, seed, count, 1 + sum(counts[:number])) for number, count in enumerate(counts)]


def prepare() -> None:
    """Make this process one that can run worlds."""
    global _has_mounts
    _has_mounts = isolate_mounts()
    adopt_orphans()


def run(setting: Setting) -> Result:
    """Run one world to its end, or to the first thing that is wrong."""
    on_s3 = bool(setting.s3_endpoint) and setting.number % _S3_EVERY == 1
    there = {"s3" if on_s3 else "folder"}
    there |= {"mounts"} if _has_mounts else set()
    kinds = faults.drawn(setting.number, setting.seed, setting.count, there)
    folder = Path(setting.folder)
    world = World(
        setting.number, setting.seed, folder, s3_endpoint=setting.s3_endpoint if on_s3 else "", mounts=_has_mounts
    )
    result = Result(setting.number, "S3" if on_s3 else "folder", folder=setting.folder)
    result.missing = [name for name, kind in faults.KINDS.items() if set(kind.needs) - there - {"s3", "folder"}]
    began = time.monotonic()
    try:
        for position, kind in enumerate(kinds):
            struck = Struck(setting.first + position, kind, "")
            result.faults.append(struck)
            world.fault = struck.number
            struck.note = faults.KINDS[kind].strike(world)
            _tell(result, world)
            print(
                f"fault {struck.number:>4}, run {setting.number:>3} ({result.store}): {kind}: {struck.note}", flush=True
            )
        world.finish()
        _tell(result, world)
    except WrongError as error:
        result.problem = str(error)
    except Exception as error:  # a mistake of these tests must not end the others' runs
        result.problem = f"{type(error).__name__}: {error}"
    finally:
        if result.problem:
            print(f"fault {result.last:>4}, run {setting.number:>3}: WRONG: {result.problem}", flush=True)
            # Its disk ends with this process.
            shutil.copytree(world.machine.root, folder / "kept", symlinks=True, dirs_exist_ok=True)
        world.close()
        result.seconds = round(time.monotonic() - began, 1)
        if not result.problem:
            world.clear()
    return result


def _tell(result: Result, world: World) -> None:
    found = world.check()
    for struck in result.faults:
        if struck.number in found:
            recovery = found[struck.number]
            struck.seconds = None if recovery.seconds is None else round(recovery.seconds, 2)
            struck.repeated = recovery.repeated


def table(results: list[Result]) -> str:
    """Return the table of all faults, by kind."""
    rows = [
        f"\n{'fault':<26} {'times':>5} {'recovered':>9} {'steps again, at most':>21} {'seconds, median':>16} "
        f"{'worst':>6}"
    ]
    struck = [one for result in results for one in result.faults]
    bad = {result.last for result in results if result.problem}
    for kind in dict.fromkeys([*faults.KINDS, *(one.kind for one in struck)]):
        here = [one for one in struck if one.kind == kind]
        if here:
            seconds = sorted(one.seconds for one in here if one.seconds is not None)
            median, worst = (seconds[len(seconds) // 2], seconds[-1]) if seconds else (0.0, 0.0)
            recovered = sum(one.number not in bad for one in here)
            again = max(one.repeated for one in here)
            rows.append(f"{kind:<26} {len(here):>5} {recovered:>9} {again:>21} {median:>16.2f} {worst:>6.1f}")
    return "\n".join(rows)
