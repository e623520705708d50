# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs gpuyard.cloud.run_follow where its progress can be seen."""

from __future__ import annotations

from ansible_collections.gpuyard.cloud.plugins.modules import run_follow
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._verb_action import VerbAction


class ActionModule(VerbAction):
    """The action of gpuyard.cloud.run_follow."""

    module = run_follow
