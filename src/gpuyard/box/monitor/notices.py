"""Notices of a cloud that takes this machine away, each source in the words of its cloud's documentation.

The metadata service of a cloud is asked only where the machine says by its firmware (DMI) that it is of that cloud, and
where the service then answers once. A container of a marketplace, which has no such service, asks nobody.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpuyard.box.monitor.settings import NoticeFile

METADATA = "http://169.254.169.254"
DMI = Path("/sys/class/dmi/id")
VARIABLE = "GPUYARD_METADATA"
"""Only tests set it: ``aws=http://127.0.0.1:8000`` says of which cloud this machine is, and where its metadata is."""
EVERY_S = 5.0
_LIMIT_S = 2.0
_AGAIN_S = 10.0
_LEAST_PAUSE_S = 0.5


@dataclass(frozen=True)
class Notice:
    """That this machine goes at ``at`` (seconds since 1970), by the word of ``source``.

    ``at`` is ``None`` for advice: the machine is likelier to go than others. ``acknowledge`` is what
    :meth:`Source.acknowledge` takes.
    """

    source: str
    text: str
    at: float | None
    acknowledge: str = ""


class Source(ABC):
    """One way to hear of it. ``wait`` is called again and again, in a thread of its own."""

    name: str

    @abstractmethod
    def is_here(self) -> bool:
        """Ask once whether this way exists on this machine."""

    @abstractmethod
    def wait(self) -> Notice | None:
        """Return the notice that holds now, perhaps after waiting for some seconds for one that comes.

        Raises ``OSError`` or ``ValueError`` when nothing can be said at the moment.
        """

    def acknowledge(self, text: str) -> None:
        """Tell the cloud that all is saved, so that it need not wait; ``text`` is that of the notice."""
        return


class Metadata:
    """A metadata service, asked over one connection that is kept; every answer has to come within two seconds."""

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(address)
        self._place = parts.hostname or "", parts.port or 80
        self._headers = dict(headers or {})
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        wait_s: float = 0.0,
    ) -> tuple[int, bytes]:
        """Return status and body. A connection that the service has closed meanwhile is made anew, once."""
        for fresh in (self._connection is None, True):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._place, timeout=_LIMIT_S)
            connection = self._connection
            try:
                connection.timeout = _LIMIT_S + wait_s
                if connection.sock is not None:
                    connection.sock.settimeout(_LIMIT_S + wait_s)
                connection.request(method, path, body, {**self._headers, **(headers or {})})
                answer = connection.getresponse()
                data = answer.read()
                if answer.will_close:
                    self.close()
                return answer.status, data
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if fresh or isinstance(error, TimeoutError):
                    raise OSError(f"the metadata service does not answer: {type(error).__name__}") from error
        raise AssertionError("the second try returns or raises")

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Aws(Source):
    """Amazon EC2, by IMDSv2: a token by ``PUT /latest/api/token``, valid for six hours at most.

    ``spot/instance-action`` is 404 until two minutes before the end, then ``{"action": "terminate", "time": …}``;
    ``events/recommendations/rebalance`` is advice that comes earlier, ``{"noticeTime": …}``. Source: EC2 user guide,
    "Spot Instance interruption notices" and "rebalance recommendations".
    """

    name = "aws"
    _TOKEN_S = 21600

    def __init__(self, address: str = METADATA) -> None:
        self._metadata = Metadata(address)
        self._token = b""

    def is_here(self) -> bool:
        self._renew()
        return True

    def wait(self) -> Notice | None:
        action = self._get("spot/instance-action")
        if action is not None:
            at = _iso(str(action["time"]))
            return Notice(self.name, f"Amazon will {action.get('action', 'terminate')} this machine", at)
        advice = self._get("events/recommendations/rebalance")
        if advice is not None:
            return Notice(self.name, "Amazon says that this machine is likely to be taken away soon", None)
        return None

    def _get(self, path: str) -> dict[str, Any] | None:
        for _ in range(2):
            token = {"X-aws-ec2-metadata-token": self._token.decode("latin-1")}
            status, body = self._metadata.ask("GET", f"/latest/meta-data/{path}", token)
            if status == 200:
                found = json.loads(body)
                return found if isinstance(found, dict) else None
            if status != 401:
                return None
            self._renew()
        return None

    def _renew(self) -> None:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(self._TOKEN_S)}
        status, body = self._metadata.ask("PUT", "/latest/api/token", wanted)
        if status != 200:
            raise OSError(f"the metadata service answers {status}")
        self._token = body.strip()


class Gcp(Source):
    """Google Compute Engine: ``instance/preempted`` becomes ``TRUE``, and the machine goes 30 s later.

    The question hangs until the value changes (``wait_for_change``). ``instance/maintenance-event`` says
    ``TERMINATE_ON_HOST_MAINTENANCE`` an hour before a machine with GPUs is stopped. Source: Compute Engine, "Spot VMs",
    "Query VM metadata" and "Handle GPU host maintenance events".
    """

    name = "gcp"
    GOES_AFTER_S = 30.0
    MAINTENANCE_S = 3600.0

    def __init__(self, address: str = METADATA, *, hang_s: float = 30.0) -> None:
        self._metadata = Metadata(address, {"Metadata-Flavor": "Google"})
        self._hang_s = hang_s
        self._since: dict[str, float] = {}

    def is_here(self) -> bool:
        return self._get("preempted") in ("TRUE", "FALSE")

    def wait(self) -> Notice | None:
        if self._get("preempted") != "TRUE":
            if self._get("maintenance-event") == "TERMINATE_ON_HOST_MAINTENANCE":
                at = self._since.setdefault("maintenance", time.time()) + self.MAINTENANCE_S
                return Notice(self.name, "Google will stop this machine for maintenance of its host", at)
            query = f"?wait_for_change=true&timeout_sec={math.ceil(self._hang_s)}"
            if self._get(f"preempted{query}", self._hang_s) != "TRUE":
                return None
        at = self._since.setdefault("preempted", time.time()) + self.GOES_AFTER_S
        return Notice(self.name, "Google takes this machine away", at)

    def _get(self, path: str, wait_s: float = 0.0) -> str:
        status, body = self._metadata.ask("GET", f"/computeMetadata/v1/instance/{path}", wait_s=wait_s)
        if status != 200:
            raise OSError(f"the metadata service answers {status}")
        return body.decode(errors="replace").strip()


