"""What can be rented now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gpuyard import market, records
from gpuyard.api.site import Site
from gpuyard.errors import NoOfferError
from gpuyard.providers.base import Offer, Progress
from gpuyard.workload import load_workload


@dataclass(frozen=True, slots=True)
class OffersRequest:
    """What a machine has to offer: what ``workload`` (a name or a path) says, and ``conditions`` in place of that.

    ``conditions`` are those of the plays' options by name (``gpu_ram_gb``, ``max_price_per_hour``, …): gigabytes, and
    US dollars an hour with everything.
    """

    workload: str | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)


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
    said = records.query_to_dict(load_workload(request.workload).query()) if request.workload else {}
    query = records.query_from_dict({**said, **request.conditions})
    verdicts = market.judge(market.collect(site.clouds(), query, progress=progress).offers, query)
    fitting = market.rank(verdicts)
    try:
        text = [*records.offer_table(fitting), *market.explain(verdicts)]
    except NoOfferError as error:
        text = [str(error)]
    return Offers(fitting, [verdict for verdict in verdicts if not verdict.fits], text)
