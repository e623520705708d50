"""Telling somebody of an alert: by mail, a webhook, or ntfy. What cannot be sent is a sentence, never an exception.

Addresses and passwords that are secret come from the run's secret file, by the names of their variables. None of them
is in a message of ours.
"""

from __future__ import annotations

import json
import shutil
import smtplib
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from typing import Any

from gpuyard.errors import GpuyardError

SENDMAIL = ("sendmail", "/usr/sbin/sendmail", "/usr/lib/sendmail")
_LIMIT_S = 10.0


class NotSentError(GpuyardError):
    """Why a notification was not sent, as a clause without any secret."""


Alert = Mapping[str, Any]
"""A line of the alerts file, with ``run``, ``workload``, ``node`` and ``title``, a line for people."""


def send_all(notify: Mapping[str, Mapping[str, Any]], alert: Alert, secrets: Mapping[str, str]) -> dict[str, str]:
    """Send ``alert`` to every channel of ``notify``; return by channel why one has not got it."""
    failed = {}
    for name, options in notify.items():
        try:
            CHANNELS[name](options, alert, secrets)
        except NotSentError as error:
            failed[name] = str(error)
        except urllib.error.HTTPError as error:
            failed[name] = f"the server answered {error.code}"
        except smtplib.SMTPResponseException as error:
            failed[name] = f"the mail server answered {error.smtp_code}"
        except urllib.error.URLError as error:
            failed[name] = _reason(error.reason)
        except Exception as error:  # whatever it is: nothing of this may reach the training
            failed[name] = _reason(error)
    return failed


def _reason(error: object) -> str:
    """Return what went wrong; of an exception that may quote an address, its kind only."""
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _secret(secrets: Mapping[str, str], variable: str) -> str:
    if value := secrets.get(variable, ""):
        return value
    raise NotSentError(f"{variable} is not set")


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that is secret is not followed to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(address: str, document: Mapping[str, Any], token: str = "") -> None:
    if not address.startswith(("https://", "http://")):
        raise NotSentError("its address does not begin with https:// or http://")
    headers = {"Content-Type": "application/json", "User-Agent": "gpuyard"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, json.dumps(document).encode(), headers)
    with urllib.request.build_opener(NoRedirect).open(request, timeout=_LIMIT_S) as answer:
        answer.read()


def _webhook(options: Mapping[str, Any], alert: Alert, secrets: Mapping[str, str]) -> None:
    """Post the alert as JSON; ``text`` is a whole line for people, as chat services show it."""
    _post(_secret(secrets, options["address_from"]), {**alert, "text": alert["title"], "detail": alert["text"]})


def _ntfy(options: Mapping[str, Any], alert: Alert, secrets: Mapping[str, str]) -> None:
    token = _secret(secrets, options["token_from"]) if options.get("token_from") else ""
    begins = alert["event"] in ("begin", "warning")
    document = {
        "topic": _secret(secrets, options["topic_from"]),
        "title": f"{alert['run']}: {alert['alert']}",
        "message": alert["title"],
        "priority": 4 if begins else 3,
        "tags": ["warning" if begins else "white_check_mark"],
    }
    _post(options["server"], document, token)


def _mail(options: Mapping[str, Any], alert: Alert, secrets: Mapping[str, str]) -> None:
    message = EmailMessage()
    # A supervisor's warnings and news neither begin nor end.
    change = {"begin": " begins", "end": " ends"}.get(alert["event"], "")
    message["Subject"] = f"[gpuyard] {alert['run']}: {alert['alert']}{change}"
    message["From"] = options.get("sender") or options["to"][0]
    message["To"] = ", ".join(options["to"])
    message.set_content("\n".join([alert["title"], "", *(f"{name}: {value}" for name, value in alert.items())]))
    if options.get("server"):
        _smtp(options, message, secrets)
    else:
        _sendmail(message)


def _smtp(options: Mapping[str, Any], message: EmailMessage, secrets: Mapping[str, str]) -> None:
    host, _, port = str(options["server"]).rpartition(":")
    security = options.get("security")
    connect: Callable[..., smtplib.SMTP] = smtplib.SMTP
    more: dict[str, Any] = {}
    if security == "tls":
        connect, more = smtplib.SMTP_SSL, {"context": ssl.create_default_context()}
    with connect(host, int(port), timeout=_LIMIT_S, **more) as server:
        if security == "starttls":
            server.starttls(context=ssl.create_default_context())
        if options.get("user"):
            server.login(options["user"], _secret(secrets, options["password_from"]))
        server.send_message(message)


def _sendmail(message: EmailMessage) -> None:
    program = next(filter(None, map(shutil.which, SENDMAIL)), None)
    if program is None:
        raise NotSentError("this machine has no sendmail")
    # Without -i a line with a single dot would end the message.
    done = subprocess.run([program, "-t", "-i"], input=message.as_bytes(), capture_output=True, timeout=_LIMIT_S)
    if done.returncode:
        raise NotSentError(f"sendmail ended with exit code {done.returncode}")


CHANNELS: Mapping[str, Callable[[Mapping[str, Any], Alert, Mapping[str, str]], None]] = {
    "mail": _mail,
    "webhook": _webhook,
    "ntfy": _ntfy,
}
"""How each channel sends."""
