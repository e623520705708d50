"""The monitor's last look as a text file for node_exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterable

from gpuyard.box.monitor.checks import Look


def text(look: Look, alerts: Iterable[str]) -> str:
    """Return all that was seen at a look in Prometheus' text format; sizes in bytes."""
    run = {"run": look.spec.run, "node": look.spec.node}
    lines: list[str] = []

    def metric(name: str, help_text: str, samples: Iterable[tuple[dict[str, str], float | None]]) -> None:
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            lines.extend([f"# HELP gpuyard_{name} {help_text}", f"# TYPE gpuyard_{name} gauge"])
        for labels, value in known:
            words = ",".join(f'{key}="{_escaped(said)}"' for key, said in {**run, **labels}.items())
            lines.append(f"gpuyard_{name}{{{words}}} {value:.15g}")

    gpus = [({"gpu": str(gpu.index), "name": gpu.name}, gpu) for gpu in look.gpus]
    metric("gpu_use_percent", "Use of a GPU.", ((labels, gpu.use_percent) for labels, gpu in gpus))
    metric("gpu_memory_used_bytes", "Used memory of a GPU.", ((one, _bytes(gpu.memory_used_gb)) for one, gpu in gpus))
    metric("gpu_memory_bytes", "Memory of a GPU.", ((one, _bytes(gpu.memory_total_gb)) for one, gpu in gpus))
    disks = [({"path": disk.path}, disk) for disk in look.disks]
    metric("disk_used_percent", "Use of a file system.", ((labels, disk.used_percent) for labels, disk in disks))
    metric("disk_free_bytes", "What a file system has left.", ((one, _bytes(disk.free_gb)) for one, disk in disks))
    if look.place is not None:
        iteration, stage = look.place
        metric("stage_iteration", "The iteration of the stage that runs.", [({"stage": stage}, float(iteration))])
    metric("alert", "An alert that has begun and not ended.", (({"alert": name}, 1.0) for name in sorted(alerts)))
    metric("look_timestamp_seconds", "When the monitor has last looked.", [({}, look.now)])
    return "\n".join(lines) + "\n"


def _bytes(gb: float | None) -> float | None:
    return None if gb is None else gb * 1e9


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
