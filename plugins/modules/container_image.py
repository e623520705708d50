#!/usr/bin/python
# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A container image of a workload."""

from __future__ import annotations

DOCUMENTATION = r"""
module: container_image
short_description: Make a container image of a workload
version_added: 0.1.0
author:
  - gpuyard contributors (@gpuyard)
description:
  - With O(state=begun), starts a container of the base that the workload names, unless the image is there already. A
    play brings it into shape with the roles for machines, over the connection P(gpuyard.cloud.container#connection).
  - With O(state=present), makes the image of the container. With O(state=pushed), sends it to its registry.
  - The login for the registry comes from the auth file that E(GPUYARD_REGISTRY_AUTH) names, such as
    C(podman login --authfile) writes, else from the container engine itself.
  - The image's tag is the fingerprint of the state that it holds, so the same state is not made twice.
extends_documentation_fragment:
  - gpuyard.cloud.provider
  - gpuyard.cloud.provider.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description: Whether to begin an image, to finish it, to send it to its registry, or to give it up.
    type: str
    choices: [begun, present, pushed, absent]
    default: begun
  workload:
    description: With O(state=begun), the workload, a name in C(workloads/) or the path of a workload file.
    type: str
  profiles:
    description: With O(state=begun), the profiles of the workload to use.
    type: list
    elements: str
    default: []
  run_options:
    description: With O(state=begun), further words for C(podman run) or C(docker run).
    type: list
    elements: str
    default: []
  image:
    description:
      - With O(state=present) and O(state=pushed), the image's name with its tag, as RV(image) was with O(state=begun).
    type: str
  container:
    description: With O(state=present) and O(state=absent), the container.
    type: str
  push:
    description: With O(state=begun), whether it will be sent to its registry, which is then asked before all work.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Begin the image of a workload
  gpuyard.cloud.container_image:
    workload: miniprover
  register: begun

- name: Finish it, once the container is in shape
  gpuyard.cloud.container_image:
    state: present
    image: "{{ begun.image }}"
    container: "{{ begun.container }}"

- name: Send it to its registry
  gpuyard.cloud.container_image:
    state: pushed
    image: "{{ begun.image }}"
"""

RETURN = r"""
image:
  description: The image's name with its tag, for C(image) of a workload.
  returned: success
  type: str
  sample: localhost/prover:0d7c1f3a9be24c55
container:
  description: The container that is to be brought into shape.
  returned: with O(state=begun)
  type: str
there:
  description: Whether the image is there already, so that nothing was started.
  returned: with O(state=begun)
  type: bool
reference:
  description: The image's name with its digest, for C(image) of a workload.
  returned: with O(state=pushed)
  type: str
  sample: ghcr.io/me/prover@sha256:0d7c1f3a9be24c550d7c1f3a9be24c550d7c1f3a9be24c550d7c1f3a9be24c55
plan:
  description: What the container is to be brought to.
  returned: with O(state=begun)
  type: dict
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "state": {"type": "str", "choices": ["begun", "present", "pushed", "absent"], "default": "begun"},
    "workload": {"type": "str"},
    "profiles": {"type": "list", "elements": "str", "default": []},
    "run_options": {"type": "list", "elements": "str", "default": []},
    "image": {"type": "str"},
    "container": {"type": "str"},
    "push": {"type": "bool", "default": False},
}
CONDITIONS: dict[str, Any] = {
    "required_if": [
        ("state", "begun", ("workload",)),
        ("state", "present", ("image", "container")),
        ("state", "pushed", ("image",)),
        ("state", "absent", ("container",)),
    ]
}


def run(call: Call) -> dict[str, Any]:
    """Begin an image, finish it, send it, or give it up."""
    from gpuyard.api import image

    given, check = call.params, call.check_mode
    state, name, container = given["state"], given["image"], given["container"]
    if state == "begun":
        return image.prepare(
            call.site(),
            given["workload"],
            profiles=given["profiles"],
            options=given["run_options"],
            push=given["push"],
            check=check,
            progress=call.progress,
        ).to_dict()
    if state == "pushed":
        if check:
            return {"changed": True, "image": name, "reference": "", "text": f"Would push {name}."}
        pushed = image.send(name, progress=call.progress)
        done = f"Pushed {name}" if pushed.changed else f"The registry has {name} already"
        text = f"{done}; say `image: {pushed.reference}` in the workload, and machines boot from it."
        return {"changed": pushed.changed, "image": name, "reference": pushed.reference, "text": text}
    if state == "absent":
        if not check:
            image.give_up(container)
        return {"changed": True, "image": name, "text": ""}
    if not check:
        image.finish(name, container)
    text = f"Made {name}; say `image: {name}` in the workload, and machines boot from it."
    return {"changed": True, "image": name, "text": text}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
