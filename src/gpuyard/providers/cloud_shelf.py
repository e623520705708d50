"""What the shelves of clouds behind an HTTP API have in common: one request that makes a thing, one that ends it."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from gpuyard.errors import ProviderDownError, UnsupportedError, UsageError
from gpuyard.formats.label import TAG, RunRef
from gpuyard.providers.base import Offer, PlannedCall, Progress
from gpuyard.providers.cloud import Cloud
from gpuyard.providers.http import Client
from gpuyard.providers.rental import Waits, end_surely, make_once
from gpuyard.providers.resources import Kind, Resource, ResourceSpec, Shelf
from gpuyard.providers.values import dicts, same_ssh_key, text

_PUBLIC_KEY = re.compile(r"((?:ssh-|ecdsa-|sk-)[A-Za-z0-9@.-]+) ([A-Za-z0-9+/]+={0,3})(?: [^\x00-\x1f\x7f]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WORDS = {"ref": "run", "size_gb": "size", "source": "source", "content": "content", "region": "region"}


@dataclass(frozen=True, slots=True)
class Call:
    """A writing call: what is sent, or would be."""

    method: str
    path: str
    body: Mapping[str, object] | None = None
    params: Mapping[str, str | int] | None = None

    def planned(self, api: Client, **hidden: str) -> PlannedCall:
        """Return it as ``--check`` shows it; ``hidden`` are fields of the body, and what stands there instead."""
        query = "&".join(f"{name}={value}" for name, value in (self.params or {}).items())
        body = None if self.body is None else {**self.body, **hidden}
        return PlannedCall(self.method, api.url(self.path) + (f"?{query}" if query else ""), body)


class CloudShelf(Shelf):
    """A shelf of a cloud that is asked over HTTP."""

    title: ClassVar[str]
    knows: ClassVar[frozenset[str]] = frozenset()  # the fields of a spec that it can carry out, beside the name
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # by name, with their values; (): any

    def __init__(self, cloud: Cloud, api: Client, waits: Waits) -> None:
        self._cloud, self._api, self._waits = cloud, api, waits

    def spelled(self, name: str) -> str:
        """Return a name of the account's as the cloud will spell it, so that what is made is found by it."""
        return name

    @abstractmethod
    def order(self, spec: ResourceSpec) -> Call:
        """Return the call that makes what ``spec`` says; it may read before, and refuses what cannot be."""

    @abstractmethod
    def made(self, answer: Mapping[str, object], spec: ResourceSpec) -> Resource:
        """Return what the answer to :meth:`order`'s call names."""

    @abstractmethod
    def ending(self, resource_id: str) -> Call:
        """Return the call that ends one."""

    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Make one; see :func:`gpuyard.providers.rental.make_once`."""
        spec = replace(spec, name=self.spelled(spec.name))
        first = [self.order(spec)]  # what cannot be is refused before anything is noted or sent

        def send() -> Resource:
            call = first.pop() if first else self.order(spec)
            answer = self._api.call(call.method, call.path, params=call.params, body=call.body, repeatable=False)
            return self.made(answer, spec)

        return make_once(self._cloud, self, spec, send, waits=self._waits, progress=progress)

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        """Return the one call of :meth:`create`."""
        return [self.order(replace(spec, name=self.spelled(spec.name))).planned(self._api)]

    def destroy(self, resource_id: str, *, progress: Progress | None = None) -> None:
        """End it, and come back when it is not listed any more."""
        call = self.ending(resource_id)

        def send() -> None:
            self._api.call(call.method, call.path, params=call.params, body=call.body, repeatable=True)

        end_surely(self._cloud, self, resource_id, send, waits=self._waits, progress=progress)

    def plan_destroy(self, resource_id: str) -> list[PlannedCall]:
        """Return the one call of :meth:`destroy`."""
        return [self.ending(resource_id).planned(self._api)]

    def get(self, resource_id: str) -> Resource | None:
        """Return one out of the list, where nothing else says whether it exists."""
        return next((one for one in self.all() if one.id == resource_id), None)

    def quotes(self, spec: ResourceSpec, offers: Sequence[Offer]) -> list[tuple[Offer, float | None]]:
        """Return the offers with the price of a new one; refuses what the cloud does not know."""
        self.check(replace(spec, name=self.spelled(spec.name)))
        return super().quotes(spec, offers)

    def check(self, spec: ResourceSpec) -> None:
        """Refuse in a sentence what the cloud does not know, before anything is sent."""
        place = f"{self._cloud.title} {self.title}"
        if not (spec.name or spec.ref):
            raise UsageError(f"A {place} needs a name.")
        if _CONTROL.search(spec.name):
            raise UsageError(f"The name of a {place} holds a line break or another control character: choose another.")
        for field, word in _WORDS.items():
            if getattr(spec, field) and field not in self.knows:
                raise UnsupportedError(f"A {place} has no {word}: leave it out.", provider=self._cloud.name)
        for name, value in spec.options.items():
            if name not in self.options:
                known = f"it knows {', '.join(self.options)}" if self.options else "it knows none"
                raise UnsupportedError(f"A {place} has no option {name}: {known}.", provider=self._cloud.name)
            if self.options[name] and value not in self.options[name]:
                raise UsageError(f"{name}={value!r} of a {place} is not {' or '.join(self.options[name])}.")

    def whole_size(self, spec: ResourceSpec, least: int, most: int) -> int:
        """Return the size in whole GB, rounded up, where it lies within the cloud's limits."""
        if spec.size_gb is None:
            raise UsageError(f"A {self._cloud.title} {self.title} needs a size in GB.")
        size = -int(-spec.size_gb // 1)
        if not least <= size <= most:
            raise UsageError(
                f"size {spec.size_gb:g} GB: a {self._cloud.title} {self.title} has {least} to {most} GB. Choose one."
            )
        return size

    def resource(
        self, resource_id: str, name: str, ref: RunRef | None, *, emulated: object = False, **more: Any
    ) -> Resource:
        """Return a resource of this shelf; what does not bill costs nothing."""
        more.setdefault("price_per_month_usd", None if self.kind.bills else 0.0)
        return Resource(
            provider=self._cloud.name,
            kind=self.kind,
            id=resource_id,
            name=name,
            ref=ref,
            ours=ref is not None or name.lower().startswith(TAG),
            emulated=self._cloud.emulated or bool(emulated),
            sandbox=self._cloud.sandbox,
            **more,
        )

    def rows(self, answer: Mapping[str, object], *names: str) -> list[dict[str, object]]:
        """Return the list in an answer. An answer without one says nothing of what is there, so it is an error."""
        for name in names:
            if isinstance(answer.get(name), list):
                return dicts(answer[name])
        raise ProviderDownError(
            f"{self._cloud.title}'s answer about the account's {self.title}s holds no list.", provider=self._cloud.name
        )


class KeyShelf(CloudShelf):
    """The account's public SSH keys. The key itself says whether it is there, whatever it is called."""

    kind: ClassVar[Kind] = Kind.SSH_KEY
    title: ClassVar[str] = "SSH key"
    knows: ClassVar[frozenset[str]] = frozenset({"content", "ref"})

    def __init__(self, cloud: Cloud, api: Client, waits: Waits) -> None:
        super().__init__(cloud, api, waits)
        self._changing = threading.RLock()  # one change at a time of what is read first

    def create(self, spec: ResourceSpec, *, progress: Progress | None = None) -> Resource:
        """Add a public key; one that the account has already is returned as it is."""
        with self._changing:
            there = self.all()
            if (same := self._same(spec, there)) is not None:
                return same
            # Others may have the same name. None of those that were there before is the new one.
            known = spec.known_ids | {one.id for one in there}
            return super().create(replace(spec, known_ids=known), progress=progress)

    def plan_create(self, spec: ResourceSpec) -> list[PlannedCall]:
        """Return the call of :meth:`create`, none where the account has the key."""
        return [] if self._same(spec, self.all()) else super().plan_create(spec)

    def _same(self, spec: ResourceSpec, there: list[Resource]) -> Resource | None:
        wanted = self.public_key(spec)
        return next((one for one in there if same_ssh_key(wanted, one.detail["public_key"])), None)

    @abstractmethod
    def all(self) -> list[Resource]:
        """Return every key of the account."""

    def public_key(self, spec: ResourceSpec) -> str:
        """Return the key as ``type body name``; a private one is refused before it goes anywhere."""
        self.check(spec)
        found = _PUBLIC_KEY.fullmatch(spec.content.strip())
        if not found:
            raise UsageError(
                f"What is to be the SSH key {key_name(spec)} is no public key: that is one line such as "
                "`ssh-ed25519 AAAA… name`, the content of a file that ends in .pub."
            )
        return f"{found[1]} {found[2]} {key_name(spec)}"

    def key(self, resource_id: str, public_key: str, name: str = "", **more: Any) -> Resource:
        """Return a key of the account; without a name of its own it is called by the comment in it."""
        words = public_key.split(maxsplit=2)
        called = name or (text(words[2]) if len(words) > 2 else "")
        detail = {"public_key": " ".join(words[:2]), "fingerprint": fingerprint(public_key)}
        return self.resource(resource_id, called, RunRef.from_label(called), detail=detail, **more)


def key_name(spec: ResourceSpec) -> str:
    """Return what a key is called: free text, so the label itself where it is for a run."""
    return spec.ref.label if spec.ref else spec.name


def fingerprint(public_key: str) -> str:
    """Return a key's fingerprint as ``ssh-keygen -l`` shows it."""
    body = [*public_key.split(), "", ""][1]
    try:
        raw = base64.b64decode(body, validate=True)
    except ValueError:
        raw = public_key.encode()
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
