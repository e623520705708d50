# Copyright: gpuyard contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The options that say where the checkpoints are."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  bucket:
    description:
      - Where checkpoints are kept, V(s3://name/prefix) or V(file:///folder). Empty for nowhere but the machine.
      - By default, the environment says it (E(CLOUD_BUCKET)), and in the sandbox it is the sandbox's own bucket.
      - Its keys come from the environment (E(AWS_ACCESS_KEY_ID), E(AWS_SECRET_ACCESS_KEY)).
    type: str
  bucket_endpoint:
    description: The address of the S3 service, when it is not Amazon's.
    type: str
"""
