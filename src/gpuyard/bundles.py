"""Bundles in a bucket: found by the state that a machine is to have, written, listed and deleted.

The machine itself fetches and sends the pieces, with addresses that are good for one object and some hours. The keys of
the bucket stay on the controller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gpuyard import fingerprint
from gpuyard.box.checkpoints import Store, open_store
from gpuyard.box.checkpoints.s3_store import S3Store
from gpuyard.config import BucketSettings
from gpuyard.errors import CheckpointError, MissingObjectError, UsageError
from gpuyard.formats.bundle import FOLDER, Bundle, is_key, key_of
from gpuyard.formats.manifest import MALFORMED, timestamp
from gpuyard.remedies import option

PARTS = ("rust", "lean", "pantograph", "repository", "python", "build", fingerprint.OWN.name)
"""The parts of a machine's state that lie in folders of their own, so that a bundle can hold them."""
TOOLS = ("rust", "lean", "pantograph", "python")
"""Those of them for which a bundle of another state of the same workload is worth fetching."""
_GOOD_FOR_S = 6 * 3600
_MANIFEST = "manifest.json"


def wanted(parts: Mapping[str, str]) -> dict[str, str]:
    """Return those of a plan's ``parts`` that a bundle can hold."""
    return {name: parts[name] for name in PARTS if name in parts}


@dataclass(frozen=True, slots=True)
class Shelf:
    """The bundles of one bucket. ``outside`` is the same bucket as machines reach it."""

    store: Store
    outside: S3Store

    def find(self, parts: Mapping[str, str]) -> list[Bundle]:
        """Return the bundles, one for each platform, of a state with these parts of a plan: none costs one request.

        Raises :class:`gpuyard.errors.BucketError`. A damaged manifest, and one of a newer gpuyard, is passed over.
        """
        return list(self._read(f"{FOLDER}/{key_of(wanted(parts))}/"))

    def near(self, parts: Mapping[str, str], workload: str, lacking: Collection[str]) -> list[Bundle]:
        """Return the nearest bundle for each platform, where none is of the very state of ``parts``.

        It is one of the same ``workload``, such as of an earlier state of its code, and brings a toolchain or an
        environment that is wanted and that the machine is ``lacking``. Its ``held`` names only the parts that fit.
        """
        found: dict[str, Bundle] = {}
        if not workload or not set(TOOLS) & set(lacking):
            return []
        for bundle in self.all():
            fits = tuple(name for name in bundle.held if bundle.parts[name] == parts.get(name))
            if bundle.workload != workload or not set(TOOLS) & set(lacking) & set(fits):
                continue
            best = found.get(bundle.platform)
            # The newest comes first, and stays among equals.
            if best is None or len(fits) > len(best.held):
                found[bundle.platform] = dataclasses.replace(bundle, held=fits)
        return list(found.values())

    def all(self) -> list[Bundle]:
        """Return every bundle, the newest first."""
        return sorted(self._read(f"{FOLDER}/"), key=lambda bundle: bundle.created, reverse=True)

    def _read(self, prefix: str) -> Iterator[Bundle]:
        for found in self.store.objects(prefix):
            if not found.key.endswith(f"/{_MANIFEST}"):
                continue
            try:
                bundle = Bundle.from_bytes(self.store.get(found.key), where=f"{self.store.url}/{found.key}")
            except MissingObjectError:
                continue  # somebody has deleted it at this moment
            except CheckpointError:
                continue
            if f"{bundle.folder}{_MANIFEST}" == found.key:
                yield bundle

    def addresses(self, bundle: Bundle) -> dict[str, str]:
        """Return by the SHA-256 of each piece the address from which a machine fetches it."""
        return {
            piece.sha256: self.outside.signed(bundle.folder + piece.sha256, _GOOD_FOR_S)
            for piece in (*bundle.pieces, bundle.zstd)
        }

    def to_send(self, packed: Mapping[str, Any]) -> tuple[Bundle, dict[str, str]]:
        """Return the bundle that a machine has packed, and where it sends the pieces that are not in the bucket yet.

        Raises :class:`CheckpointError` for an answer of the machine that is no bundle.
        """
        try:
            bundle = dataclasses.replace(Bundle.from_dict(packed), created=timestamp())
        except MALFORMED as error:
            raise CheckpointError("The machine has packed something that is no bundle.") from error
        there = {found.key: found.size for found in self.store.objects(bundle.folder)}
        missing = [
            piece for piece in (*bundle.pieces, bundle.zstd) if there.get(bundle.folder + piece.sha256) != piece.bytes
        ]
        return bundle, {
            piece.sha256: self.outside.signed(bundle.folder + piece.sha256, _GOOD_FOR_S, put=True) for piece in missing
        }

    def finish(self, bundle: Bundle) -> None:
        """Write the manifest of a bundle whose pieces are in the bucket, and remove what an earlier one there had."""
        there = {found.key: found.size for found in self.store.objects(bundle.folder)}
        for piece in (*bundle.pieces, bundle.zstd):
            if there.pop(bundle.folder + piece.sha256, None) != piece.bytes:
                raise CheckpointError(
                    f"The piece {piece.sha256[:12]} of the bundle is not in the bucket; make it again."
                )
        self.store.put(bundle.folder + _MANIFEST, bundle.to_bytes())
        for key in there:
            if not key.endswith(f"/{_MANIFEST}"):
                self.store.delete(key)

    def delete(self, key: str) -> list[Bundle]:
        """Delete the bundles of ``key``, their manifests first, and return them. What a cut-off one left goes too."""
        if not is_key(key):
            raise UsageError(f"bundle={key} is no bundle's key, which has 32 hexadecimal digits.")
        prefix = f"{FOLDER}/{key}/"
        bundles = list(self._read(prefix))
        names = sorted(
            (found.key for found in self.store.objects(prefix)), key=lambda name: not name.endswith(_MANIFEST)
        )
        for name in names:
            self.store.delete(name)
        return bundles


def shelf(settings: BucketSettings) -> Shelf:
    """Return the bundles of a bucket; raises :class:`UsageError` where there is none that machines share."""
    if settings.location.scheme != "s3":
        raise UsageError(
            f"Bundles need a bucket of S3 that all machines reach: name one with {option('bucket', 's3://…')}"
            + (f", instead of {settings.url}." if settings.url else ".")
        )
    endpoint = settings.endpoint_from_boxes or settings.endpoint
    places = (settings.location, dataclasses.replace(settings.location, endpoint=endpoint))
    store, outside = (open_store(place, env=settings.keys) for place in places)
    assert isinstance(outside, S3Store)  # by the scheme
    return Shelf(store, outside)
