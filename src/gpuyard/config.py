"""Where the clouds, their keys, the bucket and the SSH key come from.

Options win over the environment, the environment over the files where the providers' own tools keep their keys. With
``sandbox`` everything comes from the running sandbox instead, and no key of a real account is ever read.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuyard import paths
from gpuyard.errors import UsageError
from gpuyard.formats.location import DEFAULT_REGION, Location
from gpuyard.providers.base import OWN, Provider
from gpuyard.providers.credentials import (
    BearerKey,
    Credential,
    LambdaKey,
    RunPodKey,
    VastKey,
    VultrKey,
    read_file,
)
from gpuyard.providers.http import Patience
from gpuyard.providers.lambda_cloud import Lambda
from gpuyard.providers.own import OWN_FILE, Own, OwnBoxes, read_inventory
from gpuyard.providers.runpod import RunPod
from gpuyard.providers.skypilot import ORDER, Skypilot, SkypilotClouds
from gpuyard.providers.vast import Vast
from gpuyard.providers.vultr import Vultr
from gpuyard.remedies import option, remedy
from gpuyard.sandbox import info as sandbox_info

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}
_NOT_RUNNING = "The sandbox is not running under {state}: run `gpuyard sandbox up`."
_NO_SANDBOX = (
    "sandbox_state={state}: there is no sandbox there; `{launch}` with that sandbox_state, or `gpuyard sandbox up "
    "--state {state}`, makes one."
)


@dataclass(frozen=True, slots=True)
class Cloud:
    """What configuration knows of a provider."""

    make: Callable[..., Provider]  # takes the credential's value, patience=, and where it is emulated base_url=, …
    credential: type[Credential]


CLOUDS: dict[str, Cloud] = {
    "vast": Cloud(Vast, VastKey),
    "vultr": Cloud(Vultr, VultrKey),
    "lambda": Cloud(Lambda, LambdaKey),
    "runpod": Cloud(RunPod, RunPodKey),
    OWN: Cloud(Own, OwnBoxes),
    "skypilot": Cloud(Skypilot, SkypilotClouds),
}
"""The clouds by name, in the order in which they are named to people."""


@dataclass(frozen=True, slots=True)
class World:
    """Whether the real clouds are meant, or which sandbox."""

    sandbox: bool
    sandbox_state: Path
    env: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(
        cls,
        sandbox: bool | None = None,
        sandbox_state: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> World:
        """Return the world for the given options; ``None`` means: as the environment says."""
        variables = os.environ if env is None else env
        state = Path(sandbox_state).expanduser() if sandbox_state else paths.sandbox_state()
        return cls(_flag(variables, "GPUYARD_SANDBOX") if sandbox is None else sandbox, state, variables)


@dataclass(frozen=True, slots=True)
class BucketSettings:
    """Where checkpoints go. ``url`` is that of :class:`Location`, ``""`` for none.

    ``keys`` are the variables with what opens it, as the environment or the sandbox has them. None are there where the
    cloud's own library finds them by itself: in a profile, or as the role of this machine.
    """

    url: str = ""
    endpoint: str = ""  # "": the cloud's own
    endpoint_from_boxes: str = ""  # the same server under the name that rented boxes reach it by
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    region: str = ""

    @property
    def location(self) -> Location:
        """Where it is, as this controller reaches it."""
        return Location.parse(self.url, endpoint=self.endpoint, region=self.region)


@dataclass(frozen=True, slots=True)
class SshKey:
    """An SSH key pair: the private half by path, never by content."""

    private_path: Path
    public_text: str  # one line: type, body, and perhaps a comment


def check_provider(provider: str | None) -> None:
    """Raise :class:`UsageError` for the name of a cloud that there is not; ``None`` stands for all of them."""
    if provider is not None and provider not in CLOUDS:
        raise UsageError(f"provider={provider!r} is not known; choose one of: {', '.join(CLOUDS)}.")


def connect(
    provider: str | None = None,
    *,
    sandbox: bool | None = None,
    sandbox_state: str | Path | None = None,
    require: bool = True,
    patience: Patience | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Provider]:
    """Return the clouds to talk to: the named one, or all that have a key. Nothing is sent yet.

    With ``require=False`` (inventories) whatever is not configured or does not run is left out without an error.
    ``patience`` says how often and how long each question is tried. Raises :class:`UsageError` for an unknown provider,
    for a missing key, and for a sandbox that does not run.
    """
    check_provider(provider)
    wanted = [provider] if provider else list(CLOUDS)
    world = World.of(sandbox, sandbox_state, env)
    if world.sandbox:
        info = sandbox_info.read(world.sandbox_state)
        if info is None and not require:
            return []
        if info is None:
            exists = (world.sandbox_state / "settings.json").exists()
            launch = remedy("launch", sandbox=True)
            raise UsageError((_NOT_RUNNING if exists else _NO_SANDBOX).format(state=world.sandbox_state, launch=launch))
        emulated: list[Provider] = [
            CLOUDS[name].make(
                info.keys[name], base_url=info.endpoints[name], emulated=True, sandbox=info.name, patience=patience
            )
            for name in wanted
            if name in info.keys and name in info.endpoints
        ]
        # No box that is really the user's: those of a sandbox are named in its own folder.
        boxes = world.sandbox_state.absolute() / OWN_FILE.name
        if OWN in wanted and read_inventory(boxes):
            emulated.append(Own(str(boxes), sandbox=info.name, patience=patience))
        if require and provider == "skypilot":
            raise UsageError("provider=skypilot is not in the sandbox, which emulates no cloud that SkyPilot is for.")
        if require and provider == OWN and not emulated:
            raise UsageError(f"There is no own box in {boxes}, where a sandbox's are named.")
        return emulated
    found = {name: key.value for name in wanted if (key := CLOUDS[name].credential.find(world.env))}
    if require and not found:
        raise UsageError(_no_key(provider))
    return [CLOUDS[name].make(key, patience=patience) for name, key in found.items()]


def known_clouds() -> list[Provider]:
    """Return every cloud, with a key here or not, to see what it can do; nothing can be asked of it."""
    return [cloud.make("none") for name, cloud in CLOUDS.items() if name != OWN]


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
    environment; ``""``: none). What opens it comes from the variables of :data:`gpuyard.formats.location.KINDS` or
    from the cloud's own profiles and roles, in the sandbox from the sandbox; a sandbox that is not running is an error,
    never a reason to use the real bucket.
    """
    world = World.of(sandbox, sandbox_state, env)
    info = sandbox_info.read(world.sandbox_state) if world.sandbox else None
    if world.sandbox and info is None and not (bucket is not None and Location.parse(bucket).kind is None):
        raise UsageError(_NOT_RUNNING.format(state=world.sandbox_state))
    if bucket is None:
        bucket = f"s3://{info.bucket}" if info else _bucket_of(world.env)
    location = Location.parse(bucket, endpoint=bucket_endpoint or "")
    kind = location.kind
    if kind is None:
        return BucketSettings(location.url)
    if info and not bucket_endpoint:
        if kind.scheme != "s3":
            raise UsageError(
                f"bucket={bucket!r}: the sandbox has no {kind.title}; name the server of an emulator with "
                f"{option('bucket_endpoint', 'http://…')}, or leave the bucket out for the sandbox's own."
            )
        endpoint = info.endpoints["s3"]
        return BucketSettings(
            url=location.url,
            endpoint=endpoint,
            endpoint_from_boxes=info.from_boxes.get("s3", endpoint),
            keys={"AWS_ACCESS_KEY_ID": info.s3_access_key, "AWS_SECRET_ACCESS_KEY": info.s3_secret_key},
            region=DEFAULT_REGION,
        )
    location = location.completed(world.env)
    keys = {name: value for name in kind.keys if (value := world.env.get(name, ""))}
    if kind.scheme == "s3" and not (keys.get("AWS_ACCESS_KEY_ID") and keys.get("AWS_SECRET_ACCESS_KEY")):
        if _aws_credentials() is None:
            raise UsageError(
                f"bucket={bucket!r} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or a profile "
                f"or role of Amazon's; without a bucket ({option('bucket', "''")}) checkpoints stay on the box."
            )
        keys = {}
    return BucketSettings(location.url, location.endpoint, location.endpoint, keys, location.region)


