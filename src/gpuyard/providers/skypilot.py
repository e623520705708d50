"""SkyPilot: clouds that gpuyard does not reach itself (Nebius, GCP, AWS, Azure and more), through its Python API.

Facts: ``docs/reference/skypilot.md``. The traps that shape this file:

* SkyPilot's offers are list prices. Whether there is a machine shows only when it is rented.
* Importing it takes seconds, and asking it starts its API server on this machine. Both happen only when it is asked.
* It copies every credential file that it finds onto each machine. For some clouds a setting forbids that, for the
  others nothing does: then nothing is rented.
* A cluster's name is all that it lets us choose. Each rental has a name of its own, so that a name is an id.
* After ``down`` it forgets the cluster, so what is needed to ask the cloud's own list is looked up before.

A machine is reached with our own SSH key, which the task adds; SkyPilot's private key is not used.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import secrets
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, ClassVar

from gpuyard import gpus, paths
from gpuyard.errors import (
    AmbiguousError,
    AuthenticationError,
    InvalidRequestError,
    LeakError,
    NoCapacityError,
    NotFoundError,
    ProviderDownError,
    ProviderError,
    UnsupportedError,
    UsageError,
)
from gpuyard.formats.label import RunRef
from gpuyard.providers.base import (
    CreateSpec,
    Instance,
    Offer,
    PlannedCall,
    Progress,
    Provider,
    Query,
    State,
)
from gpuyard.providers.credentials import Credential, read_file
from gpuyard.providers.http import Patience
from gpuyard.providers.rental import Waits, create_once, destroy_surely
from gpuyard.providers.values import number

VARIABLE = "GPUYARD_SKYPILOT"
_FILE = "skypilot"  # below gpuyard's home
ORDER = ("nebius", "gcp", "aws")
"""The clouds in the order in which they are taken unless :data:`VARIABLE` says another one."""
_GPU_ORDER = ("H100", "A100")
_LAUNCH_S = 1800.0
_SEPARATOR = "."
# Their machines are only reached through SkyPilot's own proxy.
_WITHOUT_ADDRESS = frozenset({"kubernetes", "ssh", "slurm"})
# Where a setting keeps SkyPilot from copying the credential files.
_KEEPS_CREDENTIALS = ("aws", "azure", "gcp", "kubernetes", "nebius", "oci", "slurm", "ssh", "vast")
_NO_UPLOAD = {name: {"remote_identity": "NO_UPLOAD"} for name in _KEEPS_CREDENTIALS}
# Gigabytes as people write them: the catalogues of GCP and Azure name none, the others count in GiB.
_GPU_RAM_GB = {"A10G": 24, "A100": 40, "B200": 180, "H100": 80, "H200": 141, "L4": 24, "L40S": 48, "T4": 16, "V100": 16}
_STATES = {
    "INIT": State.PENDING,
    "PENDING": State.PENDING,
    "UP": State.RUNNING,
    "AUTOSTOPPING": State.RUNNING,
    "STOPPED": State.STOPPED,
}
_KINDS: tuple[tuple[type[ProviderError], tuple[str, ...]], ...] = (
    (NoCapacityError, ("ResourcesUnavailableError", "KubeAPIUnreachableError", "ProvisionPrechecksError")),
    (
        AuthenticationError,
        (
            "ApiServerAuthenticationError",
            "CloudUserIdentityError",
            "ClusterOwnerIdentityMismatchError",
            "InvalidCloudCredentials",
            "NoCloudAccessError",
            "PermissionDeniedError",
        ),
    ),
    (NotFoundError, ("ClusterDoesNotExist",)),
    (UnsupportedError, ("NotSupportedError",)),
    (
        ProviderDownError,
        (
            "ApiServerConnectionError",
            "ClusterStatusFetchingError",
            "RequestCancelled",
            "RequestInterruptedError",
            "ServerTemporarilyUnavailableError",
        ),
    ),
)
"""What the names of SkyPilot's exceptions mean; any other one is a refusal."""


@dataclass(frozen=True, slots=True)
class Modules:
    """The parts of SkyPilot that are used here."""

    sky: Any
    sdk: Any
    check: Any
    config: Any
    provision: Any
    registry: Any
    server: Any
    state: Any


