"""How an account of a cloud is entered: one type of credential for each cloud.

A credential says where it is found, how it signs a request, and what of it may go to a rented machine. The key of an
account never does. A cloud that is signed for in another way (a pair of keys, a profile, a service account's file) gets
a type of its own here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import requests
import yaml
from requests.auth import AuthBase

from gpuyard.errors import UsageError


@dataclass(frozen=True)
class Credential:
    """What opens an account. ``value`` is shown in no representation."""

    value: str = field(repr=False)
    variable: ClassVar[str]
    """The environment variable that holds it, which wins over the file."""
    file: ClassVar[str]
    """The file of the provider's own tool, as shown to people."""

    @classmethod
    def find(cls, env: Mapping[str, str]) -> Self | None:
        """Return what the environment or the file holds, ``None`` for nothing; :class:`UsageError` for a bad file."""
        value = env.get(cls.variable, "").strip() or cls.kept(env)
        return cls(value) if value else None

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        """Return what the file holds, ``""`` for nothing. By default that is all of it."""
        return read_file(Path(cls.file).expanduser())


@dataclass(frozen=True)
class BearerKey(Credential):
    """A key that goes with each request in its header ``Authorization``. It stays on the controller."""

    def signature(self, title: str) -> Bearer:
        """Return what signs the requests to ``title``; raises :class:`UsageError` for what no key can be."""
        if any(not 0x21 <= ord(character) <= 0x7E for character in self.value):
            raise UsageError(
                f"The {title} API key holds a space, a line break or another character that no key has; "
                "copy it again from the provider's console."
            )
        return Bearer(self.value)


class Bearer(AuthBase):
    """Adds a key to a request.

    An authenticator rather than a header, because ``requests`` would replace the header by whatever ``~/.netrc`` has.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def __repr__(self) -> str:
        return "Bearer(***)"

    def clean(self, text: str) -> str:
        """Return ``text`` without the key, for services that repeat it in their answers."""
        return text.replace(self._key, "***") if self._key else text


@dataclass(frozen=True)
class VastKey(BearerKey):
    """Vast's key, or that of a session with two factors, as its own tool keeps them."""

    variable: ClassVar[str] = "VAST_API_KEY"
    file: ClassVar[str] = "~/.config/vastai/vast_api_key"

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        folder = _config_home(env) / "vastai"
        files = (folder / "vast_tfa_key", folder / "vast_api_key", Path("~/.vast_api_key").expanduser())
        return next((key for key in map(read_file, files) if key), "")


@dataclass(frozen=True)
class VultrKey(BearerKey):
    """Vultr's key, as its own tool keeps it."""

    variable: ClassVar[str] = "VULTR_API_KEY"
    file: ClassVar[str] = "~/.config/vultr-cli.yaml"

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        for path in (_config_home(env) / "vultr-cli.yaml", Path("~/.vultr-cli.yaml").expanduser()):
            content = read_file(path)
            if not content:
                continue
            try:
                fields = yaml.safe_load(content)
            except yaml.YAMLError:
                # The parser's own words quote the file, and the file holds a key.
                raise UsageError(f"The key file {path} is not YAML; it should hold a line `api-key: …`.") from None
            key = fields.get("api-key") if isinstance(fields, dict) else None
            if key:
                return str(key).strip()
        return ""


@dataclass(frozen=True)
class LambdaKey(BearerKey):
    """Lambda's key, from the file that SkyPilot keeps: a line ``api_key = …``."""

    variable: ClassVar[str] = "LAMBDA_API_KEY"
    file: ClassVar[str] = "~/.lambda_cloud/lambda_keys"

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        for line in read_file(Path(cls.file).expanduser()).splitlines():
            name, _, key = line.partition("=")
            if name.strip() == "api_key":
                return key.strip()
        return ""


@dataclass(frozen=True)
class RunPodKey(BearerKey):
    """RunPod's key, as its own tool keeps it."""

    variable: ClassVar[str] = "RUNPOD_API_KEY"
    file: ClassVar[str] = "~/.runpod/config.toml"

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        path = Path(cls.file).expanduser()
        try:
            fields = tomllib.loads(read_file(path)).get("default")
        except tomllib.TOMLDecodeError:
            # The parser's own words may quote the file, and the file holds a key.
            raise UsageError(f"The key file {path} is not TOML; it should hold `api_key` below [default].") from None
        return str(fields.get("api_key") or "").strip() if isinstance(fields, dict) else ""


def read_file(path: Path) -> str:
    """Return a key file's content without surrounding white space, ``""`` when there is none."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"The key file {path} cannot be read: {getattr(error, 'strerror', None) or 'not text'}."
        ) from None


def _config_home(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
