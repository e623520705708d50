"""Publishing and restoring checkpoints as whole sets.

A set is a folder of plain files in the store plus a manifest that is written last; nothing without a manifest is ever
restored. The files lie in a folder of their own beside the manifest, so that no file can have a key of ours. Content
that an earlier set already holds is not sent again: the manifest points to the older key. Files are hashed from the
very bytes that are sent, so a file that grows meanwhile is stored as it was at one moment.

What is not in a set: ``.gpuyard/tmp`` of any folder, sockets, pipes and devices, dangling links, links to folders
outside the root, and empty folders (a bucket has none). A link to something inside the root is kept as a link, a link
to a file outside it is stored as that file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpuyard.box.checkpoints import series
from gpuyard.box.checkpoints.claims import Claim, OvertakenError
from gpuyard.box.checkpoints.hashing import HashCache
from gpuyard.box.checkpoints.listing import Listing, manifest_key, number_of, set_prefix, sets_prefix
from gpuyard.box.checkpoints.manners import Manners
from gpuyard.box.checkpoints.parallel import THREADS
from gpuyard.box.checkpoints.reading import newest_readable
from gpuyard.box.checkpoints.retention import Retention, prune
from gpuyard.box.checkpoints.rules import Rules
from gpuyard.box.checkpoints.scanning import read_journal, scan
from gpuyard.box.checkpoints.sending import Sender
from gpuyard.box.checkpoints.stores import Store
from gpuyard.box.checkpoints.wording import names_in_words
from gpuyard.errors import BucketError, CheckpointError, GpuyardError
from gpuyard.formats.manifest import JOURNAL, SCRATCH, FileEntry, Manifest, timestamp

# So often a set is made anew when its objects vanish while it is made.
TRIES = 3


LOCK_WAIT_S = 300.0


# How long a program's own checkpoint calls leave a bucket alone that has just failed.
BACK_OFF_S = 30.0


_ASKED = f"{SCRATCH}/publish-again"


Progress = Callable[[bytes], Mapping[str, Any]]
"""Derives the manifest's ``progress`` from the journal's bytes."""


class BusyError(CheckpointError):
    """Another publisher of this machine is at work."""


@dataclass
class Published:
    """What :func:`publish` did. Sizes are in bytes, ``seconds`` is wall-clock time."""

    sequence: int
    files: int
    bytes_total: int
    files_sent: int = 0
    bytes_sent: int = 0
    removed: int = 0
    unchanged: bool = False
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    """What cannot be in a set, each with the reason."""
    held: list[str] = field(default_factory=list)
    """Paths that are in the set as the last one has them, because a program is writing to them."""
    left_out: list[str] = field(default_factory=list)
    """Paths that no set has yet, because a program is writing to them."""
    warnings: list[str] = field(default_factory=list)

    @property
    def lacks(self) -> str:
        """In words, what the set does not hold as it is on the disk; empty when it holds everything."""
        parts = [f"not in the checkpoint: {path}" for path in self.skipped]
        if self.held:
            parts.append(
                f"as in the checkpoint before, because a program is writing to them: {names_in_words(self.held)}"
            )
        if self.left_out:
            parts.append(
                f"not in the checkpoint yet, because a program is writing to them: {names_in_words(self.left_out)}"
            )
        return "; ".join(parts)


def publish(
    store: Store,
    run: str,
    root: Path,
    *,
    retention: Retention | None = None,
    progress: Progress | None = None,
    force: bool = False,
    rules: Rules | None = None,
    threads: int = THREADS,
    lock_wait_s: float = LOCK_WAIT_S,
    manners: Manners | None = None,
) -> Published:
    """Publish what ``rules`` let of everything below ``root`` as the next checkpoint, then apply ``retention``.

    A second publisher on the same machine waits up to ``lock_wait_s`` seconds for the first; one on another machine
    takes another number, and while it is at work nothing is removed. ``manners`` say how much of the network and the
    processors this may take; default: all. When nothing but the journal's own bookkeeping changed since the newest set,
    no set is made unless ``force`` is true. Raises :class:`BucketError` when the bucket fails, :class:`BusyError` when
    the lock is not to be had, :class:`CheckpointError` when the set's objects do not stay in the bucket, ``OSError``
    when a file cannot be read; a set that was begun by then stays invisible and is cleared away by a later one.
    """
    began = time.monotonic()
    (root / SCRATCH).mkdir(parents=True, exist_ok=True)
    with hold_lock(root / SCRATCH / "publish.lock", lock_wait_s):
        # Whoever has asked for another set until now gets this one.
        (root / _ASKED).unlink(missing_ok=True)
        claim = Claim(store, run, root)
        attempt = _Attempt(
            store,
            run,
            root,
            claim,
            retention or Retention(),
            progress,
            force,
            rules or Rules(),
            threads,
            manners or Manners(),
        )
        published: Published | None = None
        try:
            tries = 0
            while published is None and tries < TRIES:
                # Being overtaken is no failed try: from then on the claim stands, and cannot be overtaken any more.
                with contextlib.suppress(OvertakenError, _MovedOnError):
                    published = attempt.make()
                    tries += 1
        except BucketError:
            raise  # It need not be asked for more: the next publisher of this folder clears up.
        except BaseException:
            with contextlib.suppress(GpuyardError):
                claim.release()
            raise
    if published is None:
        raise CheckpointError(
            f"Objects of run {run} vanish from {store.url} while they are being published, as {TRIES} tries have shown."
        )
    published.seconds = time.monotonic() - began
    return published


class _MovedOnError(Exception):
    """While files were sent, the run has got further than the journal that was read before them."""


@dataclass
class _Attempt:
    """What it takes to make one set, several times over if need be."""

    store: Store
    run: str
    root: Path
    claim: Claim
    retention: Retention
    progress: Progress | None
    force: bool
    rules: Rules
    threads: int
    manners: Manners
    # Files and journal are of one moment only when the run has not got further meanwhile. Where stages end quicker than
    # files are sent that would never be so, and then the journal is the older of the two.
    looks: int = 2
    sent: list[FileEntry] = field(default_factory=list)
    """What was sent for files of another moment. It lies below a number that no set has, and the next try uses it."""
    files_sent: int = 0
    bytes_sent: int = 0

    def make(self) -> Published | None:
        """Make the set from what the claim's listing shows; ``None`` when it did not stay whole.

        Raises :class:`OvertakenError` when that listing was out of date by the time that the number was claimed.
        """
        seen, run = self.claim.seen, self.run
        # The journal comes first: whatever it calls done is then certainly in the files that are read after it.
        journal = read_journal(self.root)
        previous, warnings = newest_readable(self.store, seen)
        # Only content that is there as it was sent need not be sent again.
        known = {
            entry.sha256: entry.key
            for entry in (previous.files if previous else ())
            if entry.link is None and seen.holds(entry)
        } | {entry.sha256: entry.key for entry in self.sent if seen.may_hold(entry)}
        cache = HashCache(self.root)
        found, skipped = scan(self.root, self.rules)
        sender = Sender(
            self.store, self.claim.key, self.root, known, cache, previous, self.rules, self.manners, self.sent
        )
        entries = series.choose(
            found,
            self.rules,
            previous,
            send=lambda files: sender.send_all(files, self.threads),
            unsure=lambda: {*sender.held, *sender.left_out},
        )
        skipped += sender.skipped
        described = self._describe(journal)
        if self.looks and described != self._describe(read_journal(self.root)):
            self._keep_sent(sender, entries, cache)
            raise _MovedOnError
        # While the newest manifest cannot be read, only another set makes the run one that can be restored.
        sound = previous is not None and all(map(seen.holds, previous.files))
        if previous is not None and sound and not self.force and not sender.files_sent and not warnings:
            before = {entry.content for entry in previous.files if entry.path != JOURNAL}
            if before == {entry.content for entry in entries} and dict(previous.progress) == described:
                self.claim.release()
                self.claim.clear()
                cache.save()
                return Published(
                    previous.sequence,
                    len(previous.files),
                    previous.size,
                    unchanged=True,
                    skipped=skipped,
                    held=sender.held,
                    left_out=sender.left_out,
                )
        if journal is not None:
            entries.append(sender.send_bytes(JOURNAL, journal))
        entries.sort(key=lambda entry: entry.path)
        sequence = self.claim.take()
        tags = {entry.key: entry.tag for entry in (previous.files if previous else ())}
        tags |= {entry.key: seen.objects[entry.key].tag for entry in self.sent if entry.key in seen.objects}
        # The store says itself how it lists what it has just got; the answer to a put may be worded otherwise.
        tags |= {item.key: item.tag for item in self.store.objects(set_prefix(run, sequence))}
        entries = [replace(entry, tag=tags.get(entry.key, "")) for entry in entries]
        manifest = Manifest(run, sequence, timestamp(), tuple(entries), described)
        written = self.store.put_new(manifest_key(run, sequence), manifest.to_bytes())
        after = self.claim.look()
        if not written or not all(map(after.holds, manifest.files)):
            if written:
                self.store.delete(manifest_key(run, sequence))
            self.claim.release()
            return None
        with contextlib.suppress(BucketError):  # the set is there all the same
            self.claim.release()
        cache.save()
        removed, trouble = self._apply_retention(after, manifest)
        return Published(
            sequence=sequence,
            files=len(entries),
            bytes_total=manifest.size,
            files_sent=self.files_sent + sender.files_sent,
            bytes_sent=self.bytes_sent + sender.bytes_sent,
            removed=removed,
            skipped=skipped,
            held=sender.held,
            left_out=sender.left_out,
            warnings=list(dict.fromkeys(warnings + trouble)),
        )

    def _describe(self, journal: bytes | None) -> dict[str, Any]:
        return dict(self.progress(journal or b"")) if self.progress else {}

    def _keep_sent(self, sender: Sender, entries: Sequence[FileEntry], cache: HashCache) -> None:
        """Remember what was sent, and let go of the number: under another one nothing that is known is overwritten."""
        self.looks -= 1
        self.files_sent += sender.files_sent
        self.bytes_sent += sender.bytes_sent
        if self.claim.number:
            here = set_prefix(self.run, self.claim.number)
            self.sent += [entry for entry in entries if entry.key.startswith(here)]
        cache.save()
        self.claim.release()
        self.claim.look()

    def _apply_retention(self, seen: Listing, manifest: Manifest) -> tuple[int, list[str]]:
        """Remove what retention lets go, unless another publisher may rely on it. The set is there, whatever fails."""
        at_work = seen.open_claims(self.claim.publisher)

        def spare(key: str) -> bool:
            # Our own uploads have ended, and whoever has begun since that listing has a higher number.
            number = number_of(self.run, key)
            return number in at_work or not 0 < number < manifest.sequence

        with contextlib.suppress(CheckpointError):  # a key that may not look for them
            self.store.abort_unfinished(sets_prefix(self.run), spare)
        if at_work:
            return 0, [
                f"Another machine has begun a checkpoint of {self.run} within the last hour: no older one is removed."
            ]
        try:
            return prune(self.store, self.retention, seen, manifest)
        except BucketError as error:
            return 0, [f"Older checkpoints could not be removed: {error}"]


def publish_or_warn(
    store: Callable[[], Store],
    run: str,
    root: Path,
    *,
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    patient: bool = True,
    wait: bool = True,
    **options: Any,
) -> Published | None:
    """Like :func:`publish`, but a failure becomes one warning and ``None``: training never ends because of a bucket.

    ``patient=False`` is for calls that a program makes as it goes: for ``BACK_OFF_S`` seconds after a failure they
    return at once instead of waiting for the same dead bucket again. With ``wait=False`` they do not wait for another
    publisher of this machine, either: it is asked for another set (see :func:`is_asked_again`), and ``None`` is
    returned. ``options`` are those of :func:`publish`.
    """
    mark = root / SCRATCH / "bucket-failed"
    if not patient:
        with contextlib.suppress(OSError):
            if time.time() - mark.stat().st_mtime < BACK_OFF_S:
                warn("Warning: no checkpoint was published: the bucket has just failed. Everything stays on this box.")
                return None
    try:
        if not wait:
            options["lock_wait_s"] = 0.0
            # First ask, then look: a publisher looks for this once it has let go of the lock.
            (root / _ASKED).parent.mkdir(parents=True, exist_ok=True)
            (root / _ASKED).touch()
        published = publish(store(), run, root, **options)
    except BusyError as error:
        if wait:
            warn(f"Warning: no checkpoint was published: {error} Everything stays on this box.")
        else:
            warn("A checkpoint is being published just now, and another one follows it at once.")
        return None
    except (GpuyardError, OSError) as error:
        warn(f"Warning: no checkpoint was published: {error} Everything stays on this box.")
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        return None
    with contextlib.suppress(OSError):
        mark.unlink(missing_ok=True)
    if published.lacks and _is_news(root, published):
        warn(f"Warning: {published.lacks}")
    for text in published.warnings:
        warn(f"Warning: {text}")
    return published


def is_asked_again(root: Path) -> bool:
    """Tell whether somebody wants another set, who did not wait for the publisher that was at work."""
    return (root / _ASKED).exists()


def _is_news(root: Path, published: Published) -> bool:
    """Tell whether other files are concerned than at the last publish: what is so every minute is said once.

    Files that no set has yet count as one: most are temporary, with another name each time.
    """
    news = json.dumps([sorted(published.skipped), sorted(published.held), bool(published.left_out)])
    file = root / SCRATCH / "lacking"
    with contextlib.suppress(OSError, ValueError):
        if file.read_text() == news:
            return False
    with contextlib.suppress(OSError):
        file.write_text(news)
    return True


@contextlib.contextmanager
def hold_lock(file: Path, wait_s: float) -> Iterator[None]:
    """Hold an exclusive lock on ``file``; the kernel lets go of it when this process dies, however it dies."""
    with file.open("a") as handle:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"Another checkpoint has been under way for more than {wait_s:.0f} s on this machine."
                    ) from error
                time.sleep(0.05)
        yield
