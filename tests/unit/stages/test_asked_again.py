"""A checkpoint that is asked for while another one is being published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_box import Box, mark

from gpuyard.box.checkpoints import Published, publish_or_warn
from gpuyard.box.stages import runner


def test_a_checkpoint_that_somebody_asked_for_meanwhile_follows_at_once(
    box: Box, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box.describe([mark("search")], bucket=(tmp_path / "bucket").as_uri())
    asked = box.root / ".gpuyard/tmp/publish-again"

    def publish_while_asked(*arguments: Any, **options: Any) -> Published | None:
        published = publish_or_warn(*arguments, **options)
        if published is not None and published.sequence == 1:
            (box.root / "models/policy.npz").parent.mkdir(exist_ok=True)
            (box.root / "models/policy.npz").write_text("newer")
            asked.touch()
        return published

    monkeypatch.setattr(runner, "publish_or_warn", publish_while_asked)
    box.root.mkdir(exist_ok=True)
    (box.root / "first").write_text("first")
    published = runner.publish_checkpoint(box.spec, warn=print, patient=True)
    assert published is not None and published.sequence == 2 and not asked.exists()
    lines = [json.loads(line) for line in (box.root / ".gpuyard/journal.jsonl").read_text().splitlines()]
    assert [line["sequence"] for line in lines if line["event"] == "published"] == [1, 2]
