"""The driver ``molecule-gpuyard``: each platform is a box of an emulated cloud, with an SSH server of its own.

``playbooks/create.yml`` starts a sandbox in the scenario's own folder and rents the platforms there;
``playbooks/destroy.yml`` ends the sandbox with all of them.
"""

from __future__ import annotations

from pathlib import Path

from molecule.driver.delegated import Delegated
from molecule.exceptions import MoleculeError


class Gpuyard(Delegated):
    """What the default driver does with a list of addresses, with playbooks of its own that make the list."""

    title = "Boxes of emulated GPU clouds: Vast.ai, Vultr, Lambda, RunPod."

    def __init__(self, config: object = None) -> None:
        super().__init__(config)  # type: ignore[arg-type]  # molecule also asks for drivers without a configuration
        self._name = "molecule-gpuyard"  # molecule takes no name of another form

    def schema_file(self) -> str:
        """Return the path of the schema of what this driver reads in a ``molecule.yml``."""
        return str(Path(__file__).with_name("molecule_driver.json"))

    def sanity_checks(self) -> None:
        """Say what this machine lacks for a sandbox, before anything is started."""
        # Imported here: molecule loads every driver in each of its commands.
        from gpuyard.testing import kit

        if lacking := kit.missing():
            raise MoleculeError(f"The driver molecule-gpuyard has no sandbox: {lacking}")
