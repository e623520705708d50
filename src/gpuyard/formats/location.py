"""Where a bucket is: its address, taken apart and checked in one place.

An address is ``s3://name``, ``gs://name``, ``az://container``, each with or without ``/prefix``, or ``file:///folder``;
nothing at all stands for no bucket. Training code and the tools of others know the same by variables:
``CLOUD_PROVIDER`` and ``CLOUD_BUCKET``, and what :data:`KINDS` lists for each kind of store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gpuyard.errors import UsageError

DEFAULT_REGION = "us-east-1"
_PREFIX = re.compile(r"(/[^/\s\x00-\x1f]+)*/?")
_LOCAL = "local"
_AZURE_HOST = "blob.core.windows.net"


def _s3_endpoint(env: Mapping[str, str]) -> str:
    return env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""


def _google_endpoint(env: Mapping[str, str]) -> str:
    """Return the address of an emulator of Google's storage, which is what this variable of Google's own names."""
    host = env.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    return f"http://{host}" if host and "://" not in host else host


def _azure_endpoint(env: Mapping[str, str]) -> str:
    """Return the address of the account, with which all of its containers begin."""
    string = connection_string(env.get("AZURE_STORAGE_CONNECTION_STRING", ""))
    account = string.get("AccountName") or env.get("AZURE_STORAGE_ACCOUNT")
    named = string.get("BlobEndpoint") or env.get("AZURE_STORAGE_SERVICE_ENDPOINT")
    if named or not account:
        return (named or "").rstrip("/")
    suffix = string.get("EndpointSuffix")
    protocol = string.get("DefaultEndpointsProtocol", "https")
    return f"{protocol}://{account}.{f'blob.{suffix}' if suffix else _AZURE_HOST}"


def _s3_variables(place: Location) -> dict[str, str]:
    return {"AWS_ENDPOINT_URL_S3": place.endpoint, "AWS_DEFAULT_REGION": place.region}


def _google_variables(place: Location) -> dict[str, str]:
    return {"STORAGE_EMULATOR_HOST": place.endpoint}


def _azure_variables(place: Location) -> dict[str, str]:
    return {"AZURE_STORAGE_ACCOUNT": place.account, "AZURE_STORAGE_SERVICE_ENDPOINT": place.endpoint}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of bucket that is reached by network: what its addresses begin with, and how variables name it."""

    scheme: str
    provider: str
    """What ``CLOUD_PROVIDER`` calls it."""
    title: str
    endpoint: Callable[[Mapping[str, str]], str]
    """From an environment to the address of the service, ``""`` for the cloud's own."""
    variables: Callable[[Location], dict[str, str]]
    """The reverse of it."""
    own_variables: tuple[str, ...]
    """Variables that say where such a bucket is, besides ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET``."""
    keys: tuple[str, ...]
    """Variables with what opens it, where it is not a role of the machine that does."""


KINDS = (
    Kind(
        "s3",
        "s3",
        "Amazon S3",
        _s3_endpoint,
        _s3_variables,
        ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    ),
    Kind(
        "gs",
        "gcs",
        "Google Cloud Storage",
        _google_endpoint,
        _google_variables,
        ("STORAGE_EMULATOR_HOST",),
        ("GOOGLE_APPLICATION_CREDENTIALS",),
    ),
    Kind(
        "az",
        "azure",
        "Azure Blob Storage",
        _azure_endpoint,
        _azure_variables,
        ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_SERVICE_ENDPOINT"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"),
    ),
)
"""Every kind of bucket that is reached by network. A folder (``file://``, ``local``) is the only other store."""
_BY_SCHEME = {kind.scheme: kind for kind in KINDS}
_BY_PROVIDER = {kind.provider: kind for kind in KINDS}
_ADDRESSES = ", ".join(f"{kind.scheme}://name" for kind in KINDS)
_PROVIDERS = ", ".join(kind.provider for kind in KINDS)
BUCKET_VARIABLES = ("CLOUD_PROVIDER", "CLOUD_BUCKET", *(name for kind in KINDS for name in kind.own_variables))
"""Every variable that says where a bucket is."""
KEY_VARIABLES = tuple(name for kind in KINDS for name in kind.keys)
"""Every variable with what opens a bucket."""

KEY_FILES = ("GOOGLE_APPLICATION_CREDENTIALS",)
"""Those of them that name a file."""


