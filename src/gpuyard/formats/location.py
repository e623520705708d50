"""Where a bucket is: its address, taken apart and checked in one place.

An address is ``s3://name``, ``s3://name/prefix`` or ``file:///folder``; nothing at all stands for no bucket. Training
code and the tools of others know the same by variables: ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET``, and for a service
other than Amazon's ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpuyard.errors import UsageError

DEFAULT_REGION = "us-east-1"
_PREFIX = re.compile(r"(/[^/\s\x00-\x1f]+)*/?")
_LOCAL = "local"
_NOT_YET = ("gcs", "azure")


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket's place. One without a ``scheme`` is nowhere, and is false.

    ``scheme`` is ``s3`` or ``file``; ``name`` is the bucket's name, or the absolute path of the folder; ``prefix`` is
    what every key begins with, without a slash at either end. ``endpoint`` and ``region`` are S3's: an empty endpoint
    is Amazon's own.
    """

    scheme: str = ""
    name: str = ""
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def __bool__(self) -> bool:
        return bool(self.scheme)

    @property
    def url(self) -> str:
        """The address, ``""`` for nowhere."""
        if self.scheme == "file":
            return Path(self.name).as_uri()
        return f"s3://{self.name}{self.prefix and '/'}{self.prefix}" if self.scheme else ""

    def below(self, path: str) -> Location:
        """Return the place of everything whose key begins with ``path`` here."""
        if self.scheme == "file":
            return replace(self, name=f"{self.name.rstrip('/')}/{path}")
        return replace(self, prefix=f"{self.prefix}/{path}".lstrip("/"))

    def variables(self) -> dict[str, str]:
        """Return the environment variables from which :meth:`from_environment` makes this, without any key."""
        if not self:
            return {"CLOUD_PROVIDER": _LOCAL}
        if self.scheme == "file":
            return {"CLOUD_PROVIDER": _LOCAL, "CLOUD_BUCKET": self.name}
        named = {"AWS_ENDPOINT_URL_S3": self.endpoint, "AWS_DEFAULT_REGION": self.region}
        bucket = self.url.partition("://")[2]
        return {"CLOUD_PROVIDER": self.scheme, "CLOUD_BUCKET": bucket} | {
            name: value for name, value in named.items() if value
        }

    @classmethod
    def parse(cls, url: str, *, endpoint: str = "", region: str = "") -> Location:
        """Return the place that an address names; nowhere for an empty one. Raises :class:`UsageError`."""
        if not url:
            return cls()
        parts = urlsplit(url)
        if parts.scheme == "file":
            folder = unquote(parts.path)
            if parts.netloc or not folder.startswith("/") or ".." in folder.split("/"):
                raise UsageError(
                    f"bucket={url!r} is not an address of a bucket: file:///folder names an absolute folder, without "
                    "'..'."
                )
            return cls("file", folder)
        if parts.scheme != "s3" or not parts.netloc:
            raise UsageError(
                f"bucket={url!r} is not an address of a bucket: use s3://name, s3://name/prefix, file:///folder, or "
                "nothing for none."
            )
        leads_away = {".", ".."} & set(parts.path.split("/")) or parts.query or parts.fragment
        if leads_away or not _PREFIX.fullmatch(parts.path):
            raise UsageError(
                f"bucket={url!r} must be s3://name or s3://name/prefix; the prefix has no '.', '..' or empty part, and "
                "no space, '?' or '#'."
            )
        return cls("s3", parts.netloc, parts.path.strip("/"), endpoint, region)

    @classmethod
    def of_provider(cls, provider: str, bucket: str, *, endpoint: str = "", region: str = "") -> Location:
        """Return the place that ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` name.

        ``provider`` is ``s3`` or ``local``, or empty for S3 where there is a bucket; ``bucket`` is ``name`` or
        ``name/prefix``, an address, or for ``local`` a folder. ``local`` without a folder is nowhere. Raises
        :class:`UsageError`.
        """
        kind, name = provider.strip().lower(), bucket.strip()
        if kind in _NOT_YET:
            raise UsageError(
                f"CLOUD_PROVIDER={provider} is not supported yet: use s3 (any S3-compatible bucket, with "
                "AWS_ENDPOINT_URL_S3) or local."
            )
        if kind not in ("", "s3", _LOCAL):
            raise UsageError(f"CLOUD_PROVIDER={provider!r} is not known: use s3 or local.")
        if kind == "s3" and not name:
            raise UsageError("CLOUD_PROVIDER=s3 needs a bucket: set CLOUD_BUCKET.")
        if kind == _LOCAL and name and "://" not in name:
            return cls("file", str(Path(name).absolute()))
        return cls.parse(name if not name or "://" in name else f"s3://{name}", endpoint=endpoint, region=region)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Location:
        """Return the place that the environment names; nowhere when it names none. Raises :class:`UsageError`."""
        place = cls.of_provider(env.get("CLOUD_PROVIDER", ""), env.get("CLOUD_BUCKET", ""))
        return place.completed(env)

    def completed(self, env: Mapping[str, str]) -> Location:
        """Return it with the endpoint and region of the environment where it has none of its own."""
        if self.scheme != "s3":
            return self
        return replace(
            self,
            endpoint=self.endpoint or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or "",
            region=self.region or env.get("AWS_DEFAULT_REGION") or env.get("AWS_REGION") or DEFAULT_REGION,
        )
