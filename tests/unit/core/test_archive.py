"""An archive of a source tree brings back what was packed, and nothing that lies elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gpuyard import archive, tree
from gpuyard.errors import CheckpointError


def packed(tmp_path: Path, *entries: tuple[str, str, str]) -> Path:
    """Return an archive of entries (kind, name, content or target), as somebody else may have made it."""
    file = tmp_path / "made.tar.gz"
    with tarfile.open(file, "w:gz") as made:
        for kind, name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type = {"file": tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}.get(
                kind, tarfile.FIFOTYPE
            )
            if kind == "file":
                entry.size = len(content)
            else:
                entry.linkname = content
            made.addfile(entry, io.BytesIO(content.encode()))
    return file


def test_what_was_packed_comes_back(tmp_path: Path) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    (root / "lib").mkdir(parents=True)
    out.mkdir()
    (root / "lib" / "a.py").write_text("a")
    (root / "run").write_text("r")
    (root / "run").chmod(0o700)
    (root / "away").symlink_to("/mnt/persistent")
    names = tree.names(root)
    for file in ("one", "two"):
        archive.pack(root, names, tmp_path / file)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert archive.unpack(tmp_path / "one", out, most_bytes=100) == names
    assert tree.described(out, names) == tree.describe(root)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([("file", "../out", "x")], "leads out of its folder"),
        ([("file", "/etc/out", "x")], "leads out of its folder"),
        ([("link", "inside", "{away}"), ("file", "inside/out", "x")], "is a link, and nothing is written through it"),
        ([("hard", "out", "/etc/passwd")], "'out' is neither a file nor a link"),
        ([("pipe", "out", "")], "'out' is neither a file nor a link"),
        ([("file", "a", "x" * 60), ("file", "b", "x" * 60)], "it holds more than 1e-07 GB"),
    ],
)
def test_nothing_is_written_elsewhere(tmp_path: Path, entries: list[tuple[str, str, str]], said: str) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "inner" / "out").mkdir(parents=True)
    made = packed(tmp_path, *[(kind, name, text.format(away=tmp_path / "away")) for kind, name, text in entries])
    with pytest.raises(CheckpointError) as caught:
        archive.unpack(made, tmp_path / "inner" / "out", most_bytes=100)
    assert said in str(caught.value)
    assert [*(tmp_path / "away").iterdir()] == [] and [*(tmp_path / "inner").iterdir()] == [tmp_path / "inner" / "out"]
