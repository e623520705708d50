"""Whether gpuyard can work with a real account of a cloud: asked without changing anything, and tried once for money.

What is done is said before it is done, with what it may cost. Whatever is rented for it is ended, and that nothing of
it is left is read from the cloud's own lists.
"""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import dataclass, field
from functools import partial

from gpuyard import config, market, ssh
from gpuyard.api import preconditions
from gpuyard.api.site import Site
from gpuyard.errors import GpuyardError, LeakError, UnreachableError, UsageError
from gpuyard.providers.base import OWN, Instance, Offer, Progress, Provider, Query
from gpuyard.renting import machine

WORKLOAD = "live-check"
"""What the label of the rented machine names as its workload."""
MOST_PER_HOUR_USD = 1.0
TRIED_OFFERS = 3
_BOOT_S = 600
_COMMAND = "uname -srm; nvidia-smi -L || true"
_COMMAND_S = 120.0
_BILLED_HOURS = 1.0  # some clouds bill an hour that has begun; a machine is held for less than one


@dataclass(frozen=True, slots=True)
class LiveRequest:
    """What may be done: ``spend`` rents one machine, of at most ``most_per_hour_usd`` dollars an hour."""

    spend: bool = False
    most_per_hour_usd: float = MOST_PER_HOUR_USD


@dataclass(frozen=True, slots=True)
class _Held:
    """What an account holds that may bill: instances and other resources by provider, kind and id; and its SSH keys."""

    billing: frozenset[tuple[str, ...]]
    keys: frozenset[str] = field(repr=False)


def check(site: Site, request: LiveRequest, tell: Progress) -> None:
    """Look at the one cloud that ``site`` names and, with ``spend``, rent, run a command, end and audit.

    Raises :class:`UsageError` without a cloud's name, and :class:`GpuyardError` for what does not work:
    :class:`LeakError` names what could not be confirmed gone.
    """
    if site.provider in (None, OWN):
        names = ", ".join(name for name in config.CLOUDS if name != OWN)
        raise UsageError(f"Name the one cloud that is to be checked: {names}.")
    (cloud,) = site.clouds()
    tell(f"This reads from {cloud.title} and changes nothing there: key, balance, rights, lists, offers. It is free.")
    offers = _read(cloud, request, tell)
    if not request.spend:
        tell("Nothing was rented. With SPEND=1 one machine is, for some minutes.")
        return
    most = sum(offer.price_per_hour_usd for offer in offers) * _BILLED_HOURS
    tell(
        f"This now rents the cheapest of these that can be had, runs `{_COMMAND}` there, destroys it and looks that "
        f"nothing of it is left. It costs at most ${most:.4f}: an hour that has begun, of each that has to be tried."
    )
    _spend(site, cloud, offers, tell)


def _read(cloud: Provider, request: LiveRequest, tell: Progress) -> list[Offer]:
    """Return the cheapest offers, after telling what the account lets this key see."""
    account = preconditions.cloud(cloud)
    tell(f"{account.what}: {account.found}")
    if account.level == "failed":
        raise GpuyardError(f"{cloud.title} cannot be used with this key. {account.todo}")
    if account.todo:
        tell(account.todo)
    if (rights := cloud.rights()) is not None:
        tell(f"Rights of the key: {', '.join(rights.held) or 'none'}.")
    for kind, shelf in cloud.shelves().items():
        tell(f"{len(shelf.all())} {shelf.title or kind.value}.")
    for one in cloud.instances():
        tell(f"Rented already: {machine.describe(one)}, {'of gpuyard' if one.ref else 'not of gpuyard'}.")
    query = Query(market="on-demand", max_price_per_hour_usd=request.most_per_hour_usd)
    offers = market.choose(market.collect([cloud], query).offers, query)[:TRIED_OFFERS]
    for offer in offers:
        tell(f"On offer: {market.describe(offer)}.")
    return offers


def _spend(site: Site, cloud: Provider, offers: list[Offer], tell: Progress) -> None:
    run = f"live-{secrets.token_hex(4)}"
    before = _held(cloud)
    key = site.key()
    order = machine.Order(
        run=run, workload=WORKLOAD, offers=lambda: offers, key=key, timeout_s=_BOOT_S, everywhere=[cloud]
    )
    try:
        instance = machine.present([cloud], order, progress=tell).instance
        assert instance is not None  # it was waited for
        tell(f"The machine says: {_said(instance, partial(ssh.ssh_args, key=key))}")
    finally:
        # By the label: also a machine whose create was cut off, and of which nobody here knows the id.
        machine.absent([cloud], run, progress=tell)
    _audit(cloud, run, before, tell)


def _said(instance: Instance, words: partial[list[str]]) -> str:
    try:
        done = subprocess.run(
            ["ssh", *words(instance), _COMMAND],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_S,
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"The machine did not answer within {_COMMAND_S:g} s.") from None
    if done.returncode:
        raise UnreachableError(f"`{_COMMAND}` ended with {done.returncode} there: {' '.join(done.stdout.split())}")
    return "; ".join(done.stdout.splitlines())


def _held(cloud: Provider) -> _Held:
    resources = [one for kind, shelf in cloud.shelves().items() if kind.bills for one in shelf.all()]
    billing = {one.place for one in cloud.instances()} | {one.place for one in resources}
    return _Held(frozenset(billing), frozenset(cloud.ssh_keys()))


def _audit(cloud: Provider, run: str, before: _Held, tell: Progress) -> None:
    """Tell what is left. :class:`LeakError` names what bills and was not there before."""
    after = _held(cloud)
    if new := sorted(" ".join(place) for place in after.billing - before.billing):
        raise LeakError(
            f"{cloud.title} lists what was not there before the check of run {run}: {', '.join(new)}. "
            f"Look at {cloud.console_url} whether it is yours, and destroy it there.",
            provider=cloud.name,
        )
    keys = len(after.keys - before.keys)
    stays = f" {keys} SSH key of gpuyard's is on the account now; it costs nothing." if keys else ""
    tell(f"Looked at every list of {cloud.title}: nothing of run {run} is left, nothing of it bills.{stays}")