def keys_for_boxes(settings: BucketSettings) -> dict[str, str]:
    """Return the variables with what a box opens the bucket with: the narrowest that is here and that lasts.

    That of ``GOOGLE_APPLICATION_CREDENTIALS`` names a file of this controller, whose content a box needs. There are
    none where a box needs none, and where nothing here would last; see :func:`check_keys_for_boxes`.
    """
    kind, keys = settings.location.kind, dict(settings.keys)
    if kind is None:
        return {}
    if kind.scheme == "s3" and not keys and (found := _aws_credentials()):
        frozen = found.get_frozen_credentials()
        keys = {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
        keys |= {"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {}
    if "AWS_SESSION_TOKEN" in keys:
        return {}
    # Of Azure's, a token for one container comes before what opens the whole account.
    narrowest = "AZURE_STORAGE_SAS_TOKEN"
    return {narrowest: keys[narrowest]} if narrowest in keys else keys


def check_keys_for_boxes(settings: BucketSettings) -> None:
    """Raise :class:`UsageError` where a box could not open the bucket with anything that is here."""
    kind = settings.location.kind
    if kind is None or keys_for_boxes(settings) or (kind.scheme == "gs" and settings.endpoint):
        return  # no bucket, or an emulator of Google's, which asks for nothing
    if kind.scheme == "s3":
        raise UsageError(
            f"bucket={settings.url!r}: the keys of this machine's profile, session or role end after some hours, and a "
            "run may not: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of a user that may use this bucket only. "
            "Nothing was rented."
        )
    raise UsageError(
        f"bucket={settings.url!r}: a rented machine needs something to open it with: set {' or '.join(kind.keys)}. "
        "Nothing was rented."
    )


def _aws_credentials() -> Any:
    """Return what Amazon's library finds: keys of a profile, or those of a role, which end. ``None`` for nothing."""
    session = importlib.import_module("botocore.session").Session()
    exceptions = importlib.import_module("botocore.exceptions")
    try:
        return session.get_credentials()
    except exceptions.BotoCoreError as error:
        raise UsageError(f"Amazon's profile cannot be used ({type(error).__name__}): {error}.") from None


def mirrors(*, sandbox: bool | None = None, sandbox_state: str | Path | None = None) -> dict[str, str]:
    """Return where machines get things from instead of their official servers, by what it is (``rust``, ``hub``).

    With them comes where a machine of a cloud reaches that cloud (``vast``, ``runpod``).

    Only the sandbox has such mirrors: its machines may be unable to reach the official servers.
    """
    world = World.of(sandbox, sandbox_state)
    info = sandbox_info.read(world.sandbox_state) if world.sandbox else None
    names = {"rust": "rust_mirror", "hub": "hub", "vast": "vast", "runpod": "runpod"}
    found = {what: info.from_boxes.get(name) for what, name in names.items()} if info else {}
    return {what: address for what, address in found.items() if address}


def key_path(path: str | None = None) -> Path:
    """Return the path of the private SSH key, whether or not it is there; by default that of gpuyard's own one."""
    return Path(path).expanduser() if path else paths.home() / "keys" / "id_ed25519"


def ssh_key(path: str | None = None) -> SshKey:
    """Return the SSH key at ``path``, or gpuyard's own one, which is made when it is not there yet.

    Raises :class:`UsageError` when the named key does not exist or is not a private key.
    """
    private = key_path(path)
    if not path and not private.exists():
        _make_key(private)
    if private.suffix == ".pub":
        raise UsageError(f"ssh_key={path} is a public key; name the private one, {private.with_suffix('')}.")
    if not private.is_file():
        raise UsageError(f"ssh_key={path} does not exist; leave the option out and gpuyard makes a key of its own.")
    public = read_file(private.with_name(private.name + ".pub")) or _public_of(private)
    if len(public.split()) < 2 or "\n" in public:
        raise UsageError(f"{private}.pub does not hold one SSH public key.")
    return SshKey(private.absolute(), public)


def _no_key(provider: str | None) -> str:
    if provider == OWN:
        return f"There is no box of your own in {OWN_FILE}: name one there, or the file with {OwnBoxes.variable}."
    if provider == "skypilot":
        there = SkypilotClouds
        return (
            f"provider=skypilot rents at the clouds that {there.variable} or the file {there.file} names in their "
            f"order, and neither does: set {there.variable}={','.join(ORDER)}, for all plays, so that none of them "
            f"overlooks what was rented there."
        )
    emulated = f"{option('sandbox', True)} (or GPUYARD_SANDBOX=1)"
    way_out = f"or try it on the emulated clouds of this machine with {emulated}."
    if provider:
        key = CLOUDS[provider].credential
        return f"There is no key for {provider}: set {key.variable} or put it into {key.file}, {way_out}"
    keys = [cloud.credential for cloud in CLOUDS.values() if issubclass(cloud.credential, BearerKey)]
    variables = " or ".join(key.variable for key in keys)
    return (
        f"There is no key of any cloud: set {variables} (or use the files of the providers' own tools), name boxes of "
        f"your own in {OWN_FILE}, {way_out}"
    )


def _flag(env: Mapping[str, str], name: str) -> bool:
    value = env.get(name, "").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise UsageError(f"{name}={env[name]!r} is neither yes nor no; use 1 or 0.")


def _bucket_of(env: Mapping[str, str]) -> str:
    """Return the bucket URL of ``CLOUD_PROVIDER`` and ``CLOUD_BUCKET`` (a name or a URL), ``""`` for local only."""
    kind = env.get("CLOUD_PROVIDER", "").strip().lower()
    # A folder of the controller's own says nothing about where machines are to publish.
    return "" if kind == "local" else Location.from_environment(env).url


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
