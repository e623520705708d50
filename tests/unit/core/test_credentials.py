"""Credentials: found in the environment or a file, sign requests, and are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests

from gpuyard import config
from gpuyard.errors import UsageError
from gpuyard.providers.credentials import BearerKey, RunPodKey, VastKey

KEY = "canary-credential-3b5e7a90c1d24f68a7b1"


@pytest.mark.parametrize("name", list(config.CLOUDS))
def test_every_clouds_credential_says_where_it_is_and_shows_nothing(name: str) -> None:
    kind = config.CLOUDS[name].credential
    found = kind.find({kind.variable: f" {KEY}\n", "HOME": "/nowhere"})
    assert found is not None and found.value == KEY and type(found) is kind
    assert KEY not in repr(found) and KEY not in str(found) and kind.file


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod/config.toml").write_text('[default]\napi_key = "from-the-file"\n')
    assert RunPodKey.find({}) == RunPodKey("from-the-file")
    assert RunPodKey.find({"RUNPOD_API_KEY": KEY}) == RunPodKey(KEY)
    assert VastKey.find({}) is None


def test_a_key_signs_and_cleans_what_it_signs() -> None:
    signature = VastKey(KEY).signature("Vast.ai")
    request = requests.Request("GET", "http://127.0.0.1:9/", auth=signature).prepare()
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(signature) and signature.clean(f"no such key {KEY}") == "no such key ***"


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "schlüssel"])
def test_what_no_key_can_be_is_a_sentence_that_does_not_show_it(value: str) -> None:
    with pytest.raises(UsageError, match=r"The Vast\.ai API key holds a space") as caught:
        BearerKey(value).signature("Vast.ai")
    assert value not in str(caught.value)
