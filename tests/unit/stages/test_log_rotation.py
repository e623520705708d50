from __future__ import annotations

from stage_box import Box


def test_a_long_log_is_put_aside_between_attempts_and_no_line_is_lost(box: Box) -> None:
    command = 'echo x >> marks; seq -f "$(wc -l < marks)-%g" 2000; test $(wc -l < marks) -ge 3'
    box.describe([{"name": "talk", "command": command, "retries": 2}], logs={"rotate_mb": 0.005})
    assert box.run() == 0
    logs = box.root / ".gpuyard/logs"
    assert sorted(file.name for file in logs.iterdir()) == ["0-talk.log", "0-talk.log.1", "0-talk.log.2"]
    for file, attempt in (("0-talk.log.1", 1), ("0-talk.log.2", 2), ("0-talk.log", 3)):
        lines = (logs / file).read_text().splitlines()
        assert [line for line in lines if not line.startswith("## ")] == [f"{attempt}-{n}" for n in range(1, 2001)]
    # What is asked for is the newest one.
    assert "3-2000" in box.call("log", "--lines", "3").stdout


def test_a_log_is_kept_whole_where_nobody_wants_it_rotated(box: Box) -> None:
    box.describe([{"name": "talk", "command": "seq 2000; false", "retries": 1}], logs={"rotate_mb": 0})
    assert box.run() == 1
    assert [file.name for file in (box.root / ".gpuyard/logs").iterdir()] == ["0-talk.log"]
