"""What each account has and may do: whether its key is valid, the balance, what bills now, keys and variables."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from gpuyard import config, records
from gpuyard.api.preconditions import key_advice
from gpuyard.api.site import Site
from gpuyard.errors import AuthenticationError, GpuyardError, UnsupportedError
from gpuyard.providers.base import OWN, Provider
from gpuyard.providers.resources import Kind, Resource

HOURS_A_MONTH = 730.0
WIDTH = 60
"""How wide a cell of the table is that holds a sentence, in characters."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account. ``None`` stands for what the cloud does not say, or the key may not read.

    ``key_valid`` is ``None`` where the cloud could not be asked. ``hint`` says what to do. Prices are US dollars; what
    a cloud names no price for is in ``unpriced``.
    """

    provider: str
    title: str
    key_valid: bool | None
    credit_usd: float | None = None
    billed_per_hour_usd: float | None = None
    instances: int | None = None
    unpriced: tuple[str, ...] = ()
    rights: tuple[str, ...] | None = None
    can_rent: bool | None = None
    variables: tuple[str, ...] | None = None
    ssh_keys: tuple[str, ...] | None = None
    problem: str = ""
    hint: str = ""
    sandbox: bool = False


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts, and the clouds without a key."""

    found: list[Account]
    without_key: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values. Keys are shown by their type and name, variables by their names."""
        return {"accounts": [asdict(one) for one in self.found], "without_key": self.without_key}

    def render(self) -> str:
        """Return it as a table for people."""
        rows = [["cloud", "key", "credit", "$/hour now", "machines", "rights", "SSH keys", "variables", "to know"]]
        for one in self.found:
            words = " ".join(filter(None, [one.problem, one.hint]))
            cells = [
                [one.title + (" (emulated)" if one.sandbox else "")],
                [{True: "valid", False: "refused", None: "not asked"}[one.key_valid]],
                [_dollars(one.credit_usd, 2)],
                [_dollars(one.billed_per_hour_usd, 4)],
                ["-" if one.instances is None else str(one.instances)],
                textwrap.wrap(", ".join(one.rights or ()), 24) or ["-"],
                list(one.ssh_keys or ()) or ["-"],
                list(one.variables or ()) or ["-"],
                textwrap.wrap(words, WIDTH) or ["-"],
            ]
            rows += [list(row) for row in itertools.zip_longest(*cells, fillvalue="")]
        table = records.table(rows) if self.found else []
        notes = [f"No key: {', '.join(self.without_key)}."] if self.without_key else []
        return "\n".join([*table, *notes, "No cloud's API says what its quotas are."])


def _dollars(value: float | None, digits: int) -> str:
    return "?" if value is None else f"{value:.{digits}f}"


def accounts(site: Site) -> Accounts:
    """Ask every account of ``site`` at the same time; what one of them does not say hides nothing of another.

    Raises :class:`gpuyard.errors.UsageError` when there is no key of any cloud.
    """
    clouds = [cloud for cloud in site.clouds() if cloud.name != OWN]
    if not clouds:
        raise UnsupportedError("Boxes of your own have no account.", provider=OWN)
    with ThreadPoolExecutor(max_workers=len(clouds)) as pool:
        found = list(pool.map(account, clouds))
    names = {cloud.name for cloud in clouds}
    emulated = config.World.of(site.sandbox, site.sandbox_state).sandbox
    others = [] if site.provider or emulated else [n for n in config.CLOUDS if n not in names and n != OWN]
    return Accounts(found, others)


def account(cloud: Provider) -> Account:
    """Ask one account for everything that its cloud says."""
    shelves = cloud.shelves()
    questions: dict[str, Callable[[], Any]] = {
        "credit": cloud.credit_usd,
        "instances": cloud.instances,
        "rights": cloud.rights,
        "SSH keys": cloud.ssh_keys,
    }
    questions |= {kind.value: shelf.all for kind, shelf in shelves.items() if kind.bills or kind is Kind.VARIABLE}
    seen: dict[str, Any] = {}
    refused: dict[str, AuthenticationError] = {}
    problem = ""
    for name, ask in questions.items():
        try:
            seen[name] = ask()
        except AuthenticationError as error:
            refused[name] = error
        except GpuyardError as error:
            problem = problem or str(error)
    # A cloud that does not say something answers without asking anybody.
    if "instances" not in seen and not any(seen.values()):
        return _silent(cloud, refused, problem)
    if refused:
        problem = problem or f"The key may not read {', '.join(refused)}."
    billing = [one for kind in shelves if kind.bills for one in seen.get(kind.value, ())]
    rights = seen.get("rights")
    variables = seen.get(Kind.VARIABLE.value)
    return Account(
        cloud.name,
        cloud.title,
        key_valid=True,
        credit_usd=seen.get("credit"),
        billed_per_hour_usd=_billed(seen, billing),
        instances=len(seen["instances"]) if "instances" in seen else None,
        unpriced=tuple(one.name or one.id for one in billing if one.price_per_month_usd is None),
        rights=rights.held if rights else None,
        can_rent=rights.can_rent if rights else None,
        variables=None if variables is None else tuple(sorted(one.name for one in variables)),
        ssh_keys=_key_names(seen.get("SSH keys")),
        problem=problem,
        hint=_hint(cloud, seen, bool(refused)),
        sandbox=bool(cloud.sandbox),
    )


def _silent(cloud: Provider, refused: dict[str, AuthenticationError], problem: str) -> Account:
    """Return an account that says nothing: its key is refused, or the cloud does not answer."""
    first = next(iter(refused.values()), None)
    if first is None:
        hint = f"Try again, or look at {cloud.console_url}."
        return Account(cloud.name, cloud.title, None, problem=problem, hint=hint, sandbox=bool(cloud.sandbox))
    hint = key_advice(cloud, first)
    return Account(cloud.name, cloud.title, False, problem=str(first), hint=hint, sandbox=bool(cloud.sandbox))


def _billed(seen: dict[str, Any], billing: list[Resource]) -> float | None:
    if "instances" not in seen:
        return None
    machines = sum(one.cost_now_per_hour_usd for one in seen["instances"])
    return float(machines + sum(one.price_per_month_usd or 0.0 for one in billing) / HOURS_A_MONTH)


def _key_names(keys: list[str] | None) -> tuple[str, ...] | None:
    """Return each public key by its name, or its type and end where it has none."""
    if keys is None:
        return None
    return tuple(" ".join(key.split()[2:]) or f"{key.split()[0]} …{key[-8:]}" for key in keys if key.strip())


def _hint(cloud: Provider, seen: dict[str, Any], refused: bool) -> str:
    """Return what a person has to do for an account whose key is valid."""
    credit, rights = seen.get("credit"), seen.get("rights")
    if refused:
        return f"Give the key the right at {cloud.console_url}."
    if rights is not None and not rights.can_rent:
        return f"It lacks the right {rights.needed}, without which nothing can be rented: {cloud.console_url}"
    if credit is not None and credit <= 0 and cloud.prepaid:
        return f"Nothing can be rented without credit: {cloud.console_url}"
    return ""
