# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The controller's half of the module ``snapshot_bundle``: it talks to the bucket, whose keys no machine gets."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.gpuyard.cloud.plugins.plugin_utils._controller import require_core, show_line
from ansible_collections.gpuyard.cloud.plugins.plugin_utils._watching import watching

with suppress(ImportError):  # told when the task runs
    from gpuyard import bundles, config, fingerprint
    from gpuyard.errors import GpuyardError

_OURS = ("step", "bundled", "offers", "addresses")
_SITE = ("lacking", "bucket", "bucket_endpoint", "sandbox", "sandbox_state")


class ActionModule(ActionBase):
    """Find the bundle and let the machine fetch it, or let the machine pack one and send it."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the module, once or twice."""
        super().run(tmp, task_vars)
        require_core(AnsibleActionFail)
        arguments = {name: value for name, value in self._task.args.items() if name not in (*_OURS, *_SITE)}
        with watching(self, task_vars):
            if arguments.get("state", "present") == "restored":
                return self._restore(arguments, task_vars)
            try:
                return self._keep(arguments, task_vars)
            except GpuyardError as error:
                raise AnsibleActionFail(str(error)) from None

    def _restore(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Bring the machine to what a bundle holds. Whatever is wrong with that, the machine can be built."""
        nothing: dict[str, Any] = {"changed": False, "actions": [], "restored": False, "seconds": 0.0}
        try:
            shelf = self._shelf()
            parts = arguments.get("parts") or {}
            found = shelf.find(parts)
            whole = bool(found)
            if not whole:
                found = shelf.near(parts, arguments.get("workload") or "", self._task.args.get("lacking") or [])
            addresses = {digest: address for bundle in found for digest, address in shelf.addresses(bundle).items()}
        except GpuyardError as error:
            return {**nothing, "reason": str(error)}
        if not found:
            return {**nothing, "reason": "the bucket has no bundle of this state"}
        offers = [bundle.to_dict() for bundle in found]
        result = self._module({**arguments, "offers": offers, "addresses": addresses}, task_vars)
        if result.get("restored"):
            brought = ", ".join(fingerprint.WORDS[name] for name in result["manifest"]["held"])
            rest = "" if whole else f". It is of another state: {brought} fit, the rest is done after it"
            self._show(f"Restored from the bundle {found[0].key[:12]} in {result['seconds']:.0f} s{rest}.")
        elif reason := result.get("reason"):
            self._show(f"The bundle {found[0].key[:12]} is not used: {reason}. The machine is built.")
        return result

    def _keep(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Let the machine pack, then send what the bucket lacks."""
        shelf = self._shelf()
        there = [f"{bundle.key}/{bundle.platform}" for bundle in shelf.all()]
        asked = {"step": "packed", "bundled": list(bundles.PARTS), "there": there}
        packed = self._module({**arguments, **asked}, task_vars)
        if packed.get("failed") or "manifest" not in packed:
            if not packed.get("failed") and not packed.get("changed"):
                self._show("The bucket has a bundle of this state already.")
            return packed
        bundle, addresses = shelf.to_send(packed["manifest"])
        count = len(addresses)
        self._show(
            f"Packed {bundle.unpacked_bytes / 1e6:.0f} MB into {bundle.size / 1e6:.0f} MB; {count} pieces to send."
        )
        sent = self._module({**arguments, "step": "sent", "addresses": addresses}, task_vars)
        if sent.get("failed"):
            return sent
        shelf.finish(bundle)
        seconds = packed["seconds"] + sent["seconds"]
        price = float(arguments.get("price_per_gb_month") or 0.0)
        cost = f", ${bundle.size / 1e9 * price:.2f} a month at ${price:g} a GB" if price else ""
        self._show(
            f"Bundle {bundle.key[:12]}: {bundle.size / 1e6:.0f} MB in the bucket{cost}; made in {seconds:.0f} s."
        )
        return {
            **packed,
            "actions": [*packed["actions"], f"send {count} pieces"],
            "key": bundle.key,
            "bytes": bundle.size,
            "seconds": seconds,
            "manifest": {name: value for name, value in bundle.to_dict().items() if name != "pieces"},
        }

    def _shelf(self) -> bundles.Shelf:
        """Return the bundles of the bucket that the task names."""
        given = {name: self._task.args.get(name) for name in _SITE}
        sandbox = given["sandbox"]
        return bundles.shelf(
            config.s3_settings(
                given["bucket"],
                bucket_endpoint=given["bucket_endpoint"] or None,
                sandbox=None if sandbox in (None, "") else boolean(sandbox),
                sandbox_state=given["sandbox_state"] or None,
            )
        )

    def _show(self, line: str) -> None:
        if not self._task.no_log:
            show_line(line)

    def _module(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        """Run the module of the same name on the machine."""
        result: dict[str, Any] = self._execute_module(
            module_name="gpuyard.cloud.snapshot_bundle", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        return result
