"""STAND-IN for the package."""
