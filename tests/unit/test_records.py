"""What is kept of operations: bounded in number and size, never through a link; the counters for the node exporter."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from grit_runtime import records


def settings(keep: int = 5, max_size: int = 16000, metrics: str = "") -> Any:
    return SimpleNamespace(logs=SimpleNamespace(keep=keep, max_size=max_size, metrics=metrics))


def test_keeps_the_newest_operations_and_the_end_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_bytes(b"x" * 5000 + b"the cause is here")
    folders = []
    for number in range(4):
        record = {"operation": "dump", "result": "ok", "number": number}
        folders.append(records.keep("c1", "checkpoint", record, [str(log)], settings(2, 4000), str(tmp_path / "s")))
    found = records.listing("c1", str(tmp_path / "s"))
    assert [kept.folder for kept in found] == folders[:1:-1]
    assert found[0].record()["number"] == 3 and found[0].operation == "dump"
    text = Path(found[0].logs()[0]).read_bytes()
    assert text.startswith(b"[4017 bytes left out here]\n") and text.endswith(b"the cause is here")
    assert len(text) < 1100
    assert stat.S_IMODE(os.stat(found[0].folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(found[0].logs()[0]).st_mode) == 0o600


def test_all_containers_together_are_bounded(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_bytes(b"x" * 1000)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "not ours").write_text("")
    for number in range(20):
        assert records.keep(f"c{number}", "restore", {"operation": "restore"}, [str(log)], settings(), str(tmp_path))
    left = records.listing(state=str(tmp_path))
    assert 10 < len(left) < 16
    assert left[0].container == "c19" and (tmp_path / "logs" / "not ours").exists()
    assert not (tmp_path / "logs" / "c0").exists()


def test_a_hostile_id_and_a_link_for_a_log_stay_inside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "dump.log").symlink_to(secret)
    os.mkfifo(tmp_path / "fifo")
    logs = [str(tmp_path / name) for name in ("dump.log", "fifo", "missing")]
    for name in ("../../escape", "..", "", "a/b", "x" * 5000):
        folder = records.keep(name, "dump", {"operation": "dump"}, logs, settings(), str(tmp_path / "s"))
        assert folder and Path(folder).parent.parent == tmp_path / "s" / "logs"
        assert os.listdir(folder) == ["record.json"]
        assert records.listing(name, str(tmp_path / "s"))
    # a link where our folder should be is not followed, and the operation doesn't hear of it
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "logs").symlink_to(tmp_path / "s")
    assert records.keep("c", "dump", {}, [], settings(), str(tmp_path / "t")) is None


def test_counts_survive_and_are_what_prometheus_reads(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    config = settings(metrics=str(tmp_path / "out"))
    done = {"operation": "dump", "result": "ok", "phases": {"criu": 1.5}, "bytes": {"images": 100}, "started": 5}
    bad = {"operation": "restore", "result": "refused", "reason": 'x"}\n', "started": 6}
    for record in (done, done, bad):
        records.metrics(config, record, str(tmp_path / "s"))
    lines = (tmp_path / "out" / "grit-runtime.prom").read_text().splitlines()
    assert 'grit_runtime_operations_total{operation="dump",result="ok",reason=""} 2.0' in lines
    assert 'grit_runtime_operations_total{operation="restore",result="refused",reason="other"} 1' in lines
    assert 'grit_runtime_phase_seconds_sum{operation="dump",phase="criu"} 3.0' in lines
    assert 'grit_runtime_phase_seconds_count{operation="dump",phase="criu"} 2.0' in lines
    assert 'grit_runtime_bytes_total{operation="dump",kind="images"} 200.0' in lines
    assert "# TYPE grit_runtime_phase_seconds summary" in lines
    assert os.listdir(tmp_path / "out") == ["grit-runtime.prom"]
    assert stat.S_IMODE(os.stat(tmp_path / "out" / "grit-runtime.prom").st_mode) == 0o644
    # a broken file of counters begins anew; a missing folder is nobody's failure
    (tmp_path / "s" / "metrics.json").write_text("{")
    records.metrics(config, done, str(tmp_path / "s"))
    assert json.loads((tmp_path / "s" / "metrics.json").read_text())["bytes_total"]
    records.metrics(settings(metrics=str(tmp_path / "missing")), done, str(tmp_path / "s"))
