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
      - Where checkpoints are kept, V(s3://name/prefix), V(gs://name/prefix) (Google), V(az://container/prefix)
        (Azure) or V(file:///folder). Empty for nowhere but the machine.
      - By default, the environment says it (E(CLOUD_BUCKET)), and in the sandbox it is the sandbox's own bucket.
      - What opens it comes from the environment. For S3 that is E(AWS_ACCESS_KEY_ID) and E(AWS_SECRET_ACCESS_KEY), or a
        profile or role; for Google E(GOOGLE_APPLICATION_CREDENTIALS); for Azure E(AZURE_STORAGE_SAS_TOKEN),
        E(AZURE_STORAGE_KEY) or E(AZURE_STORAGE_CONNECTION_STRING).
    type: str
  bucket_endpoint:
    description: The address of the S3 service, when it is not Amazon's, or of the account at Azure.
    type: str
"""
