"""STAND-IN for nanoGPT's configurator: a file of values, then --key=value, and nothing that is not known."""

import ast
import pathlib
import sys


def configured(values):
    """Return ``values`` with what the command line says."""
    for word in sys.argv[1:]:
        if not word.startswith("--"):
            exec(pathlib.Path(word).read_text(), {}, values)
            continue
        key, _, text = word[2:].partition("=")
        if key not in values:
            raise ValueError(f"Unknown config key: {key}")
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        assert type(value) is type(values[key]), (key, value)
        values[key] = value
    return values