def modules() -> Modules:
    """Import SkyPilot, which takes seconds; raises :class:`UsageError` with the way out where it is not installed."""
    os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    try:
        names = ("", ".client.sdk", ".check", ".skypilot_config", ".provision", ".utils.registry", ".server.common")
        found = [importlib.import_module(f"sky{name}") for name in (*names, ".global_user_state")]
    except ImportError as error:
        raise UsageError(
            f"provider=skypilot needs SkyPilot ({error}): pip install 'gpuyard[skypilot]' "
            f"'skypilot[{','.join(ORDER)}]', with the clouds that you use in the second brackets."
        ) from None
    return Modules(*found)


class _Lines(io.TextIOBase):
    """Passes what SkyPilot prints on, line by line, without its colours."""

    def __init__(self, tell: Progress) -> None:
        self._tell = tell
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if words := re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", line).strip():
                self._tell(words)
        return len(text)


@dataclass(frozen=True)
class SkypilotClouds(Credential):
    """The clouds that are to be reached through SkyPilot, by name, in their order. SkyPilot has their keys."""

    variable: ClassVar[str] = VARIABLE
    file: ClassVar[str] = f"~/.gpuyard/{_FILE}"

    @classmethod
    def kept(cls, env: Mapping[str, str]) -> str:
        return ",".join(read_file(paths.home() / _FILE).split())


