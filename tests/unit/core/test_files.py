"""Files are replaced in one step, whoever else writes them at the same moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpuyard.files import write_whole


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    texts = [str(number) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        for _ in range(20):
            list(pool.map(lambda text: write_whole(file, text), texts))
            assert file.read_text() in texts
    assert [path.name for path in tmp_path.glob("*state*")] == ["state.json"]


def test_a_new_file_is_its_owners_only_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_whole(file, "old")
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    with pytest.raises(OSError):
        write_whole(tmp_path / "no-folder" / "key", "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.glob("*key*")] == ["key"]
