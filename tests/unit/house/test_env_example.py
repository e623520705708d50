"""E11: the example of a `.env` names what is needed, and holds nothing secret."""

from __future__ import annotations

from pathlib import Path

from gpuyard import config, env_file
from gpuyard.providers.credentials import BearerKey

ROOT = Path(__file__).resolve().parents[3]


def test_e11_the_example_of_an_environment_file(tmp_path: Path) -> None:
    copy = tmp_path / ".env"
    copy.touch(0o600)
    copy.write_text((ROOT / ".env.example").read_text())
    names = env_file.read(copy)
    keys = [cloud.credential for cloud in config.CLOUDS.values() if issubclass(cloud.credential, BearerKey)]
    assert {key.variable for key in keys} <= names.keys()
    assert {name for name, value in names.items() if value} == {"CLOUD_PROVIDER"}, "no value is given away"
    assert ".env" in (ROOT / ".gitignore").read_text().split()
