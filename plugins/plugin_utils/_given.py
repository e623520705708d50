# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a play of ours was given, and what is said of a variable that it would take no notice of.

Private to this collection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ansible import context
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.parsing.splitter import split_args
from ansible.template import Templar
from ansible.utils.vars import load_extra_vars


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
    for file in Path(__file__).parents[2].glob("roles/*/meta/argument_specs.yml"):
        found.update(yaml.safe_load(file.read_bytes())["argument_specs"]["main"]["options"])
    return found


def check_play(play: str, variables: Mapping[str, Any], templar: Templar, loader: DataLoader) -> None:
    """Raise :class:`gpuyard.errors.UsageError` for what ``play``, by its name, would take no notice of."""
    from gpuyard import options

    values: dict[str, Any] = {}
    undefined: dict[str, str] = {}
    for name in (*options.taken_by(play), "gpuyard_other_variables"):
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
        run=values.get("run"),
        others=others if isinstance(others, list) else str(others).replace(",", " ").split(),
        role_options=role_options,
    )
