"""STAND-IN for a training program: its state is a hash chain, so that every step shows whether all before it were made.

``trainer.py prepare | train | export [--resume]``. It saves each file beside and renames it, saves its work when it is
told to end, and goes on from what it finds. Beside the persistent root, where no loss of a machine reaches, it writes a
trace: what it began with, each step, each save. It needs the standard library only, so that it starts within
milliseconds.
"""

import hashlib
import json
import os
import signal
import sys
import time

SAVE_EVERY = 4
WEIGHTS = (3, 40_000, 130_000)
"""The bytes of the files of the model."""


def uptime() -> float:
    """Return the seconds since the machine's boot, which no program's own clock changes."""
    with open("/proc/uptime") as file:
        return float(file.read().split()[0])


def after(chain: str, step: int) -> str:
    """Return the state after one more step."""
    return hashlib.sha256(f"{chain} {step}".encode()).hexdigest()


def states(iteration: int, steps: int) -> list[str]:
    """Return the states of an iteration: the one that it begins with, then that after each step."""
    chain = hashlib.sha256(f"iteration {iteration}".encode()).hexdigest()
    found = [chain]
    for step in range(1, steps + 1):
        found.append(chain := after(chain, step))
    return found


def weights(number: int, iteration: int, step: int) -> bytes:
    """Return one file of the model; its first line says of which step it is."""
    head = f"{number} {iteration} {step}\n".encode()
    word = hashlib.sha256(head).digest()
    return head + (word * (WEIGHTS[number] // len(word) + 1))[: WEIGHTS[number]]


def whole_lines(data: bytes) -> list[str]:
    """Return the states that a file of results holds: its whole lines, one a step, as far as they are in order."""
    found: list[str] = []
    for line in data.split(b"\n")[:-1]:
        words = line.decode(errors="replace").split()
        if len(words) != 2 or words[0] != str(len(found) + 1):
            break
        found.append(words[1])
    return found


def begins_at(state: dict[str, object], results: bytes, iteration: int) -> int:
    """Return the step from which a training goes on that finds this state and these results."""
    if state.get("iteration") != iteration or not isinstance(state["step"], int):
        return 0
    return min(state["step"], len(whole_lines(results)))


class Training:
    """One execution of one stage."""

    def __init__(self, stage: str, resume: bool) -> None:
        self.stage, self.resume = stage, resume
        self.iteration = int(os.environ["ITERATION"])
        self.root = os.environ["GPUYARD_PERSIST"]
        self.steps = int(os.environ["CHAOS_STEPS"])
        self.step_s = float(os.environ["CHAOS_STEP_S"])
        self.trace = os.open(os.environ["CHAOS_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.stopping = False

    def note(self, *words: object) -> None:
        """Write a line of the trace; its words are what, process, seconds, iteration, and then ``words``."""
        what, *rest = words
        line = [what, os.getpid(), f"{uptime():.2f}", self.iteration, *rest]
        os.write(self.trace, (" ".join(map(str, line)) + "\n").encode())

    def save(self, path: str, data: bytes) -> None:
        """Write a file beside its place and move it there."""
        place = os.path.join(self.root, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        beside = f"{place}.new"
        with open(beside, "wb") as out:
            out.write(data)
        os.rename(beside, place)

    def read(self, path: str) -> bytes:
        """Return a file's content, nothing where there is none."""
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def run(self) -> int:
        """Do the stage's work; return the exit code."""
        if self.stage == "prepare":
            self.save("data/table.bin", weights(1, 0, 0))
        elif self.stage == "export":
            state = json.loads(self.read(f"models/final-{self.iteration}.json") or b"{}")
            if state.get("step") != self.steps:
                print("the training before this is not there:", state)
                return 5
            self.save(f"results/export-{self.iteration}.json", json.dumps(state).encode())
        else:
            self.train()
            if self.stopping:
                return 0
        self.note("end", self.stage)
        return 0

    def train(self) -> None:
        """Go on from what is there, or begin."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stopping", True))
        results = f"results/train-{self.iteration}.txt"
        there, state = self.read(results), json.loads(self.read("models/state.json") or b"{}")
        step = begins_at(state, there, self.iteration) if self.resume else 0
        lines = whole_lines(there)[:step]
        self.note("begin", step)
        kept = "".join(f"{number} {line}\n" for number, line in enumerate(lines, start=1)).encode()
        if kept != there:
            self.save(results, kept)
        chain = lines[-1] if lines else states(self.iteration, 0)[0]
        with open(os.path.join(self.root, results), "ab", buffering=0) as out:
            while step < self.steps and not self.stopping:
                time.sleep(self.step_s)
                step, chain = step + 1, after(chain, step + 1)
                out.write(f"{step} {chain}\n".encode())
                self.note("step", step)
                if step % SAVE_EVERY == 0 or step == self.steps:
                    self.save_state(step, chain)
        if self.stopping:
            self.save_state(step, chain)

    def save_state(self, step: int, chain: str) -> None:
        """Save the model and, last, what says where it stands."""
        for number in range(len(WEIGHTS)):
            if step % (SAVE_EVERY * (number + 1)) == 0 or step == self.steps:
                self.save(f"models/weights-{number}.bin", weights(number, self.iteration, step))
        state = {"iteration": self.iteration, "step": step, "chain": chain}
        if step == self.steps:
            # What a later stage needs has a name of its own, which the next iteration does not write to.
            self.save(f"models/final-{self.iteration}.json", json.dumps(state).encode())
        self.save("models/state.json", json.dumps(state).encode())
        self.note("saved", step)


if __name__ == "__main__":
    sys.exit(Training(sys.argv[1], "--resume" in sys.argv).run())
