"""The options of the plays, and what is said to somebody who misspells one.

An option is a variable of Ansible's, and Ansible takes no notice of a variable that nobody reads: a price limit with a
slip in its name would be no limit. So each play looks at what it was given, before anything is asked or rented.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from gpuyard.errors import UsageError, listed
from gpuyard.formats.label import check_form

_RENTING = ("launch", "move", "resume_search", "start")
_PLANNING = (*_RENTING, "plan")
_MARKET = (*_PLANNING, "offers")
_ALL = (
    *_MARKET,
    "audit",
    "bid",
    "check",
    "checkpoints",
    "image",
    "logs",
    "reap",
    "report",
    "setup_env",
    "snapshot",
    "status",
    "stop",
    "supervise",
    "sync",
    "teardown",
)
_OF_NO_RUN = ("audit", "check", "image", "offers", "reap", "setup_env")

OPTIONS: dict[str, tuple[str, ...]] = {
    "workload": (*_MARKET, "check", "image"),
    # Runs are looked for everywhere, whatever it says; it may well stand in the configuration of all plays.
    "provider": _ALL,
    "run": tuple(play for play in _ALL if play not in _OF_NO_RUN),
    "market": _MARKET,
    "max_price_per_hour": _MARKET,
    "gpu_name": _MARKET,
    "gpu_count": _MARKET,
    "gpu_ram_gb": _MARKET,
    "disk_gb": _MARKET,
    "region": _MARKET,
    "reliability": _MARKET,
    "rank": _MARKET,
    "lease_hours": _PLANNING,
    "budget_usd": _PLANNING,
    "offer": _PLANNING,
    "box": _RENTING,
    "restore": _PLANNING,
    "update": _PLANNING,
    "bucket": _ALL,
    "bucket_endpoint": _ALL,
    "ssh_key": _ALL,
    "converge": _RENTING,
    "follow": (*_PLANNING, "logs"),
    "shutdown": (*_PLANNING, "supervise"),
    "stay": ("supervise",),
    "interval_s": ("supervise",),
    "losses_before_on_demand": ("supervise",),
    "silent_minutes": ("supervise",),
    "node": ("bid", "checkpoints", "logs", "sync"),
    "to": ("checkpoints", "sync"),
    "what": ("sync",),
    "from": ("sync",),
    "bid": ("bid",),
    "profile": (*_MARKET, "check", "image"),
    "overrides": _PLANNING,
    "iterations": _PLANNING,
    "stage": (*_PLANNING, "logs", "supervise"),
    "from_stage": _PLANNING,
    "until_stage": _PLANNING,
    "iteration": (*_PLANNING, "logs"),
    "from_bundle": _RENTING,
    "by": ("offers",),
    "format": ("audit", "offers", "plan", "reap", "report"),
    "list_prices": ("offers",),
    "report": ("audit", "check", "offers", "plan", "reap", "report", "teardown"),
    "everything": ("audit",),
    "partial": ("audit",),
    "reap": ("audit",),
    "push": ("image",),
    "run_options": ("image",),
    "state": ("snapshot",),
    "bundle": ("snapshot",),
    "env_file": ("setup_env",),
    "env_names": ("setup_env",),
    "list": ("setup_env",),
    "overwrite": ("setup_env",),
    "do": ("checkpoints",),
    "sequence": ("checkpoints",),
    "against": ("checkpoints",),
    "every": ("checkpoints",),
    "path": ("checkpoints",),
    "keep_last": ("checkpoints",),
    "keep_every": ("checkpoints",),
    "lines": ("logs",),
    "errors": ("logs",),
    "source": ("logs",),
    "wait_s": ("stop", "teardown"),
    "force": ("stop",),
    "lose": ("reap", "teardown"),
    "keep_volumes": ("teardown",),
    "sandbox": _ALL,
    "sandbox_state": _ALL,
}
"""Every option, and the plays that take it."""

ENVIRONMENT = (
    # What a user sets.
    "GPUYARD_HEARTBEAT",
    "GPUYARD_HOME",
    "GPUYARD_OWN_BOXES",
    "GPUYARD_PROVIDER",
    "GPUYARD_REGISTRY_AUTH",
    "GPUYARD_SANDBOX",
    "GPUYARD_SANDBOX_STATE",
    "GPUYARD_SKYPILOT",
    # What stages see, and may start a play with.
    "GPUYARD_BUCKET",
    "GPUYARD_BUCKET_ENDPOINT",
    "GPUYARD_CHECKPOINT_COMMAND",
    "GPUYARD_INSTANCE_ID",
    "GPUYARD_LABEL",  # in a pod of RunPod's
    "GPUYARD_LIBRARIES",
    "GPUYARD_MARKET",
    "GPUYARD_NODE",
    "GPUYARD_PERSIST",
    "GPUYARD_POOL",
    "GPUYARD_PRICE_PER_HOUR_USD",
    "GPUYARD_REGION",
    "GPUYARD_RUN",
    "GPUYARD_STAGE_TOKEN",
    "GPUYARD_WORKLOAD",
    # What the checkout's own tests set.
    "GPUYARD_METADATA",
    "GPUYARD_VASTAI",
)
"""Every environment variable of ours."""

_PREFIX = "GPUYARD_"
# Ansible's own names, ours, and those of the programs that run plays for others.
_FREE = ("ansible_", "gpuyard_", "awx_", "tower_")
# A variable outside of -e may belong to the user's own plays, so only one that looks like a slip is refused.
_NEAR = 0.75


def taken_by(play: str) -> list[str]:
    """Return the options that ``play`` takes."""
    return [name for name, plays in OPTIONS.items() if play in plays]


def check(
    play: str,
    *,
    extra: Collection[str] = (),
    lost: Sequence[tuple[str, str]] = (),
    configured: Iterable[str] = (),
    environment: Iterable[str] = (),
    undefined: Mapping[str, str] | None = None,
    wrong: Sequence[str] = (),
    run: object = None,
    others: Collection[str] = (),
    role_options: Callable[[], Collection[str]] = tuple,
) -> None:
    """Raise :class:`UsageError` that names every variable that ``play`` would take no notice of, or could not use.

    ``extra`` are the names of the extra variables (``-e``); ``lost`` the words that belong to none, with the one that
    they follow; ``configured`` the names of all other variables, such as those of group_vars; ``environment`` those of
    the environment. ``undefined`` says by option why its value cannot be worked out, ``wrong`` has the sentences
    about values of the wrong type, ``run`` is that option's value.
    ``others`` are names that the user needs for something else, ``role_options`` returns those of our roles.
    """
    mistakes = [_lost(option, words) for option, words in lost]
    mistakes += [f"{option} cannot be worked out: {reason}" for option, reason in (undefined or {}).items()]
    mistakes += wrong
    unknown = [name for name in extra if name not in others and not name.startswith(_FREE) and name not in OPTIONS]
    if unknown:
        unknown = [name for name in unknown if name not in role_options()]
    cut = "; overrides are apart by commas: -e overrides=a=1,b=2" if "overrides" in extra else ""
    mistakes += [_unknown(name, play, cut) for name in unknown]
    mistakes += [
        f"-e {name}=… is an option of {_plays(name)}, not of {play}.yml."
        for name in extra
        if name in OPTIONS and play not in OPTIONS[name] and name not in others
    ]
    given = {*extra, *others}
    for name in configured:
        if name in OPTIONS or name in given or name.startswith(_FREE) or not (near := _near(name, _NEAR)):
            continue
        if name not in role_options():
            mistakes.append(f"{name}, in group_vars or the like, is no option; did you mean {near}?")
    for name in environment:
        if name.startswith(_PREFIX) and name not in ENVIRONMENT and name not in others:
            # Their beginning, which all have in common, would make each look like each.
            known = [one.removeprefix(_PREFIX) for one in ENVIRONMENT]
            guess = difflib.get_close_matches(name.removeprefix(_PREFIX), known, n=1)
            hint = f"did you mean {_PREFIX}{guess[0]}?" if guess else f"known are: {', '.join(ENVIRONMENT)}."
            mistakes.append(f"{name}, in the environment, is no variable of gpuyard; {hint}")
    for name in _names(play, run):
        try:
            check_form(name)
        except UsageError as error:
            mistakes.append(str(error))
    if not mistakes:
        return
    text = listed(mistakes)
    if unknown:
        text += f"\nThe options of {play}.yml are: {', '.join(taken_by(play))}."
    if any(" is no " in mistake for mistake in mistakes):
        text += "\nWhat your own plays need passes when it is named: gpuyard_other_variables: [NAME, …]."
    raise UsageError(f"{text}\nNothing was asked, rented or ended.")


def _names(play: str, run: object) -> list[str]:
    """Return the names of runs that the option ``run`` holds: one, or for a supervisor several with commas between."""
    if run in (None, ""):
        return []
    return [name.strip() for name in str(run).split(",") if name.strip()] if play == "supervise" else [str(run)]


def _unknown(name: str, play: str, otherwise: str) -> str:
    near = difflib.get_close_matches(name, taken_by(play), n=1) or difflib.get_close_matches(name, OPTIONS, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"{otherwise}."
    return f"-e {name}=… is no option of {play}.yml{hint}"


def _near(name: str, cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name, OPTIONS, n=1, cutoff=cutoff)), "")


def _plays(name: str) -> str:
    return " and ".join(f"{play}.yml" for play in OPTIONS[name])


def _lost(option: str, words: str) -> str:
    """Return what is wrong with ``-e gpu_name=RTX 4090``, and how to write it."""
    if not option:
        return f"-e '{words}' sets nothing: write -e name=value."
    name, _, value = option.partition("=")
    whole = f"{value} {words}"
    ways = f'-e \'{{"{name}": "{whole}"}}\''
    if name == "gpu_name":
        ways = f"-e gpu_name={whole.replace(' ', '_')} or {ways}"
    return f"-e '{name}={whole}': Ansible cuts it at the space and would take {name}={value}; write {ways}."
