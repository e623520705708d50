"""What the sandbox remembers, and how it is kept over a restart.

One JSON file, replaced in one step after every change, holds all rentals and holdings with their bill lines, the
accounts' SSH keys and the pending faults. Times are seconds since 1970, prices US dollars per hour.
"""

from __future__ import annotations

import enum
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from gpuyard.files import write_whole
from gpuyard.sandbox.documents import MALFORMED, VERSION, damaged, known, read_document

ProviderName = Literal["vast", "vultr", "lambda", "runpod"]
SSH = 22
"""The port on which a box's SSH server listens, inside."""
Json = dict[str, Any]
"""A JSON object as it stands on the wire; its fields are the providers' business."""


class Phase(enum.StrEnum):
    """What a rental does, in the sandbox's own words; each API renders it in its provider's words."""

    BOOTING = "booting"
    RUNNING = "running"
    EXITED = "exited"  # its processes ended by themselves, and nobody stopped it
    STOPPED = "stopped"
    FAILED = "failed"
    GONE = "gone"  # destroyed, or taken away; only its bill lines remain


@dataclass(slots=True)
class Line:
    """One thing on the bill: it costs ``price_per_hour_usd`` from ``start`` to ``end`` (``None``: until now)."""

    what: str
    price_per_hour_usd: float
    start: float
    end: float | None = None
    monthly_cap_usd: float | None = None


class Billed:
    """Something that costs, by its lines on the bill."""

    __slots__ = ()
    lines: list[Line]

    def open_line(self, what: str, price_per_hour_usd: float, now: float, cap: float | None = None) -> None:
        """Begin to charge for ``what``."""
        self.lines.append(Line(what, price_per_hour_usd, now, monthly_cap_usd=cap))

    def close_lines(self, now: float, what: str | None = None) -> None:
        """Stop charging for ``what``, or for everything."""
        for line in self.lines:
            if line.end is None and what in (None, line.what):
                line.end = now


@dataclass(slots=True)
class Rental(Billed):
    """A rented machine and the container that stands for it."""

    provider: ProviderName
    id: str
    item: str  # Vast: machine number; Vultr: plan; Lambda, RunPod: type
    region: str
    label: str
    container: str
    image: str
    address: str  # on loopback; "": none is free, so the box gets one of its own when it starts
    ports: dict[str, int]  # container port (JSON wants text) -> port on `address`
    created_at: float
    phase: Phase
    phase_since: float
    boot: Literal["rent", "start", "reboot"] = "rent"
    intended: Literal["running", "stopped"] = "running"
    preempted: bool = False
    suspended: bool = False
    made: bool = True  # its container is whole; until then it is made anew at the next start
    bridged: bool = False  # `address` is the container's own, on the sandbox's network
    relet: bool = False  # the GPU went to somebody else: a start is queued
    status_text: str = ""
    ended_at: float | None = None
    public_keys: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    disk_gb: float = 0.0
    bid: float | None = None
    item_record: Json = field(default_factory=dict)  # the catalogue's record at the time of renting
    request: Json = field(default_factory=dict)  # what the create call said
    mounts: dict[str, str] = field(default_factory=dict)  # a holding's id -> where it lies in the box
    lines: list[Line] = field(default_factory=list)

    @property
    def user(self) -> str:
        """Who logs in."""
        if self.provider == "lambda":
            return "ubuntu"
        return "linuxuser" if self.request.get("user_scheme") == "limited" else "root"

    @property
    def home(self) -> str:
        """That user's home."""
        return "/root" if self.user == "root" else f"/home/{self.user}"


@dataclass(slots=True)
class Holding(Billed):
    """What an account holds beside rentals: a volume, a file system, a stored variable."""

    provider: ProviderName
    kind: str  # "volume", "filesystem", "variable"
    id: str
    label: str  # its name at the provider
    created_at: float
    region: str = ""
    size_gb: float = 0.0
    ended_at: float | None = None  # only its bill lines remain
    item_record: Json = field(default_factory=dict)  # what only its provider's API shows of it
    lines: list[Line] = field(default_factory=list)


@dataclass(slots=True)
class SshKey:
    """A public key on an account."""

    id: str
    name: str
    public: str
    created_at: float


@dataclass(slots=True)
class Fault:
    """Something that is to go wrong ``remaining`` more times (:mod:`gpuyard.sandbox.faults`)."""

    kind: str
    provider: ProviderName
    remaining: int
    place: str = ""  # which requests; "": the kind's own
    from_time: float = 0.0  # on the clouds' clock
    until_time: float | None = None
    chance: float = 1.0
    seed: int = 0
    seen: int = 0  # how many requests it could have struck


