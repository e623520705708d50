"""What can be rented now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from gpuyard import comparison, geography, list_prices, market, ranking, records
from gpuyard.api.site import Site
from gpuyard.comparison import Comparison
from gpuyard.errors import GpuyardError, NoOfferError, UsageError
from gpuyard.geography import Spot
from gpuyard.planning import nodes
from gpuyard.providers.base import Offer, Progress, Query
from gpuyard.remedies import option
from gpuyard.renting import measured
from gpuyard.renting.failed_hosts import FailedHosts
from gpuyard.renting.notebook import Notebook
from gpuyard.workload import load_workload, resolve


@dataclass(frozen=True, slots=True)
class OffersRequest:
    """What a machine has to offer: what ``workload`` (a name or a path) says, and ``conditions`` in place of that.

    ``profiles`` are those of the workload, each over the one before.

    ``conditions`` are those of the plays' options by name (``gpu_ram_gb``, ``max_price_per_hour``, …): gigabytes, and
    US dollars an hour with everything.
    """

    workload: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    profiles: Sequence[str] = ()

    def query(self, near: Spot | None = None) -> Query:
        """Return it as a question to the market, with a bucket at ``near``.

        Raises :class:`gpuyard.errors.UsageError` for what cannot be.
        """
        if self.profiles and not self.workload:
            raise UsageError(
                f"profile={','.join(self.profiles)} is a workload's, and none is named: add {option('workload')}."
            )
        asked, traffic = Query(), 0.0
        if self.workload:
            workload = resolve(self.workload, profiles=self.profiles).workload
            asked = workload.query()
            traffic = nodes.traffic_gb_per_hour(workload, workload.pool_names, workload.order)
        asked = records.with_conditions(asked, self.conditions)
        return ranking.grounded(asked, near=near, traffic_gb_per_hour=traffic)


@dataclass(frozen=True, slots=True)
class Offers:
    """What fits, best first, and what does not, with the reasons."""

    fitting: list[Offer]
    rejected: list[market.Verdict]
    text: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "offers": [records.offer_to_dict(offer) for offer in self.fitting],
            "rejected": [
                {"offer": records.offer_to_dict(verdict.offer), "reasons": [str(reason) for reason in verdict.reasons]}
                for verdict in self.rejected
            ],
            "text": "\n".join(self.text),
        }


def find(site: Site, request: OffersRequest, *, progress: Progress | None = None) -> Offers:
    """Ask the clouds of ``site`` at the same time what they rent out, and rank it. That nothing fits is no error.

    Raises :class:`gpuyard.errors.UsageError` for a workload or a condition that cannot be, and the error of a cloud
    that does not answer when no other one does.
    """
    query = request.query(_near(site))
    verdicts = market.judge(market.collect(site.clouds(), query, progress=progress).offers, query)
    fitting = market.rank(verdicts, query)
    try:
        text = [*records.offer_table(fitting), *market.explain(verdicts, query, fitting)]
    except NoOfferError as error:
        text = [str(error)]
    return Offers(fitting, [verdict for verdict in verdicts if not verdict.fits], text)


def compare(
    site: Site,
    request: OffersRequest,
    *,
    by: str = "",
    with_list_prices: bool = False,
    progress: Progress,
) -> Comparison:
    """Return the offers of ``site`` that fit, in the order of ``by`` (:data:`gpuyard.comparison.ORDERS`), and why.

    Where ``by`` is empty, the order is the one in which a launch would take them.
    Both markets are asked, so that their prices stand side by side. Hosts that have failed us are left out. A cloud
    that does not answer is named in the result. What the bucket's earlier runs measured stands beside, and on request
    the list prices of further clouds, or why they cannot be had. That nothing fits is no error. Raises what
    :func:`find` raises.
    """
    query = request.query(_near(site))
    clouds = site.clouds()
    with ExitStack() as stack:
        # Side by side with the questions to the clouds, which do not wait for it.
        question = (
            stack.enter_context(list_prices.Question(query, sandbox=site.in_sandbox())) if with_list_prices else None
        )
        collected = market.collect(clouds, replace(query, market="any"), progress=progress)
        listed = question.answer() if question else list_prices.ListPrices()
    bucket = Notebook(site.shared_store)
    failed = FailedHosts(bucket, progress).known(clouds)
    verdicts = market.judge(collected.offers, query, failed_hosts={host: one.words for host, one in failed.items()})
    return comparison.compare(
        verdicts,
        clouds,
        collected.problems,
        query,
        by=by,
        measured=_measured(bucket, request, progress),
        listed=market.judge(listed.offers, query),
        listed_problem=listed.problem,
    )


def _near(site: Site) -> Spot | None:
    """Return where the bucket of ``site`` lies, ``None`` where that is not known."""
    try:
        settings = site.bucket_settings()
    except UsageError:
        return None  # told by whoever needs the bucket
    return geography.spot_of_bucket(settings.region, settings.endpoint)


def _measured(bucket: Notebook, request: OffersRequest, progress: Progress) -> list[measured.Measured]:
    """Return what earlier runs measured; a bucket that cannot be read hides no offer."""
    try:
        store = bucket.store()
        workload = load_workload(request.workload).name if request.workload else None
        return measured.read(store, workload, progress) if store else []
    except GpuyardError as error:
        progress(f"What earlier runs measured is left out: {error}")
        return []
