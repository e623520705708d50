"""Where the clouds, their keys, the bucket and the SSH key come from.

Options win over the environment, the environment over the files where the providers' own tools keep their keys. With
``sandbox`` everything comes from the running sandbox instead, and no key of a real account is ever read.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from gpuyard import paths
from gpuyard.errors import UsageError
from gpuyard.providers.base import Progress, Provider
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.sandbox import info as sandbox_info
from gpuyard.sandbox.info import SandboxInfo

_PREFIX = re.compile(r"(/[^/\s\x00-\x1f]+)*/?")
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_NOT_RUNNING = "The sandbox is not running under {state}: run `gpuyard sandbox up`."
_NO_SANDBOX = (
    "sandbox_state={state}: there is no sandbox there; `ansible-playbook launch.yml -e sandbox=true` with that "
    "sandbox_state, or `gpuyard sandbox up --state {state}`, makes one."
)


@dataclass(frozen=True, slots=True)
class _Cloud:
    """What configuration knows of a provider."""

    make: Callable[..., Provider]  # takes the key, base_url=, emulated= and sandbox=
    variable: str
    key_file: str  # as shown to people
    read_file: Callable[[Mapping[str, str]], str]


def _read(path: Path) -> str:
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


def _vast_file(env: Mapping[str, str]) -> str:
    folder = _config_home(env) / "vastai"
    files = (folder / "vast_tfa_key", folder / "vast_api_key", Path("~/.vast_api_key").expanduser())
    return next((key for key in map(_read, files) if key), "")


def _vultr_file(env: Mapping[str, str]) -> str:
    for path in (_config_home(env) / "vultr-cli.yaml", Path("~/.vultr-cli.yaml").expanduser()):
        content = _read(path)
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


CLOUDS: dict[str, _Cloud] = {
    "vast": _Cloud(Vast, "VAST_API_KEY", "~/.config/vastai/vast_api_key", _vast_file),
    "vultr": _Cloud(Vultr, "VULTR_API_KEY", "~/.config/vultr-cli.yaml", _vultr_file),
}
"""The clouds by name, in the order in which they are named to people."""


@dataclass(frozen=True, slots=True)
class Site:
    """Which world we are in."""

    sandbox: bool
    sandbox_state: Path
    env: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(
        cls,
        sandbox: bool | None = None,
        sandbox_state: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Site:
        """Return the site for the given options; ``None`` means: as the environment says."""
        variables = os.environ if env is None else env
        state = Path(sandbox_state).expanduser() if sandbox_state else paths.sandbox_state()
        return cls(_flag(variables, "GPUYARD_SANDBOX") if sandbox is None else sandbox, state, variables)


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """Where checkpoints go. ``url`` is ``s3://name[/prefix]``, ``file:///folder``, or ``""`` for none."""

    url: str = ""
    endpoint: str = ""  # "": Amazon's own
    endpoint_from_boxes: str = ""  # the same server under the name that rented boxes reach it by
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    region: str = ""


@dataclass(frozen=True, slots=True)
class SshKey:
    """An SSH key pair: the private half by path, never by content."""

    private_path: Path
    public_text: str  # one line: type, body, and perhaps a comment


