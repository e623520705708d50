"""What a workload says of monitoring, and what is wrong with it."""

from __future__ import annotations

import pytest

from gpuyard.box.monitor.settings import Monitoring
from gpuyard.errors import UsageError
from gpuyard.workload import parse_workload

FILE = """\
name: prover
repository: {{path: tree}}
environment: {{required: [HOOK], optional: [TOPIC, SMTP_PASSWORD]}}
stages:
  - {{name: finetune, command: train}}
  - {{name: search, command: search}}
monitoring: {monitoring}
"""
WHOLE = """
  every_s: 1m
  disk_alert_percent: 85
  bands:
    busy: {metric: gpu_use_percent, stages: [finetune], least: 90, for_s: 10m}
    training: {metric: gpu_memory_gb, stages: [finetune], least: 30, most: 40}
    searching: {metric: gpu_memory_gb, stages: [search], least: 15, most: 20}
    growth: {metric: disk_growth_gb, most: 5}
    lean: {metric: line_interval_s, stages: [search], pattern: ^theorem, most: 60}
  notify:
    mail: {to: [me@example.org], server: "smtp.example.org:587", user: me, password_from: SMTP_PASSWORD}
    webhook: {address_from: HOOK}
    ntfy: {topic_from: TOPIC}
  prometheus: /var/lib/prometheus/node-exporter/gpuyard.prom
"""


def test_the_machine_gets_what_the_workload_says() -> None:
    """B23, B24."""
    box = parse_workload(FILE.format(monitoring=WHOLE), "x.yml").to_box()["monitoring"]
    assert isinstance(box, dict)
    read = Monitoring.from_workload(box)
    assert (read.every_s, read.disk_alert_percent, len(read.bands)) == (60.0, 85.0, 5)
    busy = read.bands[0]
    assert (busy.name, busy.stages, busy.least, busy.most, busy.for_s) == ("busy", ("finetune",), 90.0, None, 600.0)
    assert sorted(read.notify) == ["mail", "ntfy", "webhook"] and read.prometheus.endswith("gpuyard.prom")


def test_without_a_word_the_disk_is_looked_at_every_ten_minutes() -> None:
    """B24."""
    box = parse_workload(FILE.format(monitoring="null"), "x.yml").to_box()
    assert box["monitoring"] is None
    assert Monitoring.from_workload({}) == Monitoring(every_s=600.0, disk_alert_percent=90.0)
    assert parse_workload(FILE.format(monitoring="{}"), "x.yml").monitoring is not None


@pytest.mark.parametrize(
    ("monitoring", "sentence"),
    [
        ("{every_s: 0}", "every_s"),
        ("{every_s: 0.5}", "must be at least 1 second, not 0.5"),
        ("{disk_alert_percent: 120}", "must be a number above 0, of at most 100, not 120"),
        ("{bands: {a: {metric: gpu, most: 1}}}", "must be one of gpu_use_percent, gpu_memory_gb, disk_growth_gb,"),
        ("{bands: {a: {metric: gpu_memory_gb}}}", "must have a least or a most"),
        ("{bands: {a: {metric: gpu_memory_gb, least: 3, most: 2}}}", "a most that is not less than its least"),
        ("{bands: {a: {metric: gpu_memory_gb, most: 2, pattern: x}}}", "has a pattern, which is for line_interval_s"),
        ("{bands: {a: {metric: line_interval_s, most: 2}}}", "needs a pattern, which is for line_interval_s"),
        ("{bands: {a: {metric: log_value, most: 2, pattern: x}}}", "needs a pattern with a group for the number"),
        ("{bands: {a: {metric: log_value, most: 2, pattern: '('}}}", "has a pattern that is no regular expression"),
        (
            "{bands: {a: {metric: gpu_memory_gb, most: 2, stages: [ebm]}}}",
            "has no stage 'ebm', which the band a names; its stages are: finetune, search",
        ),
        (
            "{notify: {webhook: {address_from: OTHER}}}",
            "has OTHER in monitoring.notify.webhook.address_from, so environment.required or environment.optional must",
        ),
        ("{notify: {webhook: {address_from: 'https://hooks.example.org/1'}}}", "must be the name of an environment"),
        ("{notify: {mail: {to: []}}}", "must have at least one address in to"),
        ("{notify: {mail: {to: [nobody]}}}", "must be a mail address such as me@example.org, not 'nobody'"),
        ("{notify: {mail: {to: [a@b], server: smtp.example.org}}}", "must be a mail server with its port"),
        ("{notify: {mail: {to: [a@b], user: me}}}", "must have user and password_from together"),
        ("{notify: {mail: {to: [a@b], user: me, password_from: HOOK}}}", "has a user, but no server to log in at"),
        (
            "{notify: {mail: {to: [a@b], server: 'h:25', security: none, user: me, password_from: HOOK}}}",
            "must not send a password without starttls or tls",
        ),
        ("{notify: {ntfy: {topic_from: TOPIC, server: 'https://me:pass@ntfy.sh'}}}", "without a password"),
        ("{prometheus: gpuyard.prom}", "must be an absolute path"),
        ("{prometheus: /mnt/persistent/x.prom}", "must not have monitoring.prometheus below /mnt/persistent"),
    ],
)
def test_a_mistake_is_a_sentence(monitoring: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_workload(FILE.format(monitoring=monitoring), "x.yml")
    assert sentence in str(caught.value) and "x.yml" in str(caught.value)
