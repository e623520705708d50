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
  - With O(state=present), makes the image of the container, and with O(push) sends it to its registry.
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
    description: Whether to begin an image, to finish it, or to give it up.
    type: str
    choices: [begun, present, absent]
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
    description: With O(state=present), the image's name with its tag, as RV(image) was with O(state=begun).
    type: str
  container:
    description: With O(state=present) and O(state=absent), the container.
    type: str
  push:
    description: With O(state=present), whether to send it to the registry that its name says.
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
plan:
  description: What the container is to be brought to.
  returned: with O(state=begun)
  type: dict
"""

from typing import Any

from ansible_collections.gpuyard.cloud.plugins.module_utils._verb import PROVIDER_OPTIONS, Call, run_module

ARGUMENT_SPEC: dict[str, Any] = PROVIDER_OPTIONS | {
    "state": {"type": "str", "choices": ["begun", "present", "absent"], "default": "begun"},
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
        ("state", "absent", ("container",)),
    ]
}


def run(call: Call) -> dict[str, Any]:
    """Begin an image, finish it, or give it up."""
    from gpuyard.api import image

    given = call.params
    if given["state"] == "begun":
        return image.prepare(
            call.site(),
            given["workload"],
            profiles=given["profiles"],
            options=given["run_options"],
            check=call.check_mode,
            progress=call.progress,
        ).to_dict()
    if not call.check_mode:
        if given["state"] == "absent":
            image.give_up(given["container"])
        else:
            image.finish(given["image"], given["container"], push=given["push"], progress=call.progress)
    text = f"Made {given['image']}; say `image: {given['image']}` in the workload, and machines boot from it."
    return {"changed": True, "image": given["image"], "text": text if given["state"] == "present" else ""}


def main() -> None:
    """Run as a module."""
    run_module(run, ARGUMENT_SPEC, **CONDITIONS)


if __name__ == "__main__":
    main()
