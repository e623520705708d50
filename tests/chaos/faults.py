"""What strikes a world: each fault is a function that does it, and returns in words what it did."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from gpuyard.box.stages.runner import is_running

from . import checks
from .checks import WrongError, demand
from .world import STEPS, World, filled

# The time in which a random moment lies: a machine trains, publishes and ends a stage in it.
_MOMENTS_S = 0.4
_AT_THE_BEGINNING = 0.3
_OUTAGE_S = (0.1, 1.2)
_CLOCKS_S = (-86_400, -7_200, -300, -5, 0, 5, 300, 7_200, 86_400)


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what does it, how often it is drawn, and where it can be had (``folder``, ``s3``,
    ``mounts``)."""

    strike: Callable[[World], str]
    weight: int
    needs: tuple[str, ...] = ()


def _strike_at_work(world: World, most: float = _MOMENTS_S) -> str:
    """Have a runner at work, and return at a random moment: of its beginning, or after the program did something."""
    seconds, begins = world.random.uniform(0, most), world.random.random() < _AT_THE_BEGINNING
    world.running()
    if not begins:
        world.wait_for_work()
    time.sleep(seconds)
    world.note_fault()
    return f"{seconds:.2f} s after {'its start' if begins else 'some work'}"


def stage_killed(world: World) -> str:
    """The stage's processes are killed, or only the program and not its shell; the runner lives."""
    _strike_at_work(world)
    words = world.random.choice(("trainer.py", "bash"))
    life, killed = world.running(), list[int]()
    while not killed and life.poll() is None:
        killed = world.members(words)
    world.kill(*killed)
    return f"{len(killed)} processes"


def runner_killed(world: World) -> str:
    """The runner is killed at a random moment; its stage lives on."""
    said = _strike_at_work(world)
    life = world.running()
    world.kill(life.pid)
    life.wait()
    world.life = None
    return said


def runner_killed_at_a_write(world: World) -> str:
    """The runner is killed exactly before a random change of the persistent root: journal, caches, links, logs."""
    world.stop()
    world.extend()
    number = world.random.randint(1, 40)
    world.life = world.start("stages", "run", killed_at=(number, world.machine.root))
    code = world.wait_for_end(world.life)
    world.note_fault()
    world.life = None
    return f"before change {number}" if code == -signal.SIGKILL else f"it ended before change {number}"


def publisher_killed(world: World) -> str:
    """The publisher is killed, with its runner, exactly before or after a random request to the bucket."""
    world.stop()
    world.extend()
    number = world.random.randint(1, 60)
    if world.proxy is None:
        world.life = world.start("stages", "run", killed_at=(number, world.store_folder))
        said = f"before change {number} of the bucket"
    else:
        world.life = world.start("stages", "run")
        said = _kill_at_a_request(world, world.life, number)
    code = world.wait_for_end(world.life)
    world.note_fault()
    _let_pass(world)
    world.life = None
    return said if code == -signal.SIGKILL else f"it ended before {number} changes"


def _kill_at_a_request(world: World, process: subprocess.Popen[bytes], number: int) -> str:
    proxy, left, before = world.proxy, [number], world.random.random() < 0.5
    assert proxy is not None  # only where the bucket is a server

    def look() -> None:
        with proxy.lock:
            left[0] -= 1
            if left[0] == 0:
                world.kill(process.pid)

    if before:
        proxy.before = look
    else:
        proxy.after = look
    return f"{'before' if before else 'after'} request {number}"


def _let_pass(world: World) -> None:
    if world.proxy is not None:
        world.proxy.before = world.proxy.after = lambda: None


def machine_lost(world: World) -> str:
    """Everything is killed without notice, and the disk is gone; a new machine restores."""
    said = _strike_at_work(world)
    world.kill_all()
    world.note_loss()
    world.new_machine()
    world.restore()
    return said


def restore_killed(world: World) -> str:
    """As a loss, and the restore on the new machine is killed as well, up to three times, before it gets through."""
    _strike_at_work(world)
    world.kill_all()
    world.note_loss()
    world.new_machine()
    times = world.random.randint(1, 3)
    for _ in range(times):
        number = world.random.randint(1, 40)
        if world.proxy is None:
            restoring = world.start("checkpoints", "restore", killed_at=(number, world.machine.root))
        else:
            restoring = world.start("checkpoints", "restore")
            _kill_at_a_request(world, restoring, number)
        world.wait_for_end(restoring)
        _let_pass(world)
    world.restore()
    return f"{times} times"


def _notice(world: World, seconds: float) -> str:
    """The machine is told that it ends: it is stopped in good order, and gone after that time."""
    _strike_at_work(world)
    told = time.monotonic()
    stopping = world.start("stages", "stop", "--wait", str(seconds))
    world.wait("the end of the notice", lambda: stopping.poll() is not None or time.monotonic() > told + seconds)
    took = time.monotonic() - told
    world.kill_all()
    stopping.wait()
    saved = world.saved(stopping)
    here = checks.goes_on_at(checks.disk(world.machine.root), world.spec, STEPS)
    there = world.note_loss()
    demand(not saved or there == here, f"stop says that all is saved, and the bucket has {there} of {here}")
    world.new_machine()
    world.restore()
    return f"ended after {took:.1f} s, {'all saved' if saved else 'not all saved'}"


