"""The bill: what every rental has cost so far, by its provider's own rules.

Vast: the GPU from ``running`` until it stops, the disk from creation until the instance is destroyed, also while
stopped (docs/reference/vast.md). Vultr: the hourly price from creation until it is deleted, halted or not, up to the
monthly price (docs/reference/vultr.md). Lambda: the hourly price from the launch until it is
terminated. RunPod: the GPUs while the pod runs, the disk until it is deleted. Volumes and file systems cost until they
are deleted, used or not. The clock runs per second.
"""

from __future__ import annotations

from collections.abc import Iterable

from gpuyard.sandbox.model import Holding, Json, Line, Rental

HOURS_PER_MONTH = 720  # Vast's month
_MONTH_S = 30 * 86400


def amount(line: Line, now: float) -> float:
    """Return what one line has cost until ``now``, in dollars."""
    seconds = max(0.0, (line.end if line.end is not None else now) - line.start)
    cost = line.price_per_hour_usd * seconds / 3600
    if line.monthly_cap_usd is None:
        return cost
    months, rest = divmod(seconds, _MONTH_S)
    return months * line.monthly_cap_usd + min(line.price_per_hour_usd * rest / 3600, line.monthly_cap_usd)


def statement(rentals: Iterable[Rental | Holding], now: float) -> Json:
    """Return ``total_usd``, every line, and under ``billable`` those that cost more with every second."""
    lines: list[Json] = []
    billable: list[Json] = []
    for rental in rentals:
        head = {"provider": rental.provider, "id": rental.id, "label": rental.label}
        for line in rental.lines:
            price = line.price_per_hour_usd
            lines.append(
                {
                    **head,
                    "what": line.what,
                    "price_per_hour_usd": price,
                    "start": line.start,
                    "end": line.end,
                    "seconds": round((line.end if line.end is not None else now) - line.start, 3),
                    "amount_usd": round(amount(line, now), 8),
                }
            )
            if line.end is None and price > 0:
                billable.append({**head, "what": line.what, "price_per_hour_usd": price})
    return {"total_usd": round(sum(line["amount_usd"] for line in lines), 6), "billable": billable, "lines": lines}
