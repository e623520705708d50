# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a play of ours was given, and what is said of a variable that it would take no notice of.

Private to this collection.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import split_args
from ansible.template import Templar
from ansible.utils.vars import load_extra_vars

COLLECTION = Path(__file__).parents[2]
# Each verb reads the options of its play, and the parser in C does that ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TYPES: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "bool": (boolean, "true or false"),
}


def lost_words(given: Sequence[str]) -> list[tuple[str, str]]:
    """Return the words of ``-e`` that belong to no variable, each with the ``name=value`` that it follows.

    Ansible splits what it is given at spaces, so of ``-e gpu_name=RTX 4090`` it takes ``gpu_name=RTX``.
    """
    found: list[tuple[str, str]] = []
    for text in given:
        if text.startswith(("@", "{", "[")):
            continue
        option, words = "", []
        for word in [*split_args(text), "="]:
            if "=" not in word:
                words.append(word)
                continue
            if words:
                found.append((option, " ".join(words)))
            option, words = word, []
    return found


def role_options() -> set[str]:
    """Return the documented options of this collection's roles, which extra variables can say as well."""
    found: set[str] = set()
    for file in COLLECTION.glob("roles/*/meta/argument_specs.yml"):
        found.update(yaml.load(file.read_bytes(), _LOADER)["argument_specs"]["main"]["options"])
    return found


def play_options(play: str) -> dict[str, dict[str, Any]]:
    """Return the specification of the options of ``play``, by its name."""
    specs = yaml.load((COLLECTION / "playbooks/plays.meta.yaml").read_bytes(), _LOADER)["argument_specs"]
    found: dict[str, dict[str, Any]] = specs[play]["options"]
    return found


def wrong_values(spec: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each of ``values`` that does not fit ``spec``. An empty value stands for none.

    Ansible's own sentences name its internal types, and it says only the first of them.
    """
    found = []
    for name, option in spec.items():
        value = values.get(name)
        if value in (None, ""):
            continue
        convert, words = _TYPES.get(option["type"], (str, ""))
        choices = option.get("choices")
        try:
            convert(str(value))
        except (TypeError, ValueError):
            found.append(f"{name}={str(value)!r} must be {words}.")
        else:
            if choices and str(value) not in choices:
                found.append(f"{name}={str(value)!r} must be one of: {', '.join(choices)}.")
    return found


def given_to(play: str, variables: Mapping[str, Any], templar: Templar, loader: DataLoader) -> dict[str, Any]:
    """Return the options that ``play``, by its name, was given.

    Raises :class:`gpuyard.errors.UsageError` for what the play takes no notice of or cannot use.
    """
    from gpuyard import options

    values: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    spec = play_options(play)
    for name in (*spec, "gpuyard_other_variables"):
        try:
            # A play's default() would stand in for a value that is there but refers to something that is not.
            values[name] = templar.template(variables.get(name))
        except AnsibleError as error:
            undefined[name] = str(error.message).rstrip(".") + "."
    others = values.get("gpuyard_other_variables") or []
    extra = load_extra_vars(loader)
    options.check(
        play,
        extra=[name for name in extra if name != "_raw_params"],
        lost=lost_words(context.CLIARGS.get("extra_vars") or ()),
        configured=[name for name in variables if name not in extra],
        environment=os.environ,
        undefined=undefined,
        wrong=wrong_values(spec, values),
        run=values.get("run"),
        others=others if isinstance(others, list) else str(others).replace(",", " ").split(),
        role_options=role_options,
    )
    return {name: values[name] for name in spec if name in variables}
