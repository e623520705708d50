"""What a launch needs, one by one: each function asks one thing and says what it found. Nothing here raises."""

from __future__ import annotations

import email.utils
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import requests

from gpuyard import config
from gpuyard.api.site import Site
from gpuyard.box.checkpoints import Store
from gpuyard.errors import AuthenticationError, GpuyardError, MissingObjectError, UsageError
from gpuyard.formats.location import DEFAULT_REGION
from gpuyard.providers.base import OWN, Provider, Query
from gpuyard.remedies import option, remedy
from gpuyard.workload import Workload

Level = Literal["ok", "warning", "failed", "skipped"]
CHECK_FOLDER = "_check"
"""Where the object lies for a moment that says whether a bucket can be written. No run has such a name."""
OLDEST_SSH = (7, 6)
"""The first OpenSSH that can take a host key at the first contact and refuse another one later."""
CLOCK_WARNING_S = 60.0
CLOCK_REFUSED_S = 900.0
"""From here on the services refuse a request for its time."""
_TIMEOUT_S = (5.0, 15.0)  # to connect, and to answer
_GOOGLE = "https://storage.googleapis.com"
_WANDB = "https://api.wandb.ai"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``failed`` ends a launch; ``skipped`` was not looked at, and need not be."""

    what: str
    level: Level
    found: str
    todo: str = ""


def cloud(provider: Provider) -> Finding:
    """Return whether a cloud takes the key, lets it read what gpuyard reads, and has credit."""
    if provider.name == OWN:
        return _own_boxes(provider)
    readings: dict[str, Callable[[], object]] = {
        "account": provider.credit_usd,
        "machines": provider.instances,
        "SSH keys": provider.ssh_keys,
    }
    seen: dict[str, object] = {}
    refused: dict[str, AuthenticationError] = {}
    for name, read in readings.items():
        try:
            seen[name] = read()
        except AuthenticationError as error:
            refused[name] = error
        except GpuyardError as error:
            return Finding(
                provider.title, "failed", str(error), f"Try again later; {provider.console_url} may say more."
            )
    if not seen:
        refusal = refused["account"]
        return Finding(provider.title, "failed", str(refusal), key_advice(provider, refusal))
    if needed := [name for name in refused if name != "account"]:
        found = f"The key may not read {' and '.join(needed)}: {refused[needed[0]]}"
        return Finding(provider.title, "failed", found, f"Give the key that right at {provider.console_url}.")
    return _with_credit(provider, seen, refused)


def key_advice(provider: Provider, error: AuthenticationError) -> str:
    """Return what to do about a key that is refused, for its content or for the address that it is used from."""
    known = config.CLOUDS[provider.name].credential
    todo = f"Put a valid key into {known.variable} or {known.file}; {provider.console_url} makes one"
    return todo + (" and lists the addresses that may use it." if "address" in str(error) else ".")


def _with_credit(provider: Provider, seen: Mapping[str, object], refused: Mapping[str, AuthenticationError]) -> Finding:
    """Return what is to be said of a cloud whose key is valid."""
    credit = seen.get("account")
    parts = ["key valid"]
    parts += [f"{len(rows)} {name}" for name, rows in seen.items() if isinstance(rows, list)]
    if isinstance(credit, float):
        parts.append(f"credit ${credit:.2f}")
    elif refused:
        parts.append("the key may not read the credit")
    else:
        parts.append("the API names no credit")
    found = f"{', '.join(parts)}; the API names no quota."
    if isinstance(credit, float) and credit <= 0:
        level: Level = "failed" if provider.prepaid else "warning"
        todo = f"Add credit at {provider.console_url}" + ("." if provider.prepaid else ", or see that a card is there.")
        return Finding(provider.title, level, found, todo)
    if (rights := provider.rights()) is not None and not rights.can_rent:
        todo = f"Give its user the right {rights.needed} at {provider.console_url}, should renting be refused."
        return Finding(provider.title, "warning", f"{found} Its rights: {', '.join(rights.held) or 'none'}.", todo)
    if refused:
        return Finding(provider.title, "warning", found, f"See at {provider.console_url} that there is credit.")
    return Finding(provider.title, "ok", found)


def _own_boxes(provider: Provider) -> Finding:
    try:
        claimed, free = provider.instances(), provider.offers(Query(disk_gb=0.0))
    except GpuyardError as error:
        return Finding(provider.title, "failed", str(error), "Mend the inventory of your own boxes.")
    silent = [one.way.name for one in claimed if one.silent and one.way]
    found = f"{len(free)} free, {len(claimed)} at work or kept by a run."
    if silent or not (free or claimed):
        words = f" Not answering: {', '.join(silent)}." if silent else ""
        return Finding(provider.title, "warning", found + words, "See that they are on and that SSH lets you in.")
    return Finding(provider.title, "ok", found)


def ssh_key(site: Site) -> Finding:
    """Return whether the SSH key can be used by a program that nobody watches."""
    what, path = "SSH key", config.key_path(site.ssh_key)
    if not site.ssh_key and not path.exists():
        return Finding(what, "ok", f"gpuyard makes its own one, {path}, when it is first needed.")
    another = f"Name another one with {option('ssh_key')}, or leave that out."
    try:
        key = site.key()
        mode = path.stat().st_mode & 0o077
    except (GpuyardError, OSError) as error:
        return Finding(what, "failed", str(error), another)
    if mode:
        return Finding(what, "failed", f"Others may read {path}, so ssh will not use it.", f"chmod 600 {path}")
    read = _run("ssh-keygen", "-y", "-P", "", "-f", str(path))
    if read is None:
        return Finding(what, "failed", "ssh-keygen is not installed.", "Install the OpenSSH client.")
    body = key.public_text.split()[1]
    if read.returncode:
        held = _run("ssh-add", "-L")
        if held and body in held.stdout.split():
            return Finding(what, "ok", f"{path} has a passphrase, and the agent holds it.")
        return Finding(what, "failed", f"{path} has a passphrase, and no agent holds it.", f"ssh-add {path}")
    if body not in read.stdout.split():
        todo = f"ssh-keygen -y -f {path} > {path}.pub"
        return Finding(what, "failed", f"{path}.pub belongs to another key than {path}.", todo)
    return Finding(what, "ok", f"{path}, {key.public_text.split()[0]}.")


def bucket(site: Site) -> Finding:
    """Return whether the bucket can be listed, written, read back and cleared, with a small object of our own."""
    what = "bucket"
    try:
        settings = site.bucket_settings()
        if not settings.url:
            return Finding(
                what,
                "warning",
                "There is none: checkpoints stay on the machine, and are lost with it.",
                f"Name one with {option('bucket', 's3://name/prefix')}.",
            )
        if not settings.location.by_network:
            found = f"{settings.url} is a folder of the machine, which is lost with it unless storage is shared there."
            return Finding(what, "warning", found, f"Name one with {option('bucket', 's3://name/prefix')}.")
        store = site.store()
    except GpuyardError as error:
        return Finding(what, "failed", str(error), "Mend the bucket's address or keys.")
    assert store is not None  # its settings have an address
    done: list[str] = []
    try:
        _use(store, f"{CHECK_FOLDER}/{uuid.uuid4().hex}", done)
    except GpuyardError as error:
        failed = _STEPS[len(done)]
        can = f"It can be {_and(done)}, but not {failed}: " if done else ""
        right = _RIGHTS[settings.location.scheme][len(done)]
        return Finding(what, "failed", f"{can}{error}", _BUCKET_ADVICE[failed].format(right))
    return Finding(what, "ok", " ".join([f"{store.url} can be {_and(done)}.", *_versions(store)]))


def _versions(store: Store) -> list[str]:
    keeps = store.keeps_versions()
    if keeps is None:
        return []
    switch_on = f" (`{remedy('checkpoints', do='keep_versions')}` has it keep them)"
    return [f"It keeps {'' if keeps else 'no '}versions of what is overwritten or removed{'' if keeps else switch_on}."]


_STEPS = ("listed", "written", "read", "cleared")
_BUCKET_ADVICE = {
    "listed": "See that the bucket is there, and that the key may list it ({}).",
    "written": "Let the key write there ({}).",
    "read": "Let the key read there ({}).",
    "cleared": "Let the key delete there ({}): old checkpoints are removed.",
}
_RIGHTS = {
    "s3": ("s3:ListBucket", "s3:PutObject", "s3:GetObject", "s3:DeleteObject"),
    "gs": ("storage.objects.list", "storage.objects.create", "storage.objects.get", "storage.objects.delete"),
    "az": ("list, sp=l", "create and write, sp=cw", "read, sp=r", "delete, sp=d"),
}
"""What each step takes, in the words of each kind of bucket."""


def _use(store: Store, key: str, done: list[str]) -> None:
    """Do with a small object what gpuyard does with its own; each step that went well is added to ``done``."""
    content = uuid.uuid4().bytes
    store.folders()
    done.append(_STEPS[0])
    store.put(key, content)
    done.append(_STEPS[1])
    try:
        if store.get(key) != content:
            raise UsageError(f"{store.url}/{key} holds something else than was written there.")
        done.append(_STEPS[2])
    finally:
        # Nothing stays, also where it cannot be read.
        store.delete(key)
    try:
        store.get(key)
    except MissingObjectError:
        done.append(_STEPS[3])
        return
    raise UsageError(f"{store.url}/{key} is still there after it was deleted.")


def clock(site: Site) -> Finding:
    """Return how far this machine's clock is from that of the bucket's server."""
    what = "clock"
    try:
        settings = site.bucket_settings()
    except GpuyardError:
        return Finding(what, "skipped", "Without a bucket there is no clock to compare with.")
    if not settings.location.by_network:
        return Finding(what, "skipped", "Without a bucket there is no clock to compare with.")
    amazon = f"https://s3.{settings.region or DEFAULT_REGION}.amazonaws.com"
    address = settings.endpoint or (_GOOGLE if settings.location.scheme == "gs" else amazon)
    before = time.time()
    try:
        with _session(address) as session:
            answer = session.head(address, timeout=_TIMEOUT_S, allow_redirects=False)
        theirs = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (requests.RequestException, KeyError, TypeError, ValueError):
        return Finding(what, "skipped", f"{address} does not say what time it is.")
    # The header has whole seconds, and was written some time between question and answer.
    middle = (before + time.time()) / 2
    ahead = middle - theirs - 0.5
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the bucket's."
    if abs(ahead) < CLOCK_WARNING_S:
        return Finding(what, "ok", found)
    refused = abs(ahead) >= CLOCK_REFUSED_S
    words = f"{found} The bucket refuses requests that are {CLOCK_REFUSED_S / 60:.0f} minutes off."
    return Finding(what, "failed" if refused else "warning", words, "Set the clock, for example with `timedatectl`.")


def environment(workload: Workload) -> Finding:
    """Return whether the variables and secret files that the workload requires are there."""
    what = "environment"
    try:
        workload.check_environment(os.environ)
    except UsageError as error:
        found = str(error).removesuffix(" Nothing was rented.")
        return Finding(what, "failed", found, "Set what is missing where the play runs.")
    required = workload.environment.required
    return Finding(what, "ok", f"{', '.join(required)}: set." if required else f"{workload.name} requires nothing.")


def wandb(workload: Workload) -> Finding | None:
    """Return whether Weights & Biases takes the key, ``None`` for a workload that does not name it."""
    what, variable = "Weights & Biases", "WANDB_API_KEY"
    if variable not in (*workload.environment.required, *workload.environment.optional):
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        if variable in workload.environment.required:
            return Finding(
                what, "failed", f"{workload.name} requires {variable}, and it is not set.", f"Set {variable}."
            )
        return Finding(what, "skipped", f"{variable} is not set, and {workload.name} does not require it.")
    base = workload.environment.set.get("WANDB_BASE_URL") or os.environ.get("WANDB_BASE_URL") or _WANDB
    base = str(base).rstrip("/")
    todo = f"Set {variable} to a key from {'https://wandb.ai/authorize' if base == _WANDB else f'{base}/authorize'}."
    try:
        with _session(base) as session:
            answer = session.post(
                f"{base}/graphql",
                json={"query": "query { viewer { username } }"},
                auth=("api", key),
                timeout=_TIMEOUT_S,
                allow_redirects=False,
            )
    except (requests.RequestException, ValueError) as error:
        # The library's own text may hold the request, and that the key.
        found = f"{base} cannot be asked ({type(error).__name__})."
        return Finding(what, "warning", found, "See that the machine will reach it.")
    if answer.status_code in (401, 403):
        return Finding(what, "failed", f"{base} refuses the key (HTTP {answer.status_code}).", todo)
    try:
        viewer = (answer.json().get("data") or {}).get("viewer") if answer.ok else None
    except (ValueError, AttributeError):
        viewer = None
    if not isinstance(viewer, dict):
        if answer.ok:
            return Finding(what, "failed", f"{base} knows nobody with this key.", todo)
        found = f"{base} answers with HTTP {answer.status_code}."
        return Finding(what, "warning", found, "Try again later.")
    return Finding(what, "ok", f"{base} knows the key: {str(viewer.get('username') or 'no name')[:80]}.")


def programs() -> list[Finding]:
    """Return which programs a launch starts on this machine are there, and in which versions."""
    found = [_ssh()]
    keygen = shutil.which("ssh-keygen")
    if not keygen:
        found.append(Finding("ssh-keygen", "failed", "It is not installed.", "Install the OpenSSH client."))
    git = _run("git", "--version")
    if git is None:
        todo = "Install git, for repositories that are cloned and for what a commit is called."
        found.append(Finding("git", "warning", "It is not installed.", todo))
    else:
        found.append(Finding("git", "ok", git.stdout.strip().removeprefix("git version ")))
    core = importlib.metadata.version("ansible-core")
    found.append(Finding("Ansible", "ok", f"ansible-core {core}, Python {platform.python_version()}"))
    return found


def _ssh() -> Finding:
    said = _run("ssh", "-V")
    if said is None:
        return Finding("ssh", "failed", "It is not installed.", "Install the OpenSSH client.")
    words = (said.stderr or said.stdout).strip().split(",")[0]
    version = re.search(r"OpenSSH_(?:for_Windows_)?(\d+)\.(\d+)", words)
    if version is None:
        return Finding("ssh", "warning", f"{words or 'It says no version'}.", "gpuyard is made for OpenSSH.")
    if (int(version[1]), int(version[2])) < OLDEST_SSH:
        least = ".".join(map(str, OLDEST_SSH))
        return Finding("ssh", "failed", f"{words} is too old.", f"Install OpenSSH {least} or newer.")
    return Finding("ssh", "ok", words)


def _run(*words: str) -> subprocess.CompletedProcess[str] | None:
    """Return what a program says, ``None`` where it is not installed."""
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, errors="replace", check=False
        )
    except (FileNotFoundError, PermissionError):
        return None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(words, 124, "", "")


def _session(address: str) -> requests.Session:
    session = requests.Session()
    # Neither a proxy nor ~/.netrc of the environment has any business between us and a server on this machine.
    session.trust_env = urlsplit(address).hostname not in _LOOPBACK
    return session


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
