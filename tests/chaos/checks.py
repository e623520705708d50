"""What has to hold after each fault: of the bucket, of the disk, and of what the training program itself has seen."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpuyard.box.checkpoints import Manifest, MissingObjectError, Retention, Store
from gpuyard.box.checkpoints.listing import Listing, manifest_key, read_manifest
from gpuyard.box.stages.spec import BoxSpec
from gpuyard.formats import journal
from gpuyard.formats.manifest import JOURNAL

from . import trainer

Read = Callable[[str], bytes]
"""Returns a file's content, nothing where there is no such file."""


class WrongError(Exception):
    """Something that was promised does not hold."""


def demand(holds: bool, what: str) -> None:
    """Raise :class:`WrongError` that says ``what`` is wrong, unless ``holds``."""
    if not holds:
        raise WrongError(what)


@functools.cache
def states(iteration: int, steps: int) -> list[str]:
    """Return the states that an undisturbed training has, the first one and that after each step."""
    return trainer.states(iteration, steps)


def progress_in(read: Read, spec: BoxSpec) -> journal.Progress:
    """Return where a journal among some files says that the run stands."""
    return journal.fold(journal.parse(read(JOURNAL)), spec.order)


def check_files(read: Read, spec: BoxSpec, steps: int, where: str, *, published: bool) -> None:
    """Raise :class:`WrongError` unless the files are what training has at some moment, and the journal is true of them.

    What is ``published`` holds no half of a line.
    """
    for iteration in range(spec.iterations):
        right, data = states(iteration, steps), read(f"results/train-{iteration}.txt")
        lines = trainer.whole_lines(data)
        demand(lines == right[1 : len(lines) + 1], f"{where}: the results of iteration {iteration} are wrong")
        whole = sum(len(f"{number} {line}\n") for number, line in enumerate(lines, start=1))
        demand(not published or whole == len(data), f"{where}: train-{iteration}.txt holds half a line")
    if data := read("models/state.json"):
        state = json.loads(data)
        known = states(state["iteration"], steps)
        demand(state["chain"] == known[state["step"]], f"{where}: models/state.json is no state of the training")
    for number in range(len(trainer.WEIGHTS)):
        if data := read(f"models/weights-{number}.bin"):
            head = [int(word) for word in data.partition(b"\n")[0].split()]
            demand(data == trainer.weights(*head), f"{where}: models/weights-{number}.bin is damaged")
    for iteration, stage in progress_in(read, spec).done:
        if stage == "train":
            done = trainer.whole_lines(read(f"results/train-{iteration}.txt")) == states(iteration, steps)[1:]
        elif stage == "export":
            data = read(f"results/export-{iteration}.json")
            done = bool(data) and json.loads(data)["chain"] == states(iteration, steps)[-1]
        else:
            done = read("data/table.bin") == trainer.weights(1, 0, 0)
        demand(done, f"{where}: the journal calls {stage} of iteration {iteration} done, and its files are not there")


def goes_on_at(read: Read, spec: BoxSpec, steps: int) -> dict[int, int]:
    """Return for each iteration the step from which a training goes on that has these files; 0 before it began.

    A stage of which the journal does not know that it has begun begins: the journal of a set is older than its files.
    """
    progress, state = progress_in(read, spec), json.loads(read("models/state.json") or b"{}")
    found = {}
    for iteration in range(spec.iterations):
        entry = progress.at((iteration, "train"))
        saved = trainer.begins_at(state, read(f"results/train-{iteration}.txt"), iteration)
        found[iteration] = steps if entry.outcome == "done" else saved if entry.attempts else 0
    return found


def disk(root: Path) -> Read:
    """Return a reader of the files below a folder."""

    def read(path: str) -> bytes:
        try:
            return (root / path).read_bytes()
        except FileNotFoundError:
            return b""

    return read


def objects_of(store: Store, manifest: Manifest) -> Read:
    """Return a reader of the files of a set."""
    entries = {entry.path: entry for entry in manifest.files}

    def read(path: str) -> bytes:
        return store.get(entries[path].key) if path in entries else b""

    return read


