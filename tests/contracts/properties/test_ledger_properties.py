"""The ledger, whenever its writers were cut off: never negative, never twice, never more than the machine cost."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gpuyard.box.checkpoints import LocalStore
from gpuyard.formats.label import RunRef
from gpuyard.formats.ledger import Entry
from gpuyard.providers.base import Instance, State
from gpuyard.renting import ledger as ledgers
from gpuyard.renting.ledger import Ledger
from gpuyard.renting.notebook import Notebook

pytestmark = pytest.mark.long
RUN = "miniprover-0"
START = 1_800_000_000.0
PRICE, IDLE = 2.0, 0.25
EXAMPLES = settings(max_examples=60, deadline=None, database=None, derandomize=True, phases=[Phase.generate])


def instance(state: State, number: int = 1) -> Instance:
    return Instance(
        provider="vast",
        id=str(number),
        label=f"gpuyard/{RUN}/miniprover",
        ref=RunRef(RUN, "miniprover"),
        state=state,
        status_text="",
        region="NO",
        gpu_name="RTX 4090",
        gpu_count=1,
        gpu_ram_gb=24,
        market="interruptible",
        price_per_hour_usd=PRICE,
        idle_price_per_hour_usd=IDLE,
        created_at=START,
    )


# What commands see and do while the machine lives, and the seconds until the next of it.
LIVES = st.lists(st.tuples(st.sampled_from(["running", "running", "stopped"]), st.floats(1, 9000)), max_size=6)
ENDS = st.sampled_from(["ended", "gone", "preempted, then ended", "nobody looks"])


def costs(store: LocalStore, now: float) -> float:
    found = ledgers.entries(store, RUN)
    assert len({entry.place for entry in found}) == len(found)
    cost = sum(entry.cost_usd(now) for entry in found)
    assert cost >= 0
    return cost


@EXAMPLES
@given(LIVES, ENDS, st.floats(1, 50_000), st.integers(1, 3))
def test_any_prefix_of_what_commands_write_is_a_lower_bound(
    tmp_path_factory: pytest.TempPathFactory, life: list[tuple[str, float]], end: str, unseen_s: float, times: int
) -> None:
    """Each command may have been killed after its write, and another one may write the same again."""
    store = LocalStore(tmp_path_factory.mktemp("ledger"))
    clock = [START]
    ledger = Ledger(Notebook(lambda: store), now=lambda: clock[0])
    spent, price = 0.0, PRICE
    for _ in range(times):
        ledger.rented(instance(State.RUNNING))
    for what, seconds in life:
        for _ in range(times):
            if what == "running":
                ledger.running(instance(State.RUNNING))
            else:
                ledger.stopped(instance(State.STOPPED))
        price = PRICE if what == "running" else IDLE
        assert costs(store, clock[0]) == pytest.approx(spent)
        clock[0] += seconds
        spent += price * seconds / 3600
        assert costs(store, clock[0]) == pytest.approx(spent)
    # It is taken away, or ended, and a command notices that only later.
    died = clock[0]
    clock[0] += unseen_s
    for _ in range(times):
        if end == "gone":
            ledger.gone(RUN, [], ["vast"])
        elif end == "ended":
            ledger.ended(instance(State.RUNNING), asked_at=died)
        elif end == "preempted, then ended":
            ledger.ended(instance(State.PREEMPTED), asked_at=clock[0])
    if end == "nobody looks":
        return
    idle = IDLE * unseen_s / 3600 if end.startswith("preempted") else 0.0
    total = costs(store, clock[0] + 10**6)
    assert total <= spent + idle + 1e-9
    assert total == costs(store, clock[0] + 10**7), "what is over costs nothing more"
    if end == "ended":
        assert total == pytest.approx(spent)


@EXAMPLES
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["rented", "running", "stopped", "ended", "gone"]),
            st.floats(-5000, 5000),
            st.integers(1, 2),
        ),
        max_size=10,
    )
)
def test_clocks_of_several_controllers_make_nothing_negative(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, float, int]]
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("ledger"))
    clock, begun = [START], set()
    ledger = Ledger(Notebook(lambda: store), now=lambda: clock[0])
    for what, later_s, number in writes:
        clock[0] += later_s
        begun.add(number)
        if what == "gone":
            ledger.gone(RUN, [], ["vast"])
        elif what == "ended":
            ledger.ended(instance(State.RUNNING, number), asked_at=clock[0])
        else:
            state = State.STOPPED if what == "stopped" else State.RUNNING
            getattr(ledger, what)(instance(state, number))
        found = ledgers.entries(store, RUN)
        assert {entry.id for entry in found} <= {str(number) for number in begun}
        for entry in found:
            times = [change.time for change in entry.changes]
            assert times == sorted(times)
            assert 0 <= entry.cost_usd(START) <= entry.cost_usd(START + 10**5)


@EXAMPLES
@given(st.data())
def test_half_an_entry_is_none(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Stores write whole objects. What is half of one all the same is named, and counts nothing."""
    store = LocalStore(tmp_path_factory.mktemp("ledger"))
    Ledger(Notebook(lambda: store), now=lambda: START).rented(instance(State.RUNNING))
    (item,) = store.objects(f"{RUN}/")
    whole = store.get(item.key)
    cut = data.draw(st.integers(0, len(whole) - 1))
    store.put(item.key, whole[:cut])
    said: list[str] = []
    found: list[Entry] = ledgers.entries(store, RUN, said.append)
    assert found == [] and item.key in said[0]