class Skypilot(Provider):
    """The clouds of SkyPilot behind the neutral interface."""

    name: ClassVar[str] = "skypilot"
    title: ClassVar[str] = "SkyPilot"
    console_url: ClassVar[str] = "the cloud's own console (`sky status --refresh` names it)"
    preinstalled: ClassVar[str] = "SkyPilot's image of that cloud: driver, CUDA"
    remark: ClassVar[str] = "list prices without disk and stock; taken after the other clouds, in your order"

    def __init__(
        self, clouds: str, *, patience: Patience | None = None, waits: Waits | None = None, launch_s: float = _LAUNCH_S
    ) -> None:
        """Import and ask nothing yet. ``clouds`` are the names in order, with commas; ``launch_s`` seconds at most."""
        self._clouds = [name.strip().lower() for name in clouds.split(",") if name.strip()]
        unknown = [name for name in self._clouds if not re.fullmatch("[a-z0-9]+", name) or name in _WITHOUT_ADDRESS]
        if unknown or not self._clouds:
            raise UsageError(
                f"{VARIABLE}={clouds!r} cannot be used: name clouds of SkyPilot with commas between them, in the "
                f"order in which they are to be taken, such as {','.join(ORDER)}; machines of "
                f"{', '.join(sorted(_WITHOUT_ADDRESS))} cannot be used, because they have no address."
            )
        # Its questions take seconds; they are not repeated, which ``patience`` would be about.
        self._waits = waits or Waits(destroy_timeout=180.0, resend_every=60.0)
        self._launch_s = launch_s
        self._lock = threading.Lock()  # its settings are the process's

    def __repr__(self) -> str:
        return f"Skypilot({','.join(self._clouds)!r})"

    # -- offers ---------------------------------------------------------------------------------------------------

    def offers(self, query: Query) -> list[Offer]:
        """Return the machines of those clouds that SkyPilot has credentials for, at their list prices."""
        mods = modules()
        with _meanings():
            clouds = self._enabled(mods)
            listed = mods.sdk.get(mods.sdk.list_accelerators(clouds=clouds, all_regions=True))
        found: list[Offer] = []
        for infos in listed.values():
            for info in infos:
                if info.instance_type and str(info.cloud).lower() in clouds:
                    found += self._offers(info, query)
        return sorted(found, key=lambda offer: (offer.turn, offer.price_per_hour_usd))

    def _enabled(self, mods: Modules) -> list[str]:
        """Return those of our clouds that can be used; SkyPilot looks afresh when it knows of none."""
        for look in (False, True):
            if look:
                mods.sdk.get(mods.sdk.check(infra_list=tuple(self._clouds), verbose=False))
            enabled = {str(name).lower() for name in mods.sdk.get(mods.sdk.enabled_clouds())}
            if usable := [name for name in self._clouds if name in enabled]:
                return usable
        raise AuthenticationError(
            f"SkyPilot has credentials for none of {', '.join(self._clouds)}: `sky check {' '.join(self._clouds)}` "
            f"says what is missing.",
            provider=self.name,
        )

    def _offers(self, info: Any, query: Query) -> Iterator[Offer]:
        cloud, model = str(info.cloud).lower(), str(info.accelerator_name)
        for market, price in (("on-demand", info.price), ("interruptible", info.spot_price)):
            if not _known(price):
                continue
            yield Offer(
                provider=self.name,
                id=f"{cloud}/{info.region}/{info.instance_type}/{model}:{info.accelerator_count:g}",
                gpu_name=gpus.normalise(model),
                gpu_count=float(info.accelerator_count),
                gpu_ram_gb=_gpu_ram(model, info.device_memory),
                cpu_cores=_or_zero(info.cpu_count),
                ram_gb=_or_zero(info.memory),
                disk_gb=query.disk_gb,  # it is rented in the size that is asked for
                region=f"{cloud}, {info.region}",
                market="on-demand" if market == "on-demand" else "interruptible",
                price_per_hour_usd=float(price),
                turn=1 + self._clouds.index(cloud) * (len(_GPU_ORDER) + 1) + _gpu_place(model),
            )

    # -- create ---------------------------------------------------------------------------------------------------

    def create(self, offer: Offer, spec: CreateSpec, *, progress: Progress | None = None) -> Instance:
        """Launch a cluster of one machine; see :func:`gpuyard.providers.rental.create_once`.

        It comes back when SkyPilot has the machine up, or has given it back.
        """
        mods = modules()
        with _meanings():
            self._refuse_credentials(mods)
        return create_once(
            self, spec, lambda: self._launch(mods, offer, spec, progress), waits=self._waits, progress=progress
        )

    def _launch(self, mods: Modules, offer: Offer, spec: CreateSpec, progress: Progress | None) -> Instance:
        name = cluster_name(spec.ref)
        # What cannot be sent has rented nothing.
        with _meanings():
            task = _task(mods, offer, spec)
        lines = _Lines(progress or (lambda _: None))
        # What it prints by itself is shown afterwards: whoever shows our progress may print it where this goes.
        printed = io.StringIO()
        try:
            with self._lock, redirect_stdout(printed), mods.config.override_skypilot_config(_NO_UPLOAD):
                request = mods.sdk.launch(task, cluster_name=name)
            lines.write(printed.getvalue())
            self._wait(mods, request, lines)
            found = self.instance(name)
        except Exception as error:
            raise self._after_failure(name, _meaning(error)) from None
        if found is None:
            raise AmbiguousError(f"SkyPilot launched {name} and lists no such cluster.", provider=self.name)
        return found

    def _wait(self, mods: Modules, request: Any, lines: _Lines) -> None:
        pool = ThreadPoolExecutor(max_workers=1)
        future = pool.submit(mods.sdk.stream_and_get, request, output_stream=lines)
        try:
            future.result(timeout=self._launch_s)
        except TimeoutError:
            mods.sdk.get(mods.sdk.api_cancel([request], silent=True))
            raise NoCapacityError(
                f"SkyPilot had no machine up within {self._launch_s:.0f} s.", provider=self.name
            ) from None
        finally:
            pool.shutdown(wait=False)

    def _after_failure(self, name: str, error: ProviderError) -> ProviderError:
        """Return ``error`` with the id of the cluster where SkyPilot has kept what failed, which bills."""
        if isinstance(error, ProviderDownError):
            return AmbiguousError(str(error), provider=self.name)
        try:
            left = self.instance(name)
        except ProviderError as trouble:
            return AmbiguousError(f"{error} Whether it left a machine is not known: {trouble}", provider=self.name)
        if left is not None:
            error.instance_id = name
        return error

    def _refuse_credentials(self, mods: Modules) -> None:
        """Raise :class:`UsageError` when SkyPilot would copy a key of ours onto the machine."""
        excluded = [cloud for name, cloud in mods.registry.CLOUD_REGISTRY.items() if name in _KEEPS_CREDENTIALS]
        copied = mods.check.get_cloud_credential_file_mounts(excluded)
        if copied:
            raise UsageError(
                f"Nothing was rented: SkyPilot would copy {', '.join(sorted(set(copied.values())))} onto the machine, "
                f"and has no setting against that. Move it away, and keep its key in an environment variable, such as "
                f"LAMBDA_API_KEY, RUNPOD_API_KEY or HF_TOKEN."
            )

    def plan_create(self, offer: Offer, spec: CreateSpec) -> list[PlannedCall]:
        """Return the launch that would be asked of SkyPilot's API server; which calls it makes is its own business."""
        mods = modules()
        with _meanings():
            body = {"cluster_name": cluster_name(spec.ref, "…"), "task": _task(mods, offer, spec).to_yaml_config()}
            return [PlannedCall("POST", f"{mods.server.get_server_url()}/launch", body)]

    # -- instances ------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        """Return the clusters of SkyPilot's table, each as its cloud says it is; what SkyPilot forgot is not there."""
        return [self._instance(record) for record in self._records(modules())]

    def instance(self, instance_id: str) -> Instance | None:
        """Return one cluster, ``None`` when SkyPilot has none of this name or its cloud says that it has ended."""
        return next(map(self._instance, self._records(modules(), [instance_id])), None)

    def _records(self, mods: Modules, names: Sequence[str] | None = None) -> list[Any]:
        with _meanings():
            try:
                request = mods.sdk.status(
                    cluster_names=None if names is None else list(names), refresh=mods.sky.StatusRefreshMode.FORCE
                )
                return list(mods.sdk.get(request))
            except Exception as error:
                if isinstance(_meaning(error), NotFoundError):
                    return []
                raise

    def _instance(self, record: Any) -> Instance:
        handle = record.handle
        resources = getattr(handle, "launched_resources", None)
        models = getattr(resources, "accelerators", None) or {}
        model, count = next(iter(models.items()), ("", 0))
        address = getattr(handle, "head_ip", None) or ""
        state = _STATES.get(record.status.value, State.UNKNOWN)
        if state is State.RUNNING and not address:
            state = State.PENDING
        return Instance(
            provider=self.name,
            id=record.name,
            label=record.name,
            ref=ref_of(record.name),
            state=state,
            status_text=record.status.value,
            region=f"{str(record.cloud or '').lower()}, {record.region or ''}",
            gpu_name=gpus.normalise(model),
            gpu_count=float(count),
            gpu_ram_gb=_gpu_ram(model, None),
            market="interruptible" if getattr(resources, "use_spot", False) else "on-demand",
            price_per_hour_usd=_price(resources),
            ssh_host=address,
            ssh_port=getattr(handle, "head_ssh_port", None) or 22,
            ssh_user=getattr(handle, "ssh_user", None) or "root",
            created_at=float(record.launched_at) if record.launched_at else None,
        )

    # -- actions --------------------------------------------------------------------------------------------------

    def destroy(self, instance_id: str, *, progress: Progress | None = None) -> None:
        """Take the cluster down, and ask the cloud's own list afterwards, where SkyPilot can ask it."""
        mods = modules()
        record = next(iter(self._records(mods, [instance_id])), None)
        nodes = self._nodes(mods, record)

        def send() -> None:
            with _meanings():
                mods.sdk.get(mods.sdk.down(instance_id))

        destroy_surely(self, instance_id, send, waits=self._waits, progress=progress)
        self._confirm(instance_id, nodes, progress or (lambda _: None))

    def _nodes(self, mods: Modules, record: Any) -> Callable[[], Mapping[str, Any]] | None:
        """Return how the cloud's own list of the cluster's machines is asked, ``None`` when it never had one."""
        handle = getattr(record, "handle", None)
        if handle is None or handle.cluster_yaml is None:
            return None
        with _meanings():
            settings = mods.state.get_cluster_yaml_dict(handle.cluster_yaml)["provider"]
        cloud, on_cloud = repr(handle.launched_resources.cloud), handle.cluster_name_on_cloud

        def ask() -> Mapping[str, Any]:
            found: Mapping[str, Any] = mods.provision.query_instances(
                cloud, record.name, on_cloud, settings, non_terminated_only=True
            )
            return found

        return ask

    def _confirm(self, instance_id: str, nodes: Callable[[], Mapping[str, Any]] | None, tell: Progress) -> None:
        if nodes is None:
            return
        end = self._waits.clock() + self._waits.destroy_timeout
        attempt = 0
        while True:
            try:
                left = nodes()
                reason = f"it still lists {', '.join(left)}"
            except NotImplementedError:
                tell(f"SkyPilot cannot ask the cloud of {instance_id} for its list; its own word stands.")
                return
            except Exception as error:
                left, reason = {"": None}, f"it cannot be asked: {_meaning(error)}"
            if not left:
                tell(f"The cloud of {instance_id} lists none of its machines.")
                return
            if self._waits.clock() >= end:
                raise LeakError(
                    f"SkyPilot says that {instance_id} is down, and its cloud does not ({reason}), so it may keep "
                    f"billing. Look there and end it.",
                    provider=self.name,
                    instance_id=instance_id,
                )
            self._waits.sleep(self._waits.delay(attempt))
            attempt += 1

    def plan_destroy(self, instance_id: str) -> list[PlannedCall]:
        """Return the one request of :meth:`destroy`."""
        with _meanings():
            url = modules().server.get_server_url()
        return [PlannedCall("POST", f"{url}/down", {"cluster_name": instance_id})]

    def start(self, instance_id: str) -> None:
        """Start a stopped cluster."""
        mods = modules()
        with _meanings():
            mods.sdk.get(mods.sdk.start(instance_id))

    def stop(self, instance_id: str) -> None:
        """Stop a cluster, where its cloud can; its disk keeps billing."""
        mods = modules()
        with _meanings():
            mods.sdk.get(mods.sdk.stop(instance_id))

    def credit_usd(self) -> float | None:
        """Return nothing: no cloud says it there. Raises :class:`AuthenticationError` when none can be used."""
        with _meanings():
            self._enabled(modules())
        return None


