"""What a workload says of the monitor that looks at its machine."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BeforeValidator, WithJsonSchema, field_validator, model_validator

from gpuyard.box.monitor import settings
from gpuyard.workload.values import (
    Duration,
    Name,
    NotNegative,
    Section,
    SomeWords,
    Variable,
    show,
)

_ADDRESS = re.compile(r"[^\s@,;<>]+@[^\s@,;<>]+")
_SERVER = re.compile(r"[^\s:/@]+:\d{1,5}")
_EVERY_LEAST_S = 1.0


def _metric(value: object) -> object:
    if value in settings.METRICS:
        return value
    raise ValueError(f"must be one of {', '.join(settings.METRICS)}, not {show(value)}")


def _percent(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        raise ValueError(f"must be a number above 0, of at most 100, not {show(value)}")
    return float(value)


def _mail_address(value: object) -> str:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise ValueError(f"must be a mail address such as me@example.org, not {show(value)}")
    return value


def _mail_server(value: object) -> str:
    if not isinstance(value, str) or not _SERVER.fullmatch(value):
        raise ValueError(f"must be a mail server with its port, such as 'smtp.example.org:587', not {show(value)}")
    return value


def _ntfy_server(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"https?://[^\s@]+", value):
        raise ValueError(f"must be an address such as https://ntfy.sh, without a password, not {show(value)}")
    return value


def _prom_file(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/") or value[-5:] != ".prom":
        raise ValueError(f"must be an absolute path, without '..', that ends in .prom, not {show(value)}")
    return value


def _minutes(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 525_600:
        raise ValueError(f"must be a number of minutes above 0, not {show(value)}")
    return float(value)


def _absolute(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or value.endswith("/") or ".." in value.split("/"):
        raise ValueError(f"must be the absolute path of a file, without '..', not {show(value)}")
    return value


_TEXT = WithJsonSchema({"type": "string", "minLength": 1})
MailAddress = Annotated[str, BeforeValidator(_mail_address), _TEXT]
MailServer = Annotated[str, BeforeValidator(_mail_server), _TEXT]
NtfyServer = Annotated[str, BeforeValidator(_ntfy_server), _TEXT]
PromFile = Annotated[str, BeforeValidator(_prom_file), _TEXT]
Percent = Annotated[
    float, BeforeValidator(_percent), WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 100})
]


Minutes = Annotated[
    float, BeforeValidator(_minutes), WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "maximum": 525_600})
]
FilePath = Annotated[str, BeforeValidator(_absolute), _TEXT]


class NoticeFile(Section):
    """A file that the provider writes before it takes the machine away."""

    path: FilePath
    """The file, an absolute path of the machine."""
    seconds: Duration = 30.0
    """How long the machine lives after the file was written: seconds, or a text such as ``5m``."""


class Band(Section):
    """Between which values a measure is expected to be while some stages run; outside of it is an alert."""

    metric: Annotated[
        Literal["gpu_use_percent", "gpu_memory_gb", "disk_growth_gb", "line_interval_s", "log_value"],
        BeforeValidator(_metric),
    ]
    """What is measured: the use and the used memory of each GPU; by how much the volume's disk is fuller than at the
    beginning of the iteration; the mean time between lines of the log that match ``pattern``; or the number that the
    first group of ``pattern`` finds in the log's last such line."""
    stages: list[Name] = []
    """The stages in which it holds. None: in all."""
    least: NotNegative | None = None
    """The least value that is expected."""
    most: NotNegative | None = None
    """The largest value that is expected."""
    for_s: Duration | None = None
    """How long it has to be outside, at each look, before that is an alert: seconds, or a text such as ``10m``. None:
    one look is enough."""
    pattern: SomeWords | None = None
    """For the measures of the log: a regular expression."""

    @model_validator(mode="after")
    def _sensible(self) -> Band:
        if self.least is None and self.most is None:
            raise ValueError("must have a least or a most, else nothing is outside of it")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError("must have a most that is not less than its least")
        if (self.pattern is not None) != (self.metric in settings.OF_LOGS):
            verb = "needs a" if self.pattern is None else "has a"
            raise ValueError(f"{verb} pattern, which is for {' and '.join(settings.OF_LOGS)}, with {self.metric}")
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"has a pattern that is no regular expression: {error}") from None
            if self.metric == "log_value" and groups < 1:
                raise ValueError("needs a pattern with a group for the number, such as 'took ([0-9.]+) s'")
        return self


