"""The volume that a workload wants from its cloud: which one is a node's, where it can be had, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpuyard import config
from gpuyard.cost import NOTHING, Span
from gpuyard.errors import NoOfferError, UnsupportedError, UsageError
from gpuyard.formats.label import TAG, RunRef
from gpuyard.providers.base import Offer, Provider
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.remedies import option, remedy
from gpuyard.workload import Workload
from gpuyard.workload.disks import Volume

HOURS_A_MONTH = 730.0
DISKS = (Kind.VOLUME, Kind.FILESYSTEM)
"""What stands behind a volume, in the order in which a cloud that has both is asked."""


def does(shelf: Shelf, verb: str) -> bool:
    """Tell whether a shelf carries out ``attach``, ``detach`` or ``grow``, without asking its cloud."""
    return getattr(type(shelf), verb) is not getattr(Shelf, verb)


def plain(name: str) -> str:
    """Return a name without what says that it is gpuyard's, as clouds spell it that know fewer characters."""
    return name.lower().replace("_", "-").removeprefix(f"{TAG}-")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The volume ``name`` of a workload, for a node of a run."""

    name: str
    volume: Volume
    ref: RunRef

    @property
    def keep(self) -> bool:
        """Whether it belongs to the account and outlives the run."""
        assert self.volume.cloud is not None
        return self.volume.cloud.keep

    def spec(self, known: Sequence[Resource] = (), region: str = "") -> ResourceSpec:
        """Return what to make, in ``region``; none of ``known`` is taken for it."""
        assert self.volume.cloud is not None
        return ResourceSpec(
            name=f"{TAG}-{self.ref.workload}-{self.name}" if self.keep else self.ref.run,
            ref=None if self.keep else self.ref,
            region=region,
            size_gb=self.volume.size_gb,
            options=self.volume.cloud.options,
            known_ids=frozenset(one.id for one in known),
        )

    def among(self, there: Sequence[Resource], cloud: Provider) -> Resource | None:
        """Return the one that is there already; raises :class:`UsageError` when there are several."""
        spec = self.spec()
        if spec.ref:
            same = [one for one in there if one.ref == spec.ref]
        else:
            same = [one for one in there if one.ref is None and plain(one.name) == plain(spec.name)]
        if len(same) > 1:
            ids = ", ".join(one.id for one in same)
            raise UsageError(
                f"Volume {self.name}: {cloud.title} has {len(same)} of it, {ids}, and all of them bill. Delete those "
                "that are too many, with the module volume and state: absent."
            )
        return same[0] if same else None


@dataclass(frozen=True, slots=True)
class Expected:
    """The volume of a node as it will be: at which cloud and in which region, and its price, if that is known.

    ``id`` is empty when it has to be made.
    """

    wanted: Wanted
    provider: str
    region: str
    id: str
    price_per_month_usd: float | None

    @property
    def price_per_hour_usd(self) -> float:
        """What it costs an hour; 0 where the cloud does not say."""
        return (self.price_per_month_usd or 0.0) / HOURS_A_MONTH

    def text(self) -> str:
        """Return it as a line of the plan."""
        price = self.price_per_month_usd
        costs = "at a price that the cloud does not say" if price is None else f"${price:.2f} a month"
        costs += f" (${self.price_per_hour_usd:.4f} an hour)" if price else ""
        what = f"{self.id}, which is there," if self.id else "that is made for it,"
        until = "stays after the run" if self.wanted.keep else "belongs to the run"
        size = f"{self.wanted.volume.size_gb:g} GB"
        return f"Volume {self.wanted.name}: {size} at {self.provider} in {self.region}, {what} {costs}; it {until}."

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        values = {name: value for name, value in asdict(self).items() if name != "wanted"}
        return {"name": self.wanted.name, "node": self.wanted.ref.node, "keep": self.wanted.keep, **values}


def cost(volumes: Sequence[Expected], hours: Span | None) -> Span:
    """Return what ``volumes`` cost in US dollars for so many hours; none that a cloud does not price is in it."""
    return (hours or NOTHING) * sum(one.price_per_hour_usd for one in volumes)


def wanted(workload: Workload, run: str, node: str) -> Wanted | None:
    """Return the volume that a node of a run is to get from its cloud, ``None`` when it wants none."""
    for name, volume in workload.volumes.items():
        if volume.cloud:
            return Wanted(name, volume, RunRef(run, workload.name, node))
    return None


def shelf_of(cloud: Provider) -> Shelf | None:
    """Return where a cloud keeps volumes that machines can get, new ones or those that live; ``None``: nowhere."""
    for kind in DISKS:
        shelf = cloud.shelves().get(kind)
        if shelf and (shelf.at_create or (does(shelf, "attach") and does(shelf, "detach"))):
            return shelf
    return None


def able(workload: Workload, clouds: Sequence[Provider]) -> list[Provider]:
    """Return those of ``clouds`` that can give the workload's volume to a machine; nothing is asked.

    Raises :class:`UnsupportedError` when none can, :class:`UsageError` when those that could cannot have it there.
    """
    name, volume = next((name, volume) for name, volume in workload.volumes.items() if volume.cloud)
    having = [(cloud, shelf) for cloud in clouds if (shelf := shelf_of(cloud))]
    found, wrong = [], []
    for cloud, shelf in having:
        try:
            shelf.check_path(volume.mount)
        except UsageError as error:
            wrong.append(str(error))
        else:
            found.append(cloud)
    if found:
        return found
    if wrong:
        raise UsageError(f"{workload.source}: volumes.{name}.mount: {' '.join(wrong)} Nothing was rented.")
    known = " and ".join(cloud.title for cloud in config.known_clouds() if shelf_of(cloud)) or "no cloud"
    asked = " and ".join(cloud.title for cloud in clouds)
    raise UnsupportedError(
        f"{workload.source}: volumes.{name}.cloud: {asked} cannot give a volume to a machine; {known} can. Nothing was "
        "rented."
    )


def priced(want: Wanted, offers: Sequence[Offer], clouds: Mapping[str, Provider]) -> tuple[list[Offer], list[str]]:
    """Return the offers whose machines can have the volume, each with what that costs; and why others were left out.

    A volume that is there has its own price at the offers that reach it. Raises :class:`NoOfferError` when none is
    left.
    """
    kept: list[Offer] = []
    refusals: list[str] = []
    for name in dict.fromkeys(offer.provider for offer in offers):
        cloud = clouds[name]
        shelf, here = shelf_of(cloud), [offer for offer in offers if offer.provider == name]
        if shelf is None:
            continue
        found = want.among(shelf.all(), cloud)
        reached = [offer for offer in here if found and shelf.reaches(found, offer)]
        prices = [(offer, found.price_per_month_usd) for offer in reached if found]
        try:
            prices += shelf.quotes(want.spec(), [offer for offer in here if offer not in reached])
        except (UnsupportedError, UsageError) as error:
            refusals.append(str(error))
        kept += [replace(one, volume_price_per_hour_usd=(price or 0.0) / HOURS_A_MONTH) for one, price in prices]
    without = len(offers) - len(kept)
    if not kept and offers:
        why = f": {' '.join(refusals)}" if refusals else "."
        raise NoOfferError(
            f"volumes.{want.name}: none of the {len(offers)} machines on offer can have a volume of "
            f"{want.volume.size_gb:g} GB{why} Nothing was rented."
        )
    words = f"Volume {want.name}: {without} of {len(offers)} offers are left out, whose machines cannot have it."
    return kept, [" ".join([words, *refusals])] if without else []


def fitting(
    want: Wanted, offers: Sequence[Offer], clouds: Mapping[str, Provider], *, may_go: bool = False
) -> tuple[list[Offer], Expected]:
    """Return the offers where the volume can be, and the volume that the first of them gets.

    A volume that is there decides the cloud, and the region or the machine. Raises :class:`NoOfferError` when no offer
    is there; but with ``may_go``, since the bucket has what the run needs, one of the run's own that no new machine can
    reach is given up for a new one.
    """
    for name in dict.fromkeys(offer.provider for offer in offers):
        cloud = clouds[name]
        shelf = shelf_of(cloud)
        found = want.among(shelf.all(), cloud) if shelf else None
        if found is None:
            continue
        assert shelf is not None  # there is something on it
        near = [offer for offer in offers if offer.provider == name and shelf.reaches(found, offer)]
        if not near and may_go and not want.keep:
            continue
        if not near:
            at = f"on machine {found.detail['machine']}" if found.detail.get("machine") else f"in {found.region}"
            raise NoOfferError(
                f"Volume {want.name} is at {cloud.title} {at} ({found.id}), and nothing that fits can be "
                "rented there now: wait, or delete it with the module volume and state: absent. Nothing was rented."
            )
        return near, Expected(want, name, found.region, found.id, found.price_per_month_usd)
    first = offers[0]
    price = first.volume_price_per_hour_usd * HOURS_A_MONTH or None
    return list(offers), Expected(want, first.provider, first.region, "", price)


def expected(want: Wanted, cloud: Provider, region: str) -> Expected:
    """Return the volume of a machine of ``cloud`` in ``region``: the one that is there, or the one to be made."""
    shelf = shelf_of(cloud)
    if shelf is None:
        raise UnsupportedError(
            f"The run's machine is at {cloud.title}, which cannot give it the volume {want.name}: end the run, "
            f"and launch it with {option('provider')} at another cloud.",
            provider=cloud.name,
        )
    found = want.among(shelf.all(), cloud)
    if found:
        return Expected(want, cloud.name, found.region or region, found.id, found.price_per_month_usd)
    if shelf.at_create:
        raise without_volume(want, cloud)
    return Expected(want, cloud.name, region, "", shelf.price_per_month_usd(want.spec(region=region)))


def without_volume(want: Wanted, cloud: Provider) -> UsageError:
    """Return the error of a machine that was created without its volume, where it can get it at no other time."""
    return UsageError(
        f"The run's machine at {cloud.title} was created without the volume {want.name}, and gets none while it lives: "
        f"`{remedy('teardown', run=want.ref.run)}` ends the run, and a new launch gets both."
    )
