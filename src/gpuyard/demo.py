"""``gpuyard demo``: the main job on two emulated clouds, told to somebody who sees it for the first time.

Each step uses what a user would use: the plays, the bucket, the sandbox's own report. A step that did not happen ends
the demonstration with the exit status 1 and a sentence that says what was missing.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpuyard import config, paths
from gpuyard.box.checkpoints import latest_manifest
from gpuyard.errors import GpuyardError
from gpuyard.options import OPTIONS
from gpuyard.play import Event, run_playbook
from gpuyard.providers.base import Instance, State
from gpuyard.renting import runs, survey, watch
from gpuyard.sandbox import client, lifecycle

RUN = "demo-0"
WORKLOAD = "miniprover"
# The machine is taken away in the search of this iteration, once this many sets of the search are in the bucket.
LOSE_IN_ITERATION = 0
LOSE_AFTER_SETS = 3
# What the user has configured for good (group_vars) is for the user's runs, not for this one.
UNSAID: dict[str, Any] = {
    **dict.fromkeys(
        ("provider", "workload", "run", "node", "offer", "box", "market", "gpu_name", "region", "rank"), ""
    ),
    **dict.fromkeys(("profile", "overrides", "stage", "from_stage", "until_stage"), ""),
    **dict.fromkeys(("iterations", "iteration", "lease_hours", "budget_usd")),
    **dict.fromkeys(
        (
            *("bucket", "ssh_key", "max_price_per_hour", "gpu_count", "gpu_ram_gb", "disk_gb", "reliability"),
            *("restore", "wait_s"),
        )
    ),
    **dict.fromkeys(("follow", "shutdown", "lose", "force", "keep_volumes", "update", "push"), False),
    "converge": "auto",
    "from_bundle": "auto",
    **dict.fromkeys(("state", "bundle", "run_options", "bucket_endpoint"), ""),
}
_BEAT_S = 5.0
_WIDTH = 100


def unsaid(verb: str) -> dict[str, Any]:
    """Return those of :data:`UNSAID` that the play ``verb`` takes."""
    return {name: value for name, value in UNSAID.items() if verb in OPTIONS[name]}


class DemoError(GpuyardError):
    """Something that the demonstration shows did not happen."""


class Teller:
    """Prints the story, and a sign of life whenever nothing was printed for a while."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = self._started
        self._busy, self._busy_since = "", self._started
        self._lock = threading.Lock()
        self._color = sys.stdout.isatty()
        threading.Thread(target=self._beat, daemon=True).start()

    def chapter(self, title: str) -> None:
        """Begin a chapter."""
        self._busy = ""
        rule = "─" * max(3, _WIDTH - len(title) - 12)
        text = f"── {title} {rule} {self.elapsed_s:4.0f} s"
        self._print(f"\n\033[1;36m{text}\033[0m\n" if self._color else f"\n{text}\n")

    def say(self, text: str) -> None:
        """Print one line or several."""
        for line in text.splitlines():
            self._print(f"   {line}".rstrip())

    def busy(self, what: str) -> None:
        """Say what goes on from now on, for the signs of life."""
        if what != self._busy:
            self._busy, self._busy_since = what, time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._started

    def _print(self, text: str) -> None:
        with self._lock:
            self._last = time.monotonic()
            print(text, flush=True)

    def _beat(self) -> None:
        while True:
            time.sleep(0.5)
            quiet = time.monotonic() - self._last
            if self._busy and quiet >= _BEAT_S:
                self.say(f"… {self._busy} ({time.monotonic() - self._busy_since:.0f} s)")