class Mail(Section):
    """Mail to people, over a mail server, or over the machine's own ``sendmail``."""

    to: list[MailAddress]
    """Who gets it."""
    sender: MailAddress | None = None
    """Who it comes from. Default: the first of ``to``."""
    server: MailServer | None = None
    """The mail server with its port. None: the machine's own ``sendmail``."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection to the server is protected."""
    user: SomeWords | None = None
    """The user at the server."""
    password_from: Variable | None = None
    """The variable that holds the password."""

    @model_validator(mode="after")
    def _whole(self) -> Mail:
        if not self.to:
            raise ValueError("must have at least one address in to")
        if (self.user is None) != (self.password_from is None):
            raise ValueError("must have user and password_from together")
        if self.user is not None and self.server is None:
            raise ValueError("has a user, but no server to log in at")
        if self.user is not None and self.security == "none":
            raise ValueError("must not send a password without starttls or tls")
        return self


class Webhook(Section):
    """A JSON document that is posted to an address; ``text`` in it is a line for people."""

    address_from: Variable
    """The variable that holds the address."""


class Ntfy(Section):
    """A push notification by ntfy."""

    topic_from: Variable
    """The variable that holds the topic, which whoever knows it can read."""
    server: NtfyServer = "https://ntfy.sh"
    """The server."""
    token_from: Variable | None = None
    """The variable that holds an access token."""


class Notify(Section):
    """Who is told of an alert, besides the alerts file and ``status.yml``."""

    mail: Mail | None = None
    """Mail."""
    webhook: Webhook | None = None
    """A POST to an address, as chat services take it."""
    ntfy: Ntfy | None = None
    """A push notification."""

    def variables(self) -> Iterator[tuple[str, str]]:
        """Yield the keys that name a variable, and the variable."""
        for channel, options in self:
            for key, value in options or ():
                if key.endswith("_from") and value is not None:
                    yield f"{channel}.{key}", value


class Monitoring(Section):
    """When the monitor on the machine tells that something is wrong, and whom."""

    every_s: Duration = settings.DEFAULT_EVERY_S
    """The time between two looks: seconds, or a text such as ``10m``."""
    disk_alert_percent: Percent = settings.DEFAULT_DISK_ALERT_PERCENT
    """How full a file system of the run may be."""
    bands: dict[Name, Band] = {}
    """Measures and what is expected of them, by the names of their alerts."""
    notify: Notify = Notify()
    """Who is told of an alert."""
    prometheus: PromFile | None = None
    """A file ``*.prom`` of the machine that gets what was seen, for node_exporter's textfile collector."""

    idle_minutes: Minutes | None = None
    """After how many minutes without a stage and without anybody who is logged in the machine is finished with: its
    work is published, and its rental ends. None: never."""
    gpu_idle_minutes: Minutes | None = None
    """After how many minutes in which a stage has left all GPUs idle that is an alert. None: never."""
    notice_files: list[NoticeFile] = []
    """Files whose appearance says that the machine will be taken away. The notices of Amazon, Google and Azure are
    heard without them."""

    @field_validator("every_s")
    @classmethod
    def _not_always(cls, every_s: float) -> float:
        if every_s < _EVERY_LEAST_S:
            raise ValueError(f"must be at least {_EVERY_LEAST_S:g} second, not {show(every_s)}")
        return every_s

    def check(self, stages: Collection[str], secrets: Collection[str], root: str) -> None:
        """Raise ``ValueError`` when the rest of the workload does not go with it.

        ``stages`` are the names of the stages, ``secrets`` the variables that reach the machine in its secret file,
        ``root`` is the persistent root.
        """
        for name, band in self.bands.items():
            for stage in band.stages:
                if stage not in stages:
                    raise ValueError(
                        f"has no stage {stage!r}, which the band {name} names; its stages are: {', '.join(stages)}"
                    )
        for key, variable in self.notify.variables():
            if variable not in secrets:
                raise ValueError(
                    f"has {variable} in monitoring.notify.{key}, so environment.required or environment.optional must "
                    f"name {variable}"
                )
        if self.prometheus and PurePosixPath(root) in PurePosixPath(self.prometheus).parents:
            raise ValueError(f"must not have monitoring.prometheus below {root}: checkpoints would hold the file")