class Azure(Source):
    """Azure: a scheduled event ``Preempt`` at least 30 s before a spot machine goes, at ``NotBefore``.

    A POST of its ``EventId`` says that the machine is ready, so that Azure need not wait. Source: "Scheduled Events for
    Linux VMs", api-version 2020-07-01. Events are listed for all machines of a set, so those of others are passed over.
    """

    name = "azure"
    GOES_AFTER_S = 30.0
    _PATH = "/metadata/scheduledevents?api-version=2020-07-01"
    _OWN_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"

    def __init__(self, address: str = METADATA) -> None:
        self._metadata = Metadata(address, {"Metadata": "true"})
        self._own_name = ""
        self._since: dict[str, float] = {}

    def is_here(self) -> bool:
        status, body = self._metadata.ask("GET", self._OWN_NAME)
        self._own_name = body.decode(errors="replace").strip() if status == 200 else ""
        return status == 200

    def wait(self) -> Notice | None:
        status, body = self._metadata.ask("GET", self._PATH)
        if status != 200:
            raise OSError(f"the metadata service answers {status}")
        for event in json.loads(body).get("Events") or ():
            others = event.get("Resources") and self._own_name not in event["Resources"]
            if event.get("EventType") == "Preempt" and not others:
                number = str(event.get("EventId"))
                # It is empty once the event has started.
                said = str(event.get("NotBefore") or "")
                soon = self._since.setdefault(number, time.time()) + self.GOES_AFTER_S
                at = parsedate_to_datetime(said).timestamp() if said else soon
                return Notice(self.name, "Azure takes this machine away", at, acknowledge=number)
        return None

    def acknowledge(self, text: str) -> None:
        body = json.dumps({"StartRequests": [{"EventId": text}]}).encode()
        self._metadata.ask("POST", self._PATH, {"Content-Type": "application/json"}, body)


class SignalFile(Source):
    """A file that the provider's own agent writes before it takes the machine away, as the workload names it.

    Mithril, for one, writes ``/opt/mithril/MITHRIL_SIGNAL.yml`` five minutes before.
    """

    name = "file"

    def __init__(self, file: NoticeFile) -> None:
        self._file = file

    def is_here(self) -> bool:
        return True

    def wait(self) -> Notice | None:
        try:
            written = Path(self._file.path).stat().st_mtime
        except OSError:
            return None
        # One that was there long ago was for a machine that has lived on.
        at = written + self._file.seconds
        return Notice(self.name, f"{self._file.path} is there", at) if at > time.time() else None


CLOUDS: Mapping[str, type[Aws] | type[Gcp] | type[Azure]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}
_ASSET_TAG_OF_AZURE = "7783-7084-3265-9085-8269-3286-77"


def cloud_of(dmi: Path = DMI) -> str:
    """Return of which cloud with a metadata service this machine is by its firmware, ``""`` for none of them."""

    def says(name: str) -> str:
        with contextlib.suppress(OSError):
            return (dmi / name).read_text(errors="replace").strip()
        return ""

    if says("sys_vendor") == "Amazon EC2":
        return "aws"
    if says("product_name") == "Google Compute Engine":
        return "gcp"
    return "azure" if says("chassis_asset_tag") == _ASSET_TAG_OF_AZURE else ""


def sources(files: Sequence[NoticeFile], environment: Mapping[str, str] = os.environ, dmi: Path = DMI) -> list[Source]:
    """Return the ways by which this machine may hear that it goes; nobody is asked yet."""
    cloud, _, address = environment.get(VARIABLE, "").partition("=")
    cloud = cloud or cloud_of(dmi)
    found: list[Source] = [CLOUDS[cloud](address or METADATA)] if cloud in CLOUDS else []
    return found + [SignalFile(file) for file in files]


def acknowledge(source: str, text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the cloud of a notice that all is saved; a service that does not answer changes nothing."""
    for one in sources((), environment):
        if one.name == source:
            with contextlib.suppress(OSError):
                one.acknowledge(text)


class Listener:
    """Listens to a source in a thread of its own. ``hear`` is called there with every notice that is new."""

    def __init__(self, source: Source, hear: Callable[[Notice], None], every_s: float = EVERY_S) -> None:
        self._source = source
        self._hear = hear
        self._every_s = every_s
        self._thread = threading.Thread(target=self._listen, name=f"notices of {source.name}", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def _listen(self) -> None:
        try:
            if not self._source.is_here():
                return
        except (OSError, ValueError):
            return  # the firmware says so, and there is no such service all the same, as in some containers
        last: Notice | None = None
        while True:
            wait_s = self._every_s
            began = time.monotonic()
            try:
                notice = self._source.wait()
            except (OSError, ValueError, LookupError, TypeError, AttributeError):
                wait_s = _AGAIN_S
            else:
                if notice is not None and notice != last:
                    last = notice
                    self._hear(notice)
            time.sleep(max(_LEAST_PAUSE_S, wait_s - (time.monotonic() - began)))


def _iso(text: str) -> float:
    """Return the seconds since 1970 of a time as Amazon writes it."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