class Demo:
    """The demonstration, step by step."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.teller = Teller()
        self.searched_before: set[str] = set()

    # --- the steps ---

    def tell(self) -> None:
        """Run the whole story; raises :class:`GpuyardError` at the first step that fails."""
        say = self.teller.say
        self.teller.chapter("1. Two clouds on this machine")
        say("Clouds are emulated here: real HTTP APIs, prices and a bill; the machines are containers")
        say("with a real SSH server. gpuyard does here exactly what it does with the real ones.")
        self.teller.busy("starting the sandbox")
        lifecycle.up(self.state, say)
        self.control = client.Control(client.load(self.state))

        self.teller.chapter("2. Find the cheapest GPU that fits, rent it, bring it into shape, start training")
        self.play("launch", workload=WORKLOAD, run=RUN)
        first = self.machine()
        say(f"Training runs on {first.provider} {first.id}, {first.gpu_name} in {first.region}.")

        self.teller.chapter("3. Train: five stages an iteration, under tmux on the rented machine")
        self.follow_until_search_is_published(first)

        self.teller.chapter("4. The machine is lost in the middle of the search, without notice")
        self.control.preempt(run=RUN)
        self.control.fault("no-capacity", first.provider, 1000)
        say(f"{first.provider} has taken the machine away, and has nothing left to rent.")
        say("Only what is in the bucket is left: whole checkpoints, each with a manifest written last.")
        self.play("status")

        self.teller.chapter("5. Resume: another machine, the newest checkpoint, and on from there")
        self.play("resume_search")
        second = self.machine()
        if second.provider == first.provider:
            raise DemoError(f"The run should have moved to the other cloud, but is at {second.provider} again.")
        say(f"The run has moved from {first.provider} to {second.provider}: {second.gpu_name} in {second.region}.")
        self.follow_to_the_end(second)

        self.teller.chapter("6. The results")
        self.show_results()

        self.teller.chapter("7. Tear down, and the bill")
        self.play("teardown", run=RUN)
        self.show_bill()
        self.teller.chapter("Done")
        say(f"From nothing to trained, with one machine lost on the way, in {self.teller.elapsed_s:.0f} s.")
        say("Next:  source .venv/bin/activate;  ansible-playbook launch.yml -e sandbox=true")

    # --- plays ---

    def play(self, verb: str, **variables: str) -> None:
        """Run a play, showing tasks, what plugins print, and how long what changed took."""
        given = {**unsaid(verb), "sandbox": True, "sandbox_state": str(self.state), **variables}
        shown = " ".join(f"-e {name}={value}" for name, value in variables.items())
        self.teller.say(f"$ ansible-playbook {verb}.yml -e sandbox=true {shown}".rstrip())
        failures: list[str] = []

        def on_event(event: Event) -> None:
            match event.kind:
                case "task":
                    self.teller.busy(event.text)
                case "skipped":
                    # A slow moment after it must not look as if what it names were being done.
                    self.teller.busy(f"{verb}.yml goes on")
                case "line":
                    self.teller.say(event.text.removeprefix("  "))
                case "changed":
                    self.teller.say(f"✓ {event.text} ({event.seconds:.1f} s)")
                case "failed":
                    failures.append(event.text)

        code = run_playbook(verb, given, on_event=on_event, environment={"GPUYARD_HEARTBEAT": "0"})
        self.teller.busy("")
        if code:
            raise DemoError(f"{verb}.yml failed: {'; '.join(failures) or f'status {code}'}")

    # --- the machine and what it does ---

    def machine(self) -> Instance:
        """Return the run's one running machine."""
        providers = config.connect(sandbox=True, sandbox_state=self.state)
        running = [one for one in survey.find(providers, RUN) if one.state is State.RUNNING]
        if len(running) != 1:
            raise DemoError(f"Run {RUN} should have one running machine, but has {len(running)}.")
        return running[0]

    def progress(self, machine: Instance) -> Iterator[Mapping[str, Any]]:
        """Yield the run's progress records and tell each."""
        for record in watch.progress(machine, config.ssh_key()):
            self.teller.busy(f"{record.get('stage', 'the run')} goes on")
            if line := watch.tell(record):
                self.teller.say(line[:_WIDTH])
            yield record

    def follow_until_search_is_published(self, machine: Instance) -> None:
        """Watch until the search of the first iteration has a few checkpoints, and note what it has searched."""
        sets = 0
        searching = False
        for record in self.progress(machine):
            event = record.get("event")
            if event == "stage-start":
                searching = record["stage"] == "search" and record["iteration"] == LOSE_IN_ITERATION
            elif event == "published" and searching:
                sets += 1
                if sets >= LOSE_AFTER_SETS:
                    self.searched_before = set(self.results())
                    return
            elif event in ("end", "stage-end") and searching:
                break
        raise DemoError("The search ended before a few of its checkpoints were in the bucket.")

    def follow_to_the_end(self, machine: Instance) -> None:
        """Watch until the run ends, which must be a success."""
        state = ""
        for record in self.progress(machine):
            if record.get("event") == "end":
                state = str(record["state"])
        if state != "finished":
            raise DemoError(f"The run should have finished, but is {state or 'out of reach'}.")

    # --- what the bucket holds ---

    def published(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of the files of the newest checkpoint that people care for."""
        settings = config.s3_settings(sandbox=True, sandbox_state=self.state)
        store = runs.open_bucket(settings)
        manifest = latest_manifest(store, RUN) if store else None
        if store is None or manifest is None:
            raise DemoError("The bucket holds no checkpoint of the run.")
        for entry in manifest.files:
            if entry.path.startswith(("eval_results/", "trajectories/")) and entry.path.endswith((".json", ".jsonl")):
                yield entry.path, store.get(entry.key)

    def results(self) -> dict[str, str]:
        """Return ``{theorem: outcome}`` of the first iteration's search, as the newest checkpoint has it."""
        found: dict[str, str] = {}
        for path, content in self.published():
            if path == f"trajectories/iteration-{LOSE_IN_ITERATION}/results.jsonl":
                for line in content.decode().splitlines():
                    result = json.loads(line)
                    found[result["id"]] = result["outcome"]
        return found

    def show_results(self) -> None:
        """Show what was learnt, and that the search went on where it was."""
        after = self.results()
        kept = self.searched_before & set(after)
        if not self.searched_before or kept != self.searched_before:
            raise DemoError("What the first machine had searched is not in the results.")
        self.teller.say(
            f"Search of iteration {LOSE_IN_ITERATION}: {len(after)} theorems; {len(kept)} were found on the first "
            f"machine and not searched again, {len(after) - len(kept)} on the second."
        )
        reports = {path: json.loads(content) for path, content in self.published() if path.startswith("eval_results/")}
        if len(reports) < 2:
            raise DemoError(f"Two iterations should have been evaluated, but there are {len(reports)} reports.")
        # "untrained" sorts after "iteration-N", and came before them.
        for path, report in sorted(reports.items(), key=lambda item: ("iteration" in item[0], item[0])):
            self.teller.say(f"{path}: {report['summary']}")

    def show_bill(self) -> None:
        """Show the bill, on which nothing may go on accruing."""
        bill = self.control.status()["bill"]
        for line in bill["lines"]:
            self.teller.say(
                f"{line['provider']:<6} {line['id']:<38} {line['what']:<9} {line['seconds']:6.0f} s at "
                f"{line['price_per_hour_usd']:.4f} USD/h  {line['amount_usd']:9.6f} USD"
            )
        self.teller.say(f"total {bill['total_usd']:.5f} USD; still billing: {len(bill['billable'])}")
        if bill["billable"]:
            raise DemoError(f"Something still bills: {bill['billable']}")
        if bill["total_usd"] <= 0:
            raise DemoError("The bill should not be empty: two machines were rented.")


@contextmanager
def _own_home(home: Path) -> Iterator[Path]:
    """Keep keys, known hosts and the sandbox of the demonstration apart from the user's."""
    before = os.environ.get("GPUYARD_HOME")
    os.environ["GPUYARD_HOME"] = str(home)
    try:
        yield home
    finally:
        if before is None:
            del os.environ["GPUYARD_HOME"]
        else:
            os.environ["GPUYARD_HOME"] = before


def main() -> int:
    """Tell the story in a sandbox of its own, which is gone afterwards; return the exit status."""
    with _own_home(paths.home() / "demo") as home:
        state = home / "sandbox"
        lifecycle.down(state, lambda _: None)
        demo = Demo(state)
        try:
            demo.tell()
        except GpuyardError as error:
            print(f"\nThe demonstration did not succeed: {error}", file=sys.stderr)
            return 1
        finally:
            demo.teller.busy("")
            lifecycle.down(state, lambda _: None)
            shutil.rmtree(home, ignore_errors=True)
    return 0
