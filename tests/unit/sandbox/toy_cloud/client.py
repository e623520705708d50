"""The toy cloud's client: what any cloud needs, and nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gpuyard.errors import (
    AuthenticationError,
    InvalidRequestError,
    NoCapacityError,
    NotFoundError,
    ProviderError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import CreateSpec, Instance, Offer, PlannedCall, Progress, Query, State
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.credentials import BearerKey
from gpuyard.providers.http import Answer
from gpuyard.providers.rental import create_once, destroy_surely

_KINDS: Mapping[int, type[ProviderError]] = {401: AuthenticationError, 404: NotFoundError, 409: NoCapacityError}


def classify(answer: Answer) -> ProviderError | None:
    """Return the error that an answer means, ``None`` for a success."""
    if answer.status < 300:
        return None
    kind = _KINDS.get(answer.status, InvalidRequestError)
    return kind(f"The toy cloud refused: {answer.text}", provider="toy", status=answer.status)


class ToyKey(BearerKey):
    """The toy cloud's key, which no file holds."""

    variable: ClassVar[str] = "TOY_API_KEY"
    file: ClassVar[str] = "/dev/null"


class Toy(Cloud):
    """The toy cloud behind the neutral interface."""

    name: ClassVar[str] = "toy"
    title: ClassVar[str] = "Toy"
    console_url: ClassVar[str] = "https://toy.example"
    api_url: ClassVar[str] = "https://toy.example/toy"
    meaning = staticmethod(classify)

    def offers(self, query: Query) -> list[Offer]:
        """Return the one machine."""
        return [self._offer(row) for row in self._api.call("GET", "/kinds")["kinds"]]

    def _offer(self, row: Mapping[str, Any]) -> Offer:
        return Offer("toy", row["id"], row["gpu"], 1, 24, 8, 32, 100, "here", "on-demand", row["price"])

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Rent it; the label goes on with the request."""

        def send() -> Instance:
            answer = self._api.call("POST", "/machines", body=_order(offer, spec), repeatable=False)
            return self._instance(answer["machine"])

        return create_once(self, spec, send, waits=self._waits, progress=progress)

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the one call of :meth:`create`."""
        return [PlannedCall("POST", self._api.url("/machines"), _order(offer, spec))]

    def instances(self) -> list[Instance]:
        """Return all machines."""
        return [self._instance(row) for row in self._api.call("GET", "/machines")["machines"]]

    def instance(self, instance_id: str) -> Instance | None:
        """Return one machine."""
        try:
            return self._instance(self._api.call("GET", f"/machines/{instance_id}")["machine"])
        except NotFoundError:
            return None

    def _instance(self, row: Mapping[str, Any]) -> Instance:
        label, price = row["label"], row["price"]
        ref = RunRef.from_label(label)
        return Instance(
            "toy", row["id"], label, ref, State.RUNNING, "up", "here", row["gpu"], 1, 24, "on-demand", price
        )

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """End it, confirmed."""

        def send() -> None:
            self._api.call("DELETE", f"/machines/{instance_id}")

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        return [PlannedCall("DELETE", self._api.url(f"/machines/{instance_id}"))]

    def credit_usd(self) -> float | None:
        """Return nothing: it does not say."""
        return None


def _order(offer: Offer, spec: CreateSpec) -> dict[str, object]:
    return {"kind": offer.id, "label": spec.ref.label, "ssh_key": spec.ssh_public_key}
