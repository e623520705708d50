"""The volume that a workload wants from its cloud: which one is a node's, where it can be had, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpuyard import config
from gpuyard.errors import NoOfferError, UnsupportedError, UsageError
from gpuyard.formats.label import TAG, RunRef
from gpuyard.providers.base import Offer, Provider
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.remedies import option
from gpuyard.workload import Workload
from gpuyard.workload.disks import Volume

HOURS_A_MONTH = 730.0


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

    def spec(self, region: str, known: Sequence[Resource] = ()) -> ResourceSpec:
        """Return what to make in ``region``; none of ``known`` is taken for it."""
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
        spec = self.spec("")
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


def wanted(workload: Workload, run: str, node: str) -> Wanted | None:
    """Return the volume that a node of a run is to get from its cloud, ``None`` when it wants none."""
    for name, volume in workload.volumes.items():
        if volume.cloud:
            return Wanted(name, volume, RunRef(run, workload.name, node))
    return None


def shelf_of(cloud: Provider) -> Shelf | None:
    """Return where a cloud keeps volumes that go to machines that live, ``None`` where it has none."""
    shelf = cloud.shelves().get(Kind.VOLUME)
    return shelf if shelf and does(shelf, "attach") and does(shelf, "detach") else None


def able(workload: Workload, clouds: Sequence[Provider]) -> list[Provider]:
    """Return those of ``clouds`` that can give the workload's volume to a machine; nothing is asked.

    Raises :class:`UnsupportedError` when none can.
    """
    found = [cloud for cloud in clouds if shelf_of(cloud)]
    if found:
        return found
    name = next(name for name, volume in workload.volumes.items() if volume.cloud)
    known = " and ".join(cloud.title for cloud in config.known_clouds() if shelf_of(cloud)) or "no cloud"
    asked = " and ".join(cloud.title for cloud in clouds)
    raise UnsupportedError(
        f"{workload.source}: volumes.{name}.cloud: {asked} cannot attach a volume to a machine that lives; {known} "
        "can. Nothing was rented."
    )


def fitting(want: Wanted, offers: Sequence[Offer], clouds: Mapping[str, Provider]) -> tuple[list[Offer], Expected]:
    """Return the offers where the volume can be, and the volume that the first of them gets.

    A volume that is there decides the cloud and the region. Raises :class:`NoOfferError` when no offer is there.
    """
    for name in dict.fromkeys(offer.provider for offer in offers):
        cloud = clouds[name]
        shelf = shelf_of(cloud)
        found = want.among(shelf.all(), cloud) if shelf else None
        if found is None:
            continue
        near = [offer for offer in offers if offer.provider == name and found.region in ("", offer.region)]
        if not near:
            raise NoOfferError(
                f"Volume {want.name} is at {cloud.title} in {found.region} ({found.id}), and nothing that fits can be "
                "rented there now: wait, or delete it with the module volume and state: absent. Nothing was rented."
            )
        return near, Expected(want, name, found.region, found.id, found.price_per_month_usd)
    first = offers[0]
    return list(offers), expected(want, clouds[first.provider], first.region)


def expected(want: Wanted, cloud: Provider, region: str) -> Expected:
    """Return the volume of a machine of ``cloud`` in ``region``: the one that is there, or the one to be made."""
    shelf = shelf_of(cloud)
    if shelf is None:
        raise UnsupportedError(
            f"The run's machine is at {cloud.title}, which cannot attach the volume {want.name} to it: end the run, "
            f"and launch it with {option('provider')} at another cloud.",
            provider=cloud.name,
        )
    found = want.among(shelf.all(), cloud)
    if found:
        return Expected(want, cloud.name, found.region or region, found.id, found.price_per_month_usd)
    return Expected(want, cloud.name, region, "", shelf.price_per_month_usd(want.spec(region)))
