"""The sandbox: the emulated clouds on this machine, with real containers for instances."""
