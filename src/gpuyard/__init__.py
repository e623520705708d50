"""gpuyard: rent GPUs, bring them into shape, train on them, and know what bills.

The package is the typed core under the Ansible collection ``gpuyard.cloud``. It can be imported without Ansible.
"""

from __future__ import annotations

__version__ = "0.1.0"