def cluster_name(ref: RunRef, mark: str = "") -> str:
    """Return a name for a new cluster, ``gpuyard.<run>.<workload>.<node>.<mark>``, of its own by its random mark.

    No part can have a dot. SkyPilot shortens the name for clouds with a limit, and keeps the whole one in its table.
    """
    return _SEPARATOR.join(["gpuyard", ref.run, ref.workload, ref.node, mark or secrets.token_hex(3)])


def ref_of(name: str) -> RunRef | None:
    """Return what a cluster's name says, ``None`` when it is not ours."""
    return RunRef.from_label(name.replace(_SEPARATOR, "/")) if name.count(_SEPARATOR) >= 2 else None


def _task(mods: Modules, offer: Offer, spec: CreateSpec) -> Any:
    """Return the task of a launch: one machine as the offer has it, which lets our key in and runs nothing."""
    cloud, region, machine, accelerator = offer.id.split("/")
    key = shlex.quote(spec.ssh_public_key.strip())
    setup = [
        "umask 077; mkdir -p ~/.ssh",
        f"grep -qxF {key} ~/.ssh/authorized_keys || printf '%s\\n' {key} >>~/.ssh/authorized_keys",
    ]
    if spec.bootstrap:
        setup.append(f"sudo -n sh -c {shlex.quote(spec.bootstrap)}")
    return mods.sky.Task(
        name=spec.ref.run,
        setup="\n".join(setup),
        envs=dict(spec.environment),
        api_server_access=False,
        resources=mods.sky.Resources(
            infra=f"{cloud}/{region}",
            instance_type=machine,
            accelerators=accelerator,
            use_spot=spec.market == "interruptible",
            disk_size=math.ceil(spec.disk_gb),
            # For people in the cloud's console, and should SkyPilot's table be lost.
            labels={"gpuyard-run": spec.ref.run, "gpuyard-workload": spec.ref.workload, "gpuyard-node": spec.ref.node},
        ),
    )