@dataclass(slots=True)
class World:
    """Everything the sandbox remembers."""

    rentals: list[Rental] = field(default_factory=list)
    keys: dict[str, list[SshKey]] = field(default_factory=lambda: {name: [] for name in get_args(ProviderName)})
    faults: list[Fault] = field(default_factory=list)
    counter: int = 0  # never falls: numbers, addresses and offer ids are not used twice
    listings: dict[str, int] = field(default_factory=dict)  # Vast machine -> how often it was listed anew
    holdings: list[Holding] = field(default_factory=list)
    clock_ahead_s: float = 0.0  # how far the clouds' clock was set forward

    def next_number(self) -> int:
        """Return a number that was never returned before."""
        self.counter += 1
        return self.counter

    def living(self, provider: ProviderName) -> list[Rental]:
        """Return the provider's rentals that its API still shows."""
        return [rental for rental in self.rentals if rental.provider == provider and rental.phase is not Phase.GONE]

    def find(self, provider: ProviderName, rental_id: str) -> Rental | None:
        """Return one rental that its provider's API still shows."""
        return next((rental for rental in self.living(provider) if rental.id == rental_id), None)

    def held(self, provider: ProviderName, kind: str) -> list[Holding]:
        """Return what the provider's account holds of a kind."""
        mine = [holding for holding in self.holdings if (holding.provider, holding.kind) == (provider, kind)]
        return [holding for holding in mine if holding.ended_at is None]

    def users(self, holding: Holding, now: float, lag_s: float = 0.0) -> list[Rental]:
        """Return the rentals that use a volume or file system, and those that ended less than ``lag_s`` ago."""
        return [
            rental
            for rental in self.rentals
            if rental.provider == holding.provider
            and holding.id in rental.mounts
            and (rental.ended_at is None or now - rental.ended_at < lag_s)
        ]

    def save(self, file: Path) -> None:
        """Replace ``file`` in one step; only its owner can read it."""
        write_whole(file, json.dumps({"version": VERSION, **asdict(self)}, indent=1), durable=True)

    @classmethod
    def load(cls, file: Path) -> World:
        """Return what :meth:`save` wrote, in this version or an older one; an empty world when there is no file."""
        document = read_document(file, "memory")
        if document is None:
            return cls()
        try:
            data = _writable(document)
            kept = {name: [SshKey(**known(SshKey, key)) for key in keys] for name, keys in data["keys"].items()}
            return cls(
                rentals=[_rental(item) for item in data["rentals"]],
                keys={**cls().keys, **kept},  # an older version knew fewer providers
                faults=[Fault(**known(Fault, fault)) for fault in data["faults"]],
                counter=data["counter"],
                listings=data["listings"],
                holdings=[_holding(item) for item in data.get("holdings", [])],
                clock_ahead_s=data.get("clock_ahead_s", 0.0),
            )
        except MALFORMED as error:
            raise damaged(file, "memory", error) from None


_TEXTS = ("item", "region", "label", "container", "image", "address", "status_text")
_REQUEST_TEXTS = (
    *("image", "image_login", "onstart", "runtype", "hostname", "user_data", "os", "template_hash_id", "user_scheme"),
    *("name", "cloud", "key_name"),
)


def _rental(data: Json) -> Rental:
    """Return a rental. An older version took requests as they came: what is of another type than it must be goes."""
    data.update({name: data[name] if isinstance(data.get(name), str) else "" for name in _TEXTS})
    for name in ("tags", "public_keys"):
        data[name] = [item for item in data[name] if isinstance(item, str)] if isinstance(data[name], list) else []
    wanted: dict[str, type] = {**dict.fromkeys(_REQUEST_TEXTS, str), "env": dict}
    data["request"] = {
        name: value
        for name, value in data["request"].items()
        if value is None or isinstance(value, wanted.get(name, object))
    }
    return Rental(**{**known(Rental, data), "phase": Phase(data["phase"]), "lines": _lines(data)})


def _holding(data: Json) -> Holding:
    return Holding(**{**known(Holding, data), "lines": _lines(data)})


def _lines(data: Json) -> list[Line]:
    return [Line(**known(Line, line)) for line in data["lines"]]


def _writable(value: Any) -> Any:
    """Return the value without what no answer can hold: numbers that are none, and halves of characters."""
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {_writable(name): _writable(item) for name, item in value.items()}
    return value