def notice_of_5_s(world: World) -> str:
    """The machine is gone five seconds after a notice."""
    return _notice(world, 5)


def notice_of_30_s(world: World) -> str:
    """The machine is gone thirty seconds after a notice, or when it has ended in good order."""
    return _notice(world, 30)


def disk_full(world: World) -> str:
    """There is no byte free on the machine's disk for a while."""
    _strike_at_work(world)
    seconds = world.random.uniform(*_OUTAGE_S)
    with filled(world.machine.root / ".gpuyard" / "tmp"):
        time.sleep(seconds)
    return f"for {seconds:.1f} s"


def clock_set(world: World) -> str:
    """The machine begins again with another clock, which is not that of the disk where its files lie."""
    _strike_at_work(world)
    world.kill_all()
    world.clock_ahead_s = world.random.choice(_CLOCKS_S)
    return f"{world.clock_ahead_s:+d} s"


def tmux_killed(world: World) -> str:
    """The tmux server in which the runner lives is killed."""
    world.stop()
    world.extend()
    demand(world.wait_for_end(world.start("stages", "start")) == 0, "the session does not start")
    time.sleep(world.random.uniform(0, _MOMENTS_S))
    world.note_fault()
    servers = world.members("new-session")
    world.kill(*servers)
    world.wait("the end of the runner without tmux", lambda: not is_running(world.spec))
    return f"{len(servers)} server"


def monitor_killed(world: World) -> str:
    """The monitor beside the runner is killed."""
    world.stop()
    world.monitored = True
    world.describe()
    life, killed = world.running(), list[int]()
    try:
        while not killed and life.poll() is None:
            killed = world.members("gpuyard.box.monitor")
        world.note_fault()
        world.kill(*killed)
    finally:
        world.monitored = False
        world.describe()
    return f"{len(killed)} process"


def _bucket_fault(fault: str) -> Callable[[World], str]:
    def strike(world: World) -> str:
        assert world.proxy is not None  # only where the bucket is a server
        _strike_at_work(world)
        seconds = world.random.uniform(*_OUTAGE_S)
        world.proxy.fault = fault
        try:
            time.sleep(seconds)
            if world.random.random() < 0.5:
                # The bucket is as it is while the runner is lost.
                world.kill_all()
        finally:
            world.proxy.fault = ""
        return f"for {seconds:.1f} s"

    strike.__doc__ = f"The bucket's server: {fault}, for a while; sometimes everything is killed meanwhile."
    return strike


def bucket_gone(world: World) -> str:
    """The folder that is the bucket is not there for a while, as with a network disk."""
    _strike_at_work(world)
    seconds = world.random.uniform(*_OUTAGE_S)
    inside, aside = world.store_folder / "b", world.store_folder / "aside"
    if not inside.is_dir():
        return "before there was anything in it"
    inside.rename(aside)
    try:
        try:
            inside.touch()
        except FileExistsError:
            raise WrongError("a bucket that is gone is made anew") from None
        time.sleep(seconds)
    finally:
        if inside.is_file():
            inside.unlink()
        aside.rename(inside)
    return f"for {seconds:.1f} s"


def bucket_full_folder(world: World) -> str:
    """The disk on which the bucket's folder lies is full for a while."""
    _strike_at_work(world)
    seconds = world.random.uniform(*_OUTAGE_S)
    with filled(world.store_folder):
        time.sleep(seconds)
    return f"for {seconds:.1f} s"


KINDS: dict[str, Kind] = {
    "stage killed": Kind(stage_killed, 3),
    "runner killed": Kind(runner_killed, 4),
    "runner killed at a write": Kind(runner_killed_at_a_write, 4),
    "publisher killed": Kind(publisher_killed, 6),
    "machine lost": Kind(machine_lost, 5),
    "restore killed": Kind(restore_killed, 3),
    "notice of 5 s": Kind(notice_of_5_s, 2),
    "notice of 30 s": Kind(notice_of_30_s, 2),
    "tmux killed": Kind(tmux_killed, 1),
    "monitor killed": Kind(monitor_killed, 1),
    "disk full": Kind(disk_full, 2, ("mounts",)),
    "clock set": Kind(clock_set, 2),
    "bucket gone": Kind(bucket_gone, 2, ("folder",)),
    "bucket full": Kind(bucket_full_folder, 2, ("folder", "mounts")),
    "bucket slow": Kind(_bucket_fault("slow"), 2, ("s3",)),
    "bucket answers 500": Kind(_bucket_fault("errors"), 2, ("s3",)),
    "bucket down": Kind(_bucket_fault("down"), 2, ("s3",)),
    "bucket cuts connections": Kind(_bucket_fault("cut"), 2, ("s3",)),
    "bucket takes nothing": Kind(_bucket_fault("full"), 2, ("s3",)),
}


def drawn(world_number: int, seed: str, count: int, there: set[str]) -> tuple[str, ...]:
    """Return the kinds of faults of a world, as its seed says, of those that ``there`` lets be had."""
    kinds = {name: kind for name, kind in KINDS.items() if set(kind.needs) <= there}
    chance = random.Random(f"{seed}/{world_number}/kinds")
    return tuple(chance.choices(list(kinds), [kind.weight for kind in kinds.values()], k=count))
