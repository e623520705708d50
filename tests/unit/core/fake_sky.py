"""STAND-IN for SkyPilot 0.14: the few functions that gpuyard calls, over clusters in memory.

``test_skypilot.py`` compares the signatures with those of the real package where that is installed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

NAN = float("nan")


class ClusterStatus(enum.Enum):
    INIT = "INIT"
    UP = "UP"
    STOPPED = "STOPPED"
    AUTOSTOPPING = "AUTOSTOPPING"
    PENDING = "PENDING"


class StatusRefreshMode(enum.Enum):
    NONE = "NONE"
    AUTO = "AUTO"
    FORCE = "FORCE"


class InstanceTypeInfo(NamedTuple):
    cloud: str
    instance_type: str | None
    accelerator_name: str
    accelerator_count: float
    cpu_count: float | None
    device_memory: float | None
    memory: float | None
    price: float
    spot_price: float
    region: str


class ResourcesUnavailableError(Exception):
    pass


class ClusterDoesNotExist(Exception):
    pass


class ApiServerConnectionError(RuntimeError):
    pass


class NotSupportedError(Exception):
    pass


CATALOGUE = [
    InstanceTypeInfo("AWS", "p5.4xlarge", "H100", 1, 16, 79.6, 256, 6.88, 2.5, "us-east-1"),
    InstanceTypeInfo("AWS", "p4d.24xlarge", "A100", 8, 96, 40.0, 1152, 32.77, NAN, "us-east-1"),
    InstanceTypeInfo("GCP", "a3-highgpu-1g", "H100", 1, 26, NAN, 234, 11.06, 3.0, "us-central1"),
    InstanceTypeInfo("GCP", "a2-ultragpu-1g", "A100-80GB", 1, 12, NAN, 170, 5.03, 2.0, "us-central1"),
    InstanceTypeInfo("GCP", None, "T4", 1, NAN, NAN, NAN, NAN, NAN, "us-central1"),
    InstanceTypeInfo("nebius", "gpu-h100-sxm_1gpu-16vcpu-200gb", "H100", 1, 16, 80, 200, 2.95, 1.25, "eu-north1"),
    InstanceTypeInfo("nebius", "gpu-l40s-a_1gpu-8vcpu-32gb", "L40S", 1, 8, 48, 32, 1.55, NAN, "eu-north1"),
]


class Resources:
    def __init__(
        self,
        instance_type: str | None = None,
        accelerators: Any = None,
        infra: str | None = None,
        use_spot: bool | None = None,
        disk_size: int | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        model, _, count = accelerators.partition(":")
        self.instance_type, self.accelerators, self.infra = instance_type, {model: int(count)}, infra
        self.use_spot, self.disk_size, self.labels = use_spot, disk_size, labels
        self.cloud = infra.partition("/")[0] if infra else None

    def get_cost(self, seconds: float) -> float:
        return 2.95 * seconds / 3600


class Task:
    def __init__(
        self,
        name: str | None = None,
        *,
        setup: str | None = None,
        envs: dict[str, str] | None = None,
        resources: Resources | None = None,
        api_server_access: bool = True,
    ) -> None:
        self.name, self.setup, self.envs, self.resources = name, setup, envs, resources
        self.api_server_access = api_server_access

    def to_yaml_config(self) -> dict[str, Any]:
        assert self.resources is not None
        return {"name": self.name, "envs": self.envs, "setup": self.setup, "resources": vars(self.resources)}


class CloudName(str):
    def __repr__(self) -> str:
        return str(self)


@dataclass
class Fake:
    """A SkyPilot: its table of clusters, what the cloud lists, and what goes wrong."""

    enabled: list[str] = field(default_factory=lambda: ["AWS", "GCP", "Nebius"])
    clusters: dict[str, SimpleNamespace] = field(default_factory=dict)
    on_cloud: dict[str, dict[str, Any]] = field(default_factory=dict)  # what bills, by cluster
    credentials: dict[str, str] = field(default_factory=dict)  # what would be copied
    calls: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    launched: list[Task] = field(default_factory=list)
    launched_with: dict[str, Any] = field(default_factory=dict)
    launch_fails: Exception | None = None
    launch_keeps: bool = False  # whether a failed launch leaves a machine
    launch_waits: Callable[[], object] = field(default=lambda: None)
    forgets: bool = False  # whether `down` forgets the cluster and the cloud keeps it
    query_fails: Exception | None = None

    # -- sky.client.sdk: each returns a request, which `get` carries out ------------------------------------------

    def get(self, request_id: Callable[[], Any]) -> Any:
        return request_id()

    def stream_and_get(self, request_id: Callable[[], Any], *, output_stream: Any = None) -> Any:
        print("\x1b[32mLaunching on AWS\x1b[0m", file=output_stream)
        return request_id()

    def enabled_clouds(self) -> Callable[[], list[str]]:
        return lambda: self.enabled

    def check(self, infra_list: tuple[str, ...] | None, verbose: bool) -> Callable[[], object]:
        self.calls.append(f"check {infra_list}")
        return dict

    def list_accelerators(self, *, clouds: Any = None, all_regions: bool = False) -> Callable[[], Any]:
        def answer() -> dict[str, list[InstanceTypeInfo]]:
            found: dict[str, list[InstanceTypeInfo]] = {}
            for info in CATALOGUE:
                if info.cloud.lower() in clouds:
                    found.setdefault(info.accelerator_name, []).append(info)
            return found

        return answer

    def launch(self, task: Task, cluster_name: str | None = None) -> Callable[[], Any]:
        assert cluster_name is not None and task.resources is not None
        self.calls.append(f"launch {cluster_name}")
        print(f"Running on cluster: {cluster_name}")
        self.launched_with = dict(self.settings)
        self.launched.append(task)
        task.resources.cloud = CloudName(task.resources.cloud)

        def up() -> None:
            self.launch_waits()
            if self.launch_fails and not self.launch_keeps:
                raise self.launch_fails
            self.add(cluster_name, task.resources)
            if self.launch_fails:
                self.clusters[cluster_name].status = ClusterStatus.INIT
                raise self.launch_fails

        return up

    def add(self, name: str, resources: Any, status: ClusterStatus = ClusterStatus.UP) -> None:
        handle = SimpleNamespace(
            cluster_yaml=f"~/.sky/generated/{name}.yml",
            cluster_name_on_cloud=f"{name.replace('.', '-')}-abcd",
            launched_resources=resources,
            head_ip="203.0.113.7",
            head_ssh_port=22,
            ssh_user="ubuntu",
        )
        cloud, _, region = resources.infra.partition("/")
        self.clusters[name] = SimpleNamespace(
            name=name, handle=handle, status=status, cloud=cloud, region=region, launched_at=1000
        )
        self.on_cloud[handle.cluster_name_on_cloud] = {"i-1": (status, None)}

    def status(
        self, cluster_names: list[str] | None = None, refresh: StatusRefreshMode = StatusRefreshMode.NONE
    ) -> Callable[[], list[Any]]:
        assert refresh is StatusRefreshMode.FORCE
        return lambda: [one for name, one in self.clusters.items() if cluster_names is None or name in cluster_names]

    def down(self, cluster_name: str) -> Callable[[], None]:
        self.calls.append(f"down {cluster_name}")

        def end() -> None:
            if cluster_name not in self.clusters:
                raise ClusterDoesNotExist(f"Cluster {cluster_name!r} does not exist.")
            record = self.clusters.pop(cluster_name)
            if not self.forgets:
                self.on_cloud.pop(record.handle.cluster_name_on_cloud)

        return end

    def stop(self, cluster_name: str) -> Callable[[], None]:
        return lambda: setattr(self.clusters[cluster_name], "status", ClusterStatus.STOPPED)

    def start(self, cluster_name: str) -> Callable[[], None]:
        return lambda: setattr(self.clusters[cluster_name], "status", ClusterStatus.UP)

    def api_cancel(self, request_ids: list[Any], *, silent: bool = False) -> Callable[[], object]:
        self.calls.append("cancel")
        return list

    # -- the other modules ----------------------------------------------------------------------------------------

    def get_cloud_credential_file_mounts(self, excluded_clouds: Any) -> dict[str, str]:
        return {path: path for path, cloud in self.credentials.items() if cloud not in excluded_clouds}

    @contextmanager
    def override_skypilot_config(self, override_configs: dict[str, Any]) -> Iterator[None]:
        self.settings = override_configs
        yield
        self.settings = {}

    def query_instances(
        self,
        provider_name: str,
        cluster_name: str,
        cluster_name_on_cloud: str,
        provider_config: dict[str, Any],
        non_terminated_only: bool = True,
    ) -> dict[str, Any]:
        assert provider_config["region"] == "eu-north1"
        if self.query_fails:
            raise self.query_fails
        return self.on_cloud.get(cluster_name_on_cloud, {})

    def get_cluster_yaml_dict(self, cluster_yaml_path: str) -> dict[str, Any]:
        return {"provider": {"region": "eu-north1"}}

    def get_server_url(self) -> str:
        return "http://127.0.0.1:46580"


USED = {
    "sky.client.sdk": (
        *("get", "stream_and_get", "enabled_clouds", "check", "list_accelerators", "launch", "status"),
        *("down", "stop", "start", "api_cancel"),
    ),
    "sky.check": ("get_cloud_credential_file_mounts",),
    "sky.skypilot_config": ("override_skypilot_config",),
    "sky.provision": ("query_instances",),
    "sky.server.common": ("get_server_url",),
    "sky.global_user_state": ("get_cluster_yaml_dict",),
}
"""The functions that are used, by where the real ones are."""
