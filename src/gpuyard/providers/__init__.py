"""The clouds: one interface (:mod:`~gpuyard.providers.base`), one file each, and HTTP in one place."""
