"""What can go wrong, by meaning.

Every error that a user can meet derives from :class:`GpuyardError`; its text is one clear sentence (or a short block)
that names the option, the value and the way out. Modules, plays and the CLI print that text and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence


class GpuyardError(Exception):
    """A failure that a user can understand and act on."""


class UsageError(GpuyardError):
    """An option, a file or an environment variable has a value that cannot work. Nothing has been rented."""


class NoOfferError(GpuyardError):
    """Nothing rentable fits. The text says which condition removed how many. Nothing has been rented."""


class UnreachableError(GpuyardError):
    """A rented machine never became usable: it failed to start, or SSH never answered. The text names the instance."""


class UnfitError(UnreachableError):
    """A rented machine answers, and is not what its offer promised. The text names the instance, and what is wrong."""


class DiskFullError(UnfitError):
    """The disk with which a machine was rented is too small for what has to be on it. The text names the instance."""


class ConnectionLostError(UnreachableError):
    """A machine could not be reached over SSH, or the connection to it broke.

    ``silent`` tells whether nothing at all answered at its address; else something did, and perhaps it was the machine.
    """

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class NothingBegunError(GpuyardError):
    """A machine has not been told what to run, so no stage has begun on it."""


class NotSavedError(GpuyardError):
    """A machine is kept, because it may hold work that is not in the bucket. The text names it, and what it costs."""


class ProviderError(GpuyardError):
    """A provider's API answered with a failure.

    ``provider`` is the provider's name, ``status`` the HTTP status or ``None``, ``code`` the provider's own error code
    or ``""``. ``instance_id`` is set when the failed answer still named an instance, which then has to be destroyed.
    """

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        code: str = "",
        instance_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.code = code
        self.instance_id = instance_id


class AuthenticationError(ProviderError):
    """The key is missing, wrong, expired, or not allowed from this address."""


class NoCapacityError(ProviderError):
    """The offer is gone or the region is sold out. The next offer may be tried."""


class CreditError(ProviderError):
    """The account lacks credit or a quota is reached."""


class ThrottledError(ProviderError):
    """Too many requests, even after waiting as long as the provider asked.

    ``retry_after`` is the number of seconds that the provider asked to wait, ``None`` when it named none.
    """

    retry_after: float | None = None


class NotFoundError(ProviderError):
    """The named thing does not exist (any more)."""


class InvalidRequestError(ProviderError):
    """The provider refused the request as such. Trying another offer would not help."""


class AmbiguousError(ProviderError):
    """No usable answer came, so the provider may or may not have acted. Look by label before acting again."""


class ProviderDownError(ProviderError):
    """The provider answers with 5xx or not at all, also after retries of a harmless request."""


class UnsupportedError(ProviderError):
    """This provider cannot do what was asked."""


class LeakError(ProviderError):
    """Something that we rented could not be confirmed destroyed. The text names every id."""


def listed(mistakes: Sequence[str], most: int = 20, *, of: int | None = None) -> str:
    """Return ``mistakes``, one a line: the first ``most``, and how many more there are (``of`` them in all)."""
    more = (len(mistakes) if of is None else of) - most
    return "\n".join([*mistakes[:most], *([f"… and {more} more."] if more > 0 else [])])


class CheckpointError(GpuyardError):
    """A checkpoint cannot be published, read or restored."""


class BucketError(CheckpointError):
    """The bucket does not answer, refuses the key, or does not exist."""


class MissingObjectError(BucketError):
    """The bucket answers, but holds nothing under this key."""


class UnreadableManifestError(CheckpointError):
    """A manifest is there, and empty, cut off, of a newer version or not a manifest at all."""