def connect(
    provider: str | None = None,
    *,
    sandbox: bool | None = None,
    sandbox_state: str | Path | None = None,
    require: bool = True,
    start_sandbox: bool = False,
    env: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> list[Provider]:
    """Return the clouds to talk to: the named one, or all that have a key. Nothing is sent yet.

    A sandbox that is not running is started where ``start_sandbox`` says so: by what rents. Everything else only looks,
    and a misspelt folder must not become a sandbox. With ``require=False`` (inventories) whatever is not configured or
    does not run is left out without an error. Raises :class:`UsageError` for an unknown provider, for a missing key,
    and for a sandbox that does not run.
    """
    if provider is not None and provider not in CLOUDS:
        raise UsageError(f"provider={provider!r} is not known; choose one of: {', '.join(CLOUDS)}.")
    wanted = [provider] if provider else list(CLOUDS)
    site = Site.of(sandbox, sandbox_state, env)
    if site.sandbox:
        info = sandbox_info.read(site.sandbox_state)
        if info is None and not require:
            return []
        if info is None and not start_sandbox:
            exists = (site.sandbox_state / "settings.json").exists()
            raise UsageError((_NOT_RUNNING if exists else _NO_SANDBOX).format(state=site.sandbox_state))
        info = info or _start_sandbox(site.sandbox_state, progress)
        return [
            CLOUDS[name].make(info.keys[name], base_url=info.endpoints[name], emulated=True, sandbox=info.name)
            for name in wanted
            if name in info.keys and name in info.endpoints
        ]
    found = {name: key for name in wanted if (key := _key(CLOUDS[name], site.env))}
    if require and not found:
        raise UsageError(_no_key(provider))
    return [CLOUDS[name].make(key) for name, key in found.items()]


def s3_settings(
    bucket: str | None = None,
    *,
    bucket_endpoint: str | None = None,
    sandbox: bool | None = None,
    sandbox_state: str | Path | None = None,
    env: Mapping[str, str] | None = None,
) -> BucketSettings:
    """Return where checkpoints go.

    ``bucket`` is the option (``None``: the sandbox's own bucket, or ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` of the
    environment; ``""``: none). Credentials come from ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``, in the
    sandbox from the sandbox; a sandbox that is not running is an error, never a reason to use the real bucket.
    """
    site = Site.of(sandbox, sandbox_state, env)
    info = sandbox_info.read(site.sandbox_state) if site.sandbox else None
    if site.sandbox and info is None and (bucket is None or bucket.startswith("s3:")):
        raise UsageError(_NOT_RUNNING.format(state=site.sandbox_state))
    if bucket is None:
        bucket = f"s3://{info.bucket}" if info else _bucket_of(site.env)
    if not bucket:
        return BucketSettings()
    parts = urlsplit(bucket)
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/") or ".." in parts.path.split("/"):
            raise UsageError(f"bucket={bucket!r} must name an absolute folder, without '..': file:///folder.")
        return BucketSettings(url=bucket)
    if parts.scheme != "s3" or not parts.netloc:
        raise UsageError(
            f"bucket={bucket!r} is no bucket that gpuyard can use: write s3://name or s3://name/prefix, "
            "file:///folder, or nothing for none."
        )
    if not _PREFIX.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")) or parts.query or parts.fragment:
        raise UsageError(
            f"bucket={bucket!r} must be s3://name or s3://name/prefix; the prefix has no '.', '..' or empty part, and "
            "no space, '?' or '#'."
        )
    if info and not bucket_endpoint:
        endpoint = info.endpoints["s3"]
        return BucketSettings(
            url=bucket,
            endpoint=endpoint,
            endpoint_from_boxes=info.from_boxes.get("s3", endpoint),
            access_key=info.s3_access_key,
            secret_key=info.s3_secret_key,
            region="us-east-1",
        )
    access, secret = site.env.get("AWS_ACCESS_KEY_ID", ""), site.env.get("AWS_SECRET_ACCESS_KEY", "")
    if not (access and secret):
        raise UsageError(
            f"bucket={bucket!r} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment; without a bucket "
            "(-e bucket='') checkpoints stay on the box."
        )
    endpoint = bucket_endpoint or site.env.get("AWS_ENDPOINT_URL_S3") or site.env.get("AWS_ENDPOINT_URL") or ""
    region = site.env.get("AWS_DEFAULT_REGION") or site.env.get("AWS_REGION") or "us-east-1"
    return BucketSettings(bucket, endpoint, endpoint, access, secret, region)


def mirrors(*, sandbox: bool | None = None, sandbox_state: str | Path | None = None) -> dict[str, str]:
    """Return where machines get toolchains from instead of their official servers, by toolchain (``rust``).

    Only the sandbox has such mirrors: its machines may be unable to reach the official servers.
    """
    site = Site.of(sandbox, sandbox_state)
    info = sandbox_info.read(site.sandbox_state) if site.sandbox else None
    rust = info.from_boxes.get("rust_mirror") if info else None
    return {"rust": rust} if rust else {}


def ssh_key(path: str | None = None) -> SshKey:
    """Return the SSH key at ``path``, or gpuyard's own one, which is made when it is not there yet.

    Raises :class:`UsageError` when the named key does not exist or is not a private key.
    """
    private = Path(path).expanduser() if path else paths.home() / "keys" / "id_ed25519"
    if not path and not private.exists():
        _make_key(private)
    if private.suffix == ".pub":
        raise UsageError(f"ssh_key={path} is a public key; name the private one, {private.with_suffix('')}.")
    if not private.is_file():
        raise UsageError(f"ssh_key={path} does not exist; leave the option out and gpuyard makes a key of its own.")
    public = _read(private.with_name(private.name + ".pub")) or _public_of(private)
    if len(public.split()) < 2 or "\n" in public:
        raise UsageError(f"{private}.pub does not hold one SSH public key.")
    return SshKey(private.absolute(), public)


def _key(cloud: _Cloud, env: Mapping[str, str]) -> str:
    return env.get(cloud.variable, "").strip() or cloud.read_file(env)


def _no_key(provider: str | None) -> str:
    way_out = "or try it on the emulated clouds of this machine with -e sandbox=true (or GPUYARD_SANDBOX=1)."
    if provider:
        cloud = CLOUDS[provider]
        return f"There is no key for {provider}: set {cloud.variable} or put it into {cloud.key_file}, {way_out}"
    variables = " or ".join(cloud.variable for cloud in CLOUDS.values())
    return f"There is no key of any cloud: set {variables} (or use the files of the providers' own tools), {way_out}"


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{name}={env[name]!r} is neither yes nor no; use 1 or 0.")


def _start_sandbox(state: Path, progress: Progress | None) -> SandboxInfo:
    # Imported here: the sandbox brings a web server, which no real run needs.
    from gpuyard.sandbox import client

    paths.check_state_folder(state)
    client.ensure_up(state, progress=progress or (lambda _: None))
    info = sandbox_info.read(state)
    if info is None:
        raise UsageError(_NOT_RUNNING.format(state=state))
    return info


def _bucket_of(env: Mapping[str, str]) -> str:
    """Return the bucket URL of ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` (a name or a URL), ``""`` for local only."""
    kind, name = env.get("CLOUD_PROVIDER", "").strip().lower(), env.get("CLOUD_BUCKET", "").strip()
    if kind in ("gcs", "azure"):
        raise UsageError(f"CLOUD_PROVIDER={kind} is not supported for checkpoints; use s3 or local.")
    if kind not in ("", "s3", "local"):
        raise UsageError(f"CLOUD_PROVIDER={kind!r} is not known; use s3 or local.")
    if kind == "local" or not name:
        if kind == "s3":
            raise UsageError("CLOUD_PROVIDER=s3 needs a bucket: set CLOUD_BUCKET.")
        return ""
    return name if "://" in name else f"s3://{name}"


def _make_key(private: Path) -> None:
    """Make gpuyard's own key. Two processes may do so at once: both end up with the one that came first."""
    paths.ensure_private(private.parent)
    with tempfile.TemporaryDirectory(dir=private.parent) as folder:
        fresh = Path(folder) / private.name
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gpuyard", "-f", str(fresh)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise UsageError("ssh-keygen is not installed; install the OpenSSH client.") from None
        except subprocess.CalledProcessError as error:
            raise UsageError(f"No SSH key could be made in {private.parent}: {error.stderr.strip()}") from None
        try:
            # A link, unlike a rename, does not replace what another process has put there.
            private.hardlink_to(fresh)
        except FileExistsError:
            return
        fresh.with_name(fresh.name + ".pub").rename(private.with_name(private.name + ".pub"))


def _public_of(private: Path) -> str:
    """Return the public half of a key that has no ``.pub`` file beside it."""
    command = ["ssh-keygen", "-y", "-P", "", "-f", str(private)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UsageError("ssh-keygen is not installed; install the OpenSSH client.") from None
    if done.returncode:
        raise UsageError(
            f"ssh_key={private} cannot be read as a private key without a passphrase, and there is no {private}.pub."
        )
    return done.stdout.strip()
