"""Where a verb works: the clouds, the bucket and the SSH key that the options name.

The one place that turns those options into connections, and the only one that starts a sandbox.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpuyard import config, paths
from gpuyard.box.checkpoints import Store
from gpuyard.config import BucketSettings, SshKey
from gpuyard.providers.base import Progress, Provider
from gpuyard.renting import runs
from gpuyard.sandbox import info as sandbox_info

if TYPE_CHECKING:
    from gpuyard.planning.request import Connections

SURVEY_S = 30.0
"""How long the clouds have to say what is rented, for a verb that shows what it can and names the rest (seconds)."""


@dataclass(frozen=True, slots=True)
class Site:
    """The options that say where. The default of each, ``None``, is what the environment says.

    ``provider``: the one cloud to ask, by default every cloud that has a key. ``sandbox``: whether the emulated clouds
    are meant, with ``sandbox_state`` the folder of one of them. ``bucket``: ``s3://name/prefix``, ``file:///folder`` or
    ``""`` for none, at the S3 service ``bucket_endpoint``. ``ssh_key``: the path of the private key, by default that of
    gpuyard's own one.
    """

    provider: str | None = None
    sandbox: bool | None = None
    sandbox_state: str | None = None
    bucket: str | None = None
    bucket_endpoint: str | None = None
    ssh_key: str | None = None

    def start_sandbox(self, progress: Progress | None = None) -> None:
        """Start the sandbox where one is meant and does not run. Only what rents does this."""
        config.check_provider(self.provider)
        world = config.World.of(self.sandbox, self.sandbox_state)
        if not world.sandbox or sandbox_info.read(world.sandbox_state) is not None:
            return
        # Imported here: the sandbox brings a web server, which no real run needs.
        from gpuyard.sandbox import client

        paths.check_state_folder(world.sandbox_state)
        client.ensure_up(world.sandbox_state, progress=progress or (lambda _: None))

    def in_sandbox(self) -> bool:
        """Return whether the emulated clouds are meant."""
        return config.World.of(self.sandbox, self.sandbox_state).sandbox

    def clouds(self) -> list[Provider]:
        """Return the clouds to ask. Nothing is sent yet.

        Raises :class:`gpuyard.errors.UsageError` for an unknown provider, a missing key, and a sandbox that does not
        run.
        """
        return config.connect(self.provider, sandbox=self.sandbox, sandbox_state=self.sandbox_state)

    def every_cloud(self) -> list[Provider]:
        """Return all clouds that have a key, whichever one ``provider`` names."""
        return config.connect(sandbox=self.sandbox, sandbox_state=self.sandbox_state, require=False)

    def bucket_settings(self) -> BucketSettings:
        """Return where the checkpoints are; raises :class:`gpuyard.errors.UsageError` for an address that cannot be."""
        return config.s3_settings(
            self.bucket,
            bucket_endpoint=self.bucket_endpoint,
            sandbox=self.sandbox,
            sandbox_state=self.sandbox_state,
        )

    def store(self) -> Store | None:
        """Return the bucket, ``None`` where there is none. Nothing is sent yet."""
        return runs.open_bucket(self.bucket_settings())

    def shared_store(self) -> Store | None:
        """Return the bucket as the place of notes for other commands, ``None`` where they could not see them."""
        return runs.shared_bucket(self.bucket_settings())

    def key(self) -> SshKey:
        """Return the SSH key with which boxes are reached. gpuyard's own one is made when it is not there."""
        return config.ssh_key(self.ssh_key)

    def connections(self, *, start_sandbox: bool = False, progress: Progress | None = None) -> Connections:
        """Return all that planning needs, after starting the sandbox if that is wanted and has to be done."""
        # Imported here: an inventory, say, plans nothing.
        from gpuyard.planning.request import Connections

        key = self.key()
        if start_sandbox:
            self.start_sandbox(progress)
        clouds = self.clouds()
        return Connections(
            clouds=clouds,
            everywhere=clouds if self.provider is None else self.every_cloud(),
            bucket=self.bucket_settings(),
            key=key,
            mirrors=config.mirrors(sandbox=self.sandbox, sandbox_state=self.sandbox_state),
        )
