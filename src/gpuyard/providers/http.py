"""HTTP for all providers, in one place.

What every client of a cloud that bills has to get right once:

* Only requests that are declared safe to repeat are repeated. A create whose answer was lost becomes
  :class:`~gpuyard.errors.AmbiguousError`; whoever sent it has to look for the result before acting again.
* How long to wait is the provider's word where it gives one: the ``Retry-After`` header (seconds or a date), a
  ``retry_after`` number in the body, ``X-RateLimit-Reset`` (epoch), or ``threshold=<s>`` in a plain-text 429.
* The key never occurs in a text, a ``repr`` or an exception: it lives in the authenticator alone, answers are cleaned
  of it, and no exception of the HTTP library (which holds the request with its headers) is chained to ours.
"""

from __future__ import annotations

import email.utils
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError

from gpuyard import __version__
from gpuyard.errors import AmbiguousError, ProviderDownError, ProviderError, ThrottledError
from gpuyard.providers.credentials import Bearer, BearerKey

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_TEXT_LIMIT = 300  # characters of a provider's own words that go into one of our sentences
_THRESHOLD = re.compile(r"threshold=(\d+(?:\.\d+)?)")
_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a repeatable request is tried. Times are seconds."""

    tries: int = 5
    first_delay: float = 0.5
    factor: float = 2.0
    longest_delay: float = 30.0
    longest_asked: float = 60.0  # a provider that asks for more than this gets an error instead of our patience
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    def delay(self, attempt: int) -> float:
        """Return the pause after try number ``attempt`` (from 0) where the provider named none."""
        return min(self.longest_delay, self.first_delay * self.factor**attempt)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, with the key removed from every text."""

    status: int
    headers: Mapping[str, str]
    body: object  # decoded JSON, None when there was none
    text: str  # the provider's words, shortened

    @property
    def fields(self) -> Mapping[str, object]:
        """The body where it is an object, else an empty mapping."""
        return self.body if isinstance(self.body, dict) else {}


Classifier = Callable[[Answer], ProviderError | None]
"""Turns an answer into the error that it means, or ``None`` for a success. Every provider brings its own."""


