"""``python -m gpuyard.box.checkpoints``: what can be done with checkpoints. On the box, by its run's settings."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpuyard.box.checkpoints import (
    Manners,
    Retention,
    diff,
    prune_run,
    restore_file,
    sequences,
    verify,
    verify_all,
)
from gpuyard.box.checkpoints.listing import read_manifest

# The run's settings are the stage runner's affair, and its journal gives a manifest its progress.
from gpuyard.box.stages.ending import publish_and_tell
from gpuyard.box.stages.runner import publish_checkpoint, restore_checkpoint
from gpuyard.box.stages.spec import DEFAULT_FOLDER, BoxSpec, load_spec
from gpuyard.errors import GpuyardError, MissingObjectError, UnreadableManifestError

NOT_IN_BUCKET = 75
"""EX_TEMPFAIL of sysexits.h: it may work later."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code.

    ``publish`` succeeds whatever the bucket does; with ``--strict`` its code is :data:`NOT_IN_BUCKET` when the bucket
    does not hold what is on the box.
    """
    options = _parser().parse_args(arguments)
    try:
        spec = load_spec(options.settings)
        if options.command == "publish" and options.json:
            print(json.dumps(vars(publish_and_tell(spec))))
            return 0
        if options.command == "publish":
            return _publish(spec, patient=not options.impatient, strict=options.strict)
        if options.command == "restore":
            return _restore(spec, options.sequence)
        if not spec.bucket:
            # Two of them have told so ever since without failing, and programs may call them.
            mild = options.command in ("list", "verify")
            print(f"No bucket is set for {spec.run}: it has no checkpoints.", file=sys.stderr)
            return 0 if mild else 1
        if options.command == "list":
            return _list(spec)
        if options.command == "verify":
            return _verify(spec, options.sequence, every=options.all)
        print(json.dumps(_look(spec, options)))
        return 0
    except (GpuyardError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _publish(spec: BoxSpec, *, patient: bool, strict: bool) -> int:
    if not spec.bucket:
        print(f"No bucket is set for {spec.run}: its files stay on this box.", file=sys.stderr)
        return NOT_IN_BUCKET if strict else 0
    published = publish_checkpoint(
        spec,
        warn=lambda text: print(text, file=sys.stderr, flush=True),
        patient=patient,
        wait=patient or strict,
        manners=Manners(spec.bandwidth_mb_s),
    )
    if not strict or (published is not None and not published.lacks):
        return 0
    if published is not None:
        # A warning says this only when it is news, and a caller who asks each time wants it each time.
        print(f"Checkpoint {published.sequence} does not hold everything: {published.lacks}", file=sys.stderr)
    return NOT_IN_BUCKET


def _restore(spec: BoxSpec, sequence: int | None) -> int:
    restored = restore_checkpoint(spec, sequence)
    print(json.dumps({"changed": restored.source == "cloud", "restored": vars(restored)}))
    return 0


def _look(spec: BoxSpec, options: argparse.Namespace) -> dict[str, Any]:
    """Do one of the commands that answer with one document."""
    store, place = spec.store(), spec.place
    if options.command == "prune":
        retention = Retention(options.keep_last, options.keep_every)
        return asdict(prune_run(store, place, retention, dry_run=options.dry_run))
    if options.command == "diff":
        return asdict(diff(store, place, options.before, options.after))
    entry = restore_file(store, place, options.number, options.path, options.to)
    return {"path": entry.path, "size": entry.size, "sha256": entry.sha256}


def _list(spec: BoxSpec) -> int:
    unreadable = 0
    store = spec.store()
    for sequence in sequences(store, spec.place):
        try:
            manifest = read_manifest(store, spec.place, sequence)
        except MissingObjectError:
            continue
        except UnreadableManifestError as error:
            print(error, file=sys.stderr)
            unreadable = 1
            continue
        print(
            json.dumps(
                {
                    "sequence": manifest.sequence,
                    "time": manifest.time,
                    "files": len(manifest.files),
                    "bytes": manifest.size,
                    "progress": dict(manifest.progress),
                }
            )
        )
    return unreadable


def _verify(spec: BoxSpec, sequence: int | None, *, every: bool) -> int:
    store = spec.store()
    found = verify_all(store, spec.place) if every else [verify(store, spec.place, sequence=sequence)]
    for verified in found:
        print(json.dumps(vars(verified)))
        for text in verified.damaged:
            print(f"Damaged: {text}", file=sys.stderr)
    return 1 if any(verified.damaged for verified in found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gpuyard.box.checkpoints", description="Checkpoints of this box's run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("publish", "publish one now; a failing bucket is a warning"),
        ("restore", "bring back the newest one, unless this box has work of its own"),
        ("list", "show those in the bucket, newest first"),
        ("verify", "read the newest one whole; damaged objects are named, and the exit code is 1"),
        ("prune", "remove all but the newest ones from the bucket, unless one is being published"),
        ("diff", "say what one has otherwise than another"),
        ("restore-file", "write one file of one of them to a place where nothing is"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--settings", type=Path, default=DEFAULT_FOLDER, metavar="DIR")
        if name == "publish":
            command.add_argument(
                "--impatient",
                action="store_true",
                help="do not wait: give up at once while the bucket has just failed; while another checkpoint is being "
                "published, ask for one after it (but with --strict)",
            )
            command.add_argument(
                "--strict",
                action="store_true",
                help=f"exit with {NOT_IN_BUCKET} when the bucket does not hold everything that is on this box",
            )
            command.add_argument(
                "--json", action="store_true", help="say as JSON whether the bucket now holds everything, and why not"
            )
        if name in ("restore", "verify"):
            command.add_argument("--sequence", type=int, metavar="N", help="exactly this one")
        if name == "verify":
            command.add_argument("--all", action="store_true", help="all of them; what several have is read once")
        if name == "prune":
            command.add_argument("--keep-last", type=int, required=True, metavar="N", help="the newest N stay")
            command.add_argument(
                "--keep-every", type=int, default=0, metavar="M", help="besides, those whose number is a multiple of M"
            )
            command.add_argument("--dry-run", action="store_true", help="only say what would go")
        if name == "diff":
            command.add_argument("before", type=int, metavar="A")
            command.add_argument("after", type=int, metavar="B")
        if name == "restore-file":
            command.add_argument("number", type=int, metavar="SEQUENCE")
            command.add_argument("path", metavar="PATH", help="the file, as it is called below the persistent root")
            command.add_argument("to", type=Path, metavar="TO", help="the new file, or a folder for it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
