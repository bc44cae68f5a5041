"""The next runtime: found, run, asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from grit_runtime import chain
from grit_runtime.argv import parse
from grit_runtime.checks import Refusal
from grit_runtime.settings import Runtime, Settings


def program(path: Path, body: str) -> str:
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o755)
    return str(path)


def wanted(name: str) -> Settings:
    return Settings(runtime=Runtime(next=name))


def test_found_by_path_or_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/next").write_text("not executable")
    path = program(tmp_path / "next", "")
    monkeypatch.setenv("PATH", f"{tmp_path}/a:.:{tmp_path}")
    assert chain.next_runtime(wanted(path)) == chain.next_runtime(wanted("next")) == path


def test_missing_or_ourselves(tmp_path: Path) -> None:
    ours = program(tmp_path / "grit-runtime", "")
    (tmp_path / "link").symlink_to(ours)
    reasons = {str(tmp_path / "none"): "next-runtime-missing", "no-such-program": "next-runtime-missing",
               str(tmp_path): "next-runtime-missing", str(tmp_path / "link"): "next-runtime-is-us"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(Refusal) as caught:
            chain.next_runtime(wanted(name))
        assert caught.value.reason == reason and name in caught.value.message


def test_state(tmp_path: Path) -> None:
    answer = '{"id":"x","pid":12,"status":"running","bundle":"/b","annotations":{"k":"v"}}'
    runtime = program(tmp_path / "next", f"[ \"$*\" = '--root /r state x' ] && echo '{answer}'")
    call = parse(["--root", "/r", "--log", "/never", "checkpoint", "--image-path", "i", "x"])
    assert chain.ask_state(runtime, call) == chain.State("x", 12, "running", "/b", {"k": "v"})


@pytest.mark.parametrize("body, reason", [
    ("echo 'container does not exist' >&2; exit 1", "container-unknown"), ("echo '{}'", "next-runtime-answer"),
    ("echo 'no json'", "next-runtime-answer"), ("echo '[]'", "next-runtime-answer"),
])  # fmt: skip
def test_state_of_nothing(tmp_path: Path, body: str, reason: str) -> None:
    with pytest.raises(Refusal) as caught:
        chain.ask_state(program(tmp_path / "next", body), parse(["checkpoint", "x"]))
    assert caught.value.reason == reason
    if reason == "container-unknown":
        assert "container does not exist" in caught.value.message


def test_flavour(tmp_path: Path) -> None:
    nvidia = 'echo "NVIDIA Container Runtime version 1.20.0\ncommit: x\nspec: 1.3.0\n\nrunc version 1.3.6+ds1"'
    assert chain.flavour(program(tmp_path / "a", nvidia)) == ("runc", (1, 3, 6))
    assert chain.flavour(program(tmp_path / "b", 'echo "crun version 1.28\ncommit: y"')) == ("crun", (1, 28))
    assert chain.flavour(program(tmp_path / "c", "echo youki")) == ("unknown", ())


def test_one_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ASK_TIMEOUT", 0.2)
    question = chain.Question(program(tmp_path / "next", f"echo $$ >{tmp_path}/pid; exec sleep 600"), ["--version"])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        pass
    with pytest.raises(Refusal, match="next-runtime-silent"):
        question.answer()
    assert not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}")


def test_not_a_program(tmp_path: Path) -> None:
    broken = tmp_path / "next"
    broken.write_bytes(b"\x7fELF no")
    broken.chmod(0o755)
    with pytest.raises(Refusal, match="next-runtime-broken"):
        chain.flavour(str(broken))


def test_execute_leaves_no_trace_of_python(tmp_path: Path) -> None:
    """The signals that Python ignores and the variable that it sets in the C locale do not reach the next runtime."""
    code = "import sys; from grit_runtime import chain; chain.execute(sys.argv[1], sys.argv[2:])"
    show = program(tmp_path / "next", 'echo "$# $1"; grep SigIgn /proc/$$/status; tr "\\0" "\\n" </proc/$$/environ')
    env = {"PYTHONPATH": ":".join(["shim", *filter(None, [os.environ.get("PYTHONPATH")])]), "odd.name": "1"}
    done = subprocess.run(["/usr/bin/python3", "-c", code, show, "a b"], env=env, capture_output=True, text=True,
                          timeout=60, check=True, cwd=Path(__file__).parents[2])  # fmt: skip
    direct = subprocess.run([show, "a b"], env=env, capture_output=True, text=True, timeout=60, check=True)
    first, ignored, *environment = done.stdout.splitlines()
    assert first == "1 a b"
    assert ignored == direct.stdout.splitlines()[1]  # whoever runs the tests may ignore some, which stay ignored
    assert environment == [f"{key}={value}" for key, value in env.items()]