@contextmanager
def _meanings() -> Iterator[None]:
    """Raise whatever SkyPilot raises as an error of ours."""
    try:
        yield
    except (ProviderError, UsageError):
        raise
    except Exception as error:
        raise _meaning(error) from None


def _meaning(error: Exception) -> ProviderError:
    if isinstance(error, ProviderError):
        return error
    names = {kind.__name__ for kind in type(error).__mro__}
    kind = next((ours for ours, theirs in _KINDS if names & set(theirs)), InvalidRequestError)
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()) or type(error).__name__
    return kind(f"SkyPilot refused: {words}", provider=Skypilot.name, code=type(error).__name__)


def _gpu_place(model: str) -> int:
    return next((place for place, wanted in enumerate(_GPU_ORDER) if gpus.matches(wanted, model)), len(_GPU_ORDER))


def _gpu_ram(model: str, memory_gib: object) -> float:
    """Return gigabytes of each GPU: as the name says, else as people write it, else as the catalogue has it."""
    if named := re.search(r"(\d+)GB", model):
        return float(named[1])
    return float(_GPU_RAM_GB.get(model) or round(_or_zero(memory_gib)))


def _price(resources: Any) -> float:
    """Return US dollars an hour by SkyPilot's catalogue, 0 where it names none."""
    try:
        return _or_zero(resources.get_cost(3600))
    except Exception:
        # It looks in a catalogue that may have lost the machine; what bills has to be shown all the same.
        return 0.0


def _known(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _or_zero(value: object) -> float:
    return number(value) if _known(value) else 0.0