def connection_string(text: str) -> dict[str, str]:
    """Return the parts of a connection string of Azure's, by their names; those without a value are left out."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs if value.strip()}


@dataclass(frozen=True, slots=True)
class Location:
    """A bucket's place. One without a ``scheme`` is nowhere, and is false.

    ``scheme`` is that of a row of :data:`KINDS`, or ``file``; ``name`` is the bucket's or container's name, or the
    absolute path of the folder; ``prefix`` is what every key begins with, without a slash at either end. ``endpoint``
    is the address of the service: an empty one is the cloud's own, for Azure it is that of the account. ``region`` is
    S3's.
    """

    scheme: str = ""
    name: str = ""
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def __bool__(self) -> bool:
        return bool(self.scheme)

    @property
    def kind(self) -> Kind | None:
        """Its row of :data:`KINDS`, ``None`` for a folder and for nowhere."""
        return _BY_SCHEME.get(self.scheme)

    @property
    def by_network(self) -> bool:
        """Whether every machine reaches the same bucket here; a folder may be another one on each."""
        return self.kind is not None

    @property
    def account(self) -> str:
        """The account of Azure's that the endpoint belongs to, ``""`` for other kinds."""
        if self.scheme != "az" or not self.endpoint:
            return ""
        parts = urlsplit(self.endpoint)
        # An emulator has its accounts in the path.
        return parts.path.strip("/").split("/")[0] or (parts.hostname or "").partition(".")[0]

    @property
    def url(self) -> str:
        """The address, ``""`` for nowhere."""
        if self.scheme == "file":
            return Path(self.name).as_uri()
        return f"{self.scheme}://{self.name}{self.prefix and '/'}{self.prefix}" if self.scheme else ""

    def below(self, path: str) -> Location:
        """Return the place of everything whose key begins with ``path`` here."""
        if self.scheme == "file":
            return replace(self, name=f"{self.name.rstrip('/')}/{path}")
        return replace(self, prefix=f"{self.prefix}/{path}".lstrip("/"))

    def variables(self) -> dict[str, str]:
        """Return the environment variables from which :meth:`from_environment` makes this, without any key."""
        kind = self.kind
        if kind is None:
            return {"CLOUD_PROVIDER": _LOCAL} | ({"CLOUD_BUCKET": self.name} if self else {})
        bucket = self.url.partition("://")[2]
        named = {name: value for name, value in kind.variables(self).items() if value}
        return {"CLOUD_PROVIDER": kind.provider, "CLOUD_BUCKET": bucket} | named

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
        if parts.scheme not in _BY_SCHEME or not parts.netloc:
            raise UsageError(
                f"bucket={url!r} is not an address of a bucket: use {_ADDRESSES}, each with or without /prefix, "
                "file:///folder, or nothing for none."
            )
        leads_away = {".", ".."} & set(parts.path.split("/")) or parts.query or parts.fragment
        if leads_away or not _PREFIX.fullmatch(parts.path):
            raise UsageError(
                f"bucket={url!r} must be {parts.scheme}://name or {parts.scheme}://name/prefix; the prefix has no '.', "
                "'..' or empty part, and no space, '?' or '#'."
            )
        if "@" in parts.netloc:
            raise UsageError(
                f"The bucket's address must not hold a user, password or account: {parts.scheme}://name/prefix; what "
                "opens it comes from the environment."
            )
        return cls(parts.scheme, parts.netloc, parts.path.strip("/"), endpoint, region if parts.scheme == "s3" else "")

    @classmethod
    def of_provider(cls, provider: str, bucket: str, *, endpoint: str = "", region: str = "") -> Location:
        """Return the place that ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` name.

        ``provider`` is one of :data:`KINDS` or ``local``, or empty for S3 where there is a bucket; ``bucket`` is
        ``name`` or ``name/prefix``, an address, or for ``local`` a folder. ``local`` without a folder is nowhere.
        Raises :class:`UsageError`.
        """
        kind, name = provider.strip().lower(), bucket.strip()
        if kind not in ("", _LOCAL, *_BY_PROVIDER):
            raise UsageError(f"CLOUD_PROVIDER={provider!r} is not known: use {_PROVIDERS} or local.")
        if kind in _BY_PROVIDER and not name:
            raise UsageError(f"CLOUD_PROVIDER={kind} needs a bucket: set CLOUD_BUCKET.")
        if kind == _LOCAL and name and "://" not in name:
            return cls("file", str(Path(name).absolute()))
        scheme = _BY_PROVIDER[kind].scheme if kind in _BY_PROVIDER else "s3"
        address = name if not name or "://" in name else f"{scheme}://{name}"
        if kind in _BY_PROVIDER and not address.startswith(f"{scheme}://"):
            raise UsageError(f"CLOUD_PROVIDER={kind} does not fit CLOUD_BUCKET={name}, which is of another kind.")
        return cls.parse(address, endpoint=endpoint, region=region)

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Location:
        """Return the place that the environment names; nowhere when it names none. Raises :class:`UsageError`."""
        place = cls.of_provider(env.get("CLOUD_PROVIDER", ""), env.get("CLOUD_BUCKET", ""))
        return place.completed(env)

    def completed(self, env: Mapping[str, str]) -> Location:
        """Return it with the endpoint and region of the environment where it has none of its own."""
        kind = self.kind
        if kind is None:
            return self
        found = replace(self, endpoint=self.endpoint or kind.endpoint(env))
        if self.scheme != "s3":
            return found
        region = self.region or env.get("AWS_DEFAULT_REGION") or env.get("AWS_REGION") or DEFAULT_REGION
        return replace(found, region=region)