@dataclass
class Bucket:
    """What has been seen of a run's sets: the bytes of each manifest, by number."""

    store: Store
    seen: dict[int, bytes] = field(default_factory=dict)

    def check(self, spec: BoxSpec, steps: int, retention: Retention) -> None:
        """Raise :class:`WrongError` when a set is damaged, has changed, or is gone though retention keeps it.

        A publisher may be at work meanwhile, so what is missing is looked for once more.
        """
        listing = Listing(self.store, spec.run)
        for number in listing.complete:
            try:
                self._check_set(number, spec, steps)
            except MissingObjectError as error:
                still = number in Listing(self.store, spec.run).complete
                demand(not still, f"checkpoint {number}: {error}")
        now = set(Listing(self.store, spec.run).complete)
        missing = retention.keeps({*self.seen, *now}) - now
        demand(not missing, f"checkpoints {sorted(missing)} were published, and are gone")

    def _check_set(self, number: int, spec: BoxSpec, steps: int) -> None:
        manifest = read_manifest(self.store, spec.run, number)
        data = self.store.get(manifest_key(spec.run, number))
        demand(self.seen.setdefault(number, data) == data, f"the manifest of checkpoint {number} has changed")
        for entry in manifest.files:
            if entry.link is None:
                content = self.store.get(entry.key)
                right = len(content) == entry.size and hashlib.sha256(content).hexdigest() == entry.sha256
                demand(right, f"checkpoint {number}: {entry.key} does not have its content")
        read = objects_of(self.store, manifest)
        check_files(read, spec, steps, f"checkpoint {number}", published=True)

    def newest(self, spec: BoxSpec) -> Manifest | None:
        """Return the newest set."""
        numbers = Listing(self.store, spec.run).complete
        return read_manifest(self.store, spec.run, numbers[0]) if numbers else None


@dataclass(frozen=True)
class Line:
    """One line of the trace. ``who`` is a process, 0 for the faults' own lines; ``at`` is in seconds since the boot."""

    what: str
    who: int
    at: float
    iteration: int
    rest: tuple[str, ...]


def trace(file: Path) -> Iterator[Line]:
    """Yield the lines of a trace."""
    text = file.read_text() if file.exists() else ""
    for line in text.split("\n")[:-1]:
        what, who, at, iteration, *rest = line.split()
        yield Line(what, int(who), float(at), int(iteration), tuple(rest))


@dataclass
class Recovery:
    """How it went on after a fault: the seconds to the next step of the training, and how many were made again."""

    seconds: float | None = None
    repeated: int = 0


def check_trace(file: Path, done: Collection[journal.Position]) -> dict[int, Recovery]:
    """Raise :class:`WrongError` when the training did what it must not; return how it went on after each fault.

    It must not run twice at a time, not begin before what was saved (on a lost disk: published), and have ended each
    stage that the journal calls ``done``.
    """
    saved: dict[int, int] = {}
    reached: dict[int, int] = {}
    over: set[int] = set()
    ended: set[tuple[int, str]] = set()
    at_work = 0
    fault, struck = 0, 0.0
    since: list[int] = []  # the faults since the training last began, and from the last loss of a disk on
    found: dict[int, Recovery] = {}
    for line in trace(file):
        if line.who and line.who != at_work:
            demand(line.who not in over, f"process {line.who} trains beside process {at_work}")
            over.add(at_work)
            at_work = line.who
        if line.what == "fault":
            fault, struck = int(line.rest[0]), line.at
            found[fault] = Recovery()
            since.append(fault)
        elif line.what == "lost":
            since = [fault]
            saved[line.iteration] = int(line.rest[0])
        elif line.what == "begin":
            step, floor = int(line.rest[0]), saved.get(line.iteration, 0)
            demand(step >= floor, f"iteration {line.iteration} begins at step {step}, and step {floor} was saved")
            if since:
                found[since[0]].repeated = max(0, reached.get(line.iteration, 0) - step)
                since = []
            reached[line.iteration] = step
        elif line.what == "step":
            reached[line.iteration] = int(line.rest[0])
            if fault and found[fault].seconds is None:
                found[fault].seconds = line.at - struck
        elif line.what == "saved":
            saved[line.iteration] = int(line.rest[0])
        elif line.what == "end":
            ended.add((line.iteration, line.rest[0]))
    for place in done:
        demand(place in ended, f"the journal calls {place[1]} of iteration {place[0]} done, and it has not ended")
    return found