@dataclass(slots=True)
class Client:
    """A provider's API under one base URL. May be used from several threads at once.

    ``classify`` says what an answer means; ``sleep`` and ``now`` are the clock (tests bring their own).
    """

    provider: str
    title: str
    base_url: str
    credential: BearerKey = field(repr=False)
    classify: Classifier = field(repr=False)
    patience: Patience = field(default_factory=Patience)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    now: Callable[[], float] = field(default=time.time, repr=False)
    _auth: Bearer = field(init=False, repr=False)
    _local: threading.local = field(init=False, repr=False, default_factory=threading.local)

    def __post_init__(self) -> None:
        self._auth = self.credential.signature(self.title)
        self.base_url = self.base_url.rstrip("/")

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
        repeatable: bool | None = None,
    ) -> Mapping[str, object]:
        """Send one request and return the answer's JSON object.

        A bare list comes as ``{"items": [...]}``, an empty answer as ``{}``. ``repeatable`` says that sending it twice
        does no more than sending it once; by default that is true of GET only. Raises the errors of
        :mod:`gpuyard.errors`: what the classifier says, :class:`ThrottledError` and :class:`ProviderDownError` after
        all tries, :class:`AmbiguousError` when a request that may not be repeated got no usable answer.
        """
        safe = method == "GET" if repeatable is None else repeatable
        attempt = 0
        while True:
            error, asked = self._attempt(method, path, params, body, safe)
            if isinstance(error, dict):
                return error
            attempt += 1
            if not safe or attempt >= self.patience.tries or not _worth_repeating(error):
                raise error
            if asked is not None and asked > self.patience.longest_asked:
                raise error
            # Never at once, even when the provider says 0: a refused request costs it and us something.
            delay = self.patience.delay(attempt - 1) if asked is None else max(asked, self.patience.first_delay)
            self.sleep(delay)

    def events(
        self, path: str, params: Mapping[str, str | int], *, most: int, quiet_s: float
    ) -> list[dict[str, object]]:
        """Return what a stream of server-sent events holds, as JSON objects.

        Such a stream stays open: it is left after ``most`` events, or when nothing has come for ``quiet_s`` seconds.
        Raises what :meth:`call` raises for a refusal, :class:`ProviderDownError` when there is no answer.
        """
        found: list[dict[str, object]] = []
        began = False
        session = self._new_session()
        headers = {"Accept": "text/event-stream", "User-Agent": f"gpuyard/{__version__}"}
        try:
            response = session.get(
                self.base_url + path,
                params=params,
                headers=headers,
                timeout=(self.patience.connect_timeout, max(quiet_s, 0.1)),
                stream=True,
                allow_redirects=False,
            )
            if not 200 <= response.status_code < 300:
                raise self._judge("GET", path, self._answer(response), True, None) or ProviderDownError(
                    f"{self.title} answers GET {path} with HTTP {response.status_code}.", provider=self.provider
                )
            began = True
            for line in response.iter_lines():
                if not line.startswith(b"data:"):
                    continue
                with suppress(ValueError):
                    event = json.loads(self._auth.clean(line[5:].decode(errors="replace")))
                    found += [event] if isinstance(event, dict) else []
                if len(found) >= most:
                    break
        except requests.RequestException as error:
            if not (found or (began and _is_quiet(error))):
                raise self._unanswered("GET", path, error, True) from None
        finally:
            session.close()
        return found

    def url(self, path: str) -> str:
        """Return the full URL of ``path`` (for planned calls)."""
        return self.base_url + path

    def _attempt(
        self,
        method: str,
        path: str,
        params: Mapping[str, str | int] | None,
        body: Mapping[str, object] | None,
        safe: bool,
    ) -> tuple[dict[str, object] | ProviderError, float | None]:
        """Send once. Return the body or the error, and the seconds that the provider asks us to wait, if any."""
        headers = {"Accept": "application/json", "User-Agent": f"gpuyard/{__version__}"}
        data = None
        if body is not None:
            # Vultr answers 400 to a body without this type, so it is never left to a library's default.
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        # A pooled connection that the server has just closed looks like a lost answer. What must not be repeated
        # therefore always gets a connection of its own.
        session = self._session() if safe else self._new_session()
        try:
            response = session.request(
                method,
                self.base_url + path,
                params=params,
                data=data,
                headers=headers,
                timeout=(self.patience.connect_timeout, self.patience.read_timeout),
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return self._unanswered(method, path, error, safe), None
        finally:
            if not safe:
                session.close()
        answer = self._answer(response)
        asked = _asked_wait(answer, self.now())
        found = self._judge(method, path, answer, safe, asked)
        if found is not None:
            return found, asked
        if isinstance(answer.body, list):
            return {"items": answer.body}, None
        return dict(answer.fields), None

    def _judge(self, method: str, path: str, answer: Answer, safe: bool, asked: float | None) -> ProviderError | None:
        """Return the error that ``answer`` means, ``None`` for a success."""
        where = f"{method} {path}"
        found = self.classify(answer)
        if found is not None and found.instance_id is not None:
            return found  # the answer names what was rented: nothing is uncertain
        if answer.status == 429:
            wait = f"; it asks to wait {asked:.0f} s" if asked is not None else ""
            throttled = ThrottledError(
                f"{self.title} says too many requests to {where}{wait}: {answer.text}",
                provider=self.provider,
                status=429,
                code=found.code if found else "",
            )
            throttled.retry_after = asked
            return throttled
        if answer.status >= 500:
            kind = ProviderDownError if safe else AmbiguousError
            doubt = "" if safe else " It may have acted all the same."
            return kind(
                f"{self.title} failed at {where} with HTTP {answer.status}: {answer.text or 'no text'}.{doubt}",
                provider=self.provider,
                status=answer.status,
            )
        if found is not None:
            return found
        if answer.status in (301, 302, 303, 307, 308):
            return ProviderDownError(
                f"{self.title} redirects {where} elsewhere; {self.base_url} is not its API's address.",
                provider=self.provider,
                status=answer.status,
            )
        if answer.body is None and answer.text:
            kind = ProviderDownError if safe else AmbiguousError
            return kind(
                f"{self.title} answered {where} with something other than JSON: {answer.text}",
                provider=self.provider,
                status=answer.status,
            )
        return None

    def _unanswered(self, method: str, path: str, error: requests.RequestException, safe: bool) -> ProviderError:
        """Return the error for a request without an answer: down when it surely never arrived, else ambiguous."""
        kind = _reason(error)
        if safe or _never_sent(error):
            return ProviderDownError(
                f"{self.title} cannot be reached at {self.base_url} ({kind}).", provider=self.provider
            )
        return AmbiguousError(
            f"The answer of {self.title} to {method} {path} was lost ({kind}); it may or may not have acted.",
            provider=self.provider,
        )

    def _answer(self, response: requests.Response) -> Answer:
        text = self._auth.clean(response.text or "")
        decoded: object = None
        if text.strip():
            try:
                decoded = json.loads(text)
            except ValueError:
                decoded = None
        words = text
        if isinstance(decoded, dict):
            said = [str(decoded[name]) for name in ("error", "msg", "detail", "message") if decoded.get(name)]
            words = ": ".join(said) or text
        words = " ".join(words.split())
        if len(words) > _TEXT_LIMIT:
            words = words[:_TEXT_LIMIT] + "…"
        return Answer(response.status_code, response.headers, decoded, words)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._new_session()
        return session

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.auth = self._auth
        # A proxy of the environment has no business between us and an emulator on this machine.
        session.trust_env = urlsplit(self.base_url).hostname not in _LOOPBACK
        return session


def _worth_repeating(error: ProviderError) -> bool:
    """Say whether the same request may fare better in a moment."""
    return isinstance(error, ThrottledError | ProviderDownError) and (
        error.status is None or error.status in _RETRIED_STATUS
    )


def _is_quiet(error: requests.RequestException) -> bool:
    """Say whether an open stream has only had nothing more to say."""
    return isinstance(error, requests.ReadTimeout) or "Read timed out" in str(error)


def fetch_text(address: str) -> str | None:
    """Return the text at an address that a provider has named, without any key, ``None`` when it is not there."""
    with requests.Session() as session:
        session.trust_env = urlsplit(address).hostname not in _LOOPBACK
        # No authenticator, lest one of ~/.netrc is sent to a place that the provider has chosen.
        session.auth = Bearer("")
        try:
            response = session.get(address, timeout=(10.0, 30.0))
        except requests.RequestException as error:
            raise ProviderDownError(f"{urlsplit(address).hostname} cannot be reached ({_reason(error)}).") from None
    return response.text if response.status_code == 200 else None


def _never_sent(error: requests.RequestException) -> bool:
    """Say whether no byte of the request can have reached the server: the connection itself failed."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, NewConnectionError)


def _reason(error: requests.RequestException) -> str:
    """Return a few words for a failed request, chosen by its kind: the library's own text quotes the request."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate was not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused"
    if _never_sent(error):
        return "connection refused or host unknown"
    return "the connection broke"


def _asked_wait(answer: Answer, now: float) -> float | None:
    """Return the seconds that a refusing answer asks us to wait, in whichever of the known ways it says so."""
    if answer.status != 429 and answer.status < 500:
        return None
    header = answer.headers.get("Retry-After", "").strip()
    if header:
        try:
            return max(0.0, float(header))
        except ValueError:
            try:
                return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
            except (TypeError, ValueError):
                pass
    said = answer.fields.get("retry_after")
    if isinstance(said, int | float) and not isinstance(said, bool):
        return max(0.0, float(said))
    reset = answer.headers.get("X-RateLimit-Reset", "").strip()
    try:
        if reset:
            return max(0.0, float(reset) - now)
    except ValueError:
        pass
    threshold = _THRESHOLD.search(answer.text)
    return float(threshold[1]) if threshold else None
