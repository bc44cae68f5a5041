"""The entry, shim/grit-runtime: calls that aren't ours arrive at the next runtime as if it were not there."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from grit_runtime import __main__ as python
from grit_runtime import settings
from grit_runtime.checks import refuse

ENTRY = Path(__file__).parents[2] / "shim/grit-runtime"
NOTE = {"org.criu.config": "/usr/share/grit-runtime/criu.conf"}

# A next runtime that tells what it got. It opens nothing before it has looked at its descriptors.
SHOW = """#!/usr/bin/python3 -ISB
import os, sys
fds = {}
for fd in range(256):
    try:
        fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
def read(name):
    with open(f"/proc/self/{name}", "rb") as file:
        return file.read()
signals = [line for line in read("status").split(b"\\n") if line.startswith((b"SigIgn", b"SigBlk"))]
print([read("cmdline").split(b"\\0")[2:], read("environ").split(b"\\0"), os.getcwd(), os.getpid(), os.getppid()])
print([fds, signals])
sys.stderr.write("said on stderr\\n")
sys.exit(7)
"""


class World:
    """A next runtime, a configuration that names it, and the folder where the entry's note of it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.next = folder / "next runtime"
        self.config = folder / "config.toml"
        self.run = folder / "run"
        self.configure(self.next)
        self.program(SHOW)
        self.env = {"GRIT_RUNTIME_CONFIG": str(self.config), "GRIT_RUNTIME_RUN": str(self.run), "PATH": "/usr/bin:/bin"}

    def configure(self, path: Path) -> None:
        self.config.write_text(f"[runtime]\nnext = {json.dumps(str(path))}\n")
        python.tell_entry(self.config.read_text(), str(path))
        self.run.mkdir(exist_ok=True)
        (self.run / "next").write_bytes(os.fsencode(path) + b"\n" + self.config.read_bytes())

    def program(self, text: str) -> None:
        self.next.write_text(text)
        self.next.chmod(0o755)

    def call(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        env = {**self.env, **options.pop("env", {})}
        return subprocess.run([ENTRY, *words], env=env, capture_output=True, text=True, timeout=60, **options)

    def no_python(self) -> None:
        """Python refuses this configuration, so a call that gets through has not been there."""
        self.config.write_text("[misspelt]\n")
        (self.run / "next").write_bytes(os.fsencode(self.next) + b"\n[misspelt]\n")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("GRIT_RUNTIME_RUN", str(tmp_path / "run"))
    return World(tmp_path)


def spawn(
    program: Path, words: Sequence[bytes], env: Sequence[bytes], prepare: Callable[[], None]
) -> tuple[bytes, int]:
    """What `program` says on stdout, and how it ended; `env` may hold what no mapping can."""
    libc = ctypes.CDLL(None)
    argv = (ctypes.c_char_p * (len(words) + 2))(b"argv0", *words, None)
    envp = (ctypes.c_char_p * (len(env) + 1))(*env, None)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.close(reader)
        os.close(writer)
        prepare()
        libc.execve(os.fsencode(program), argv, envp)
        os._exit(99)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    said = re.sub(rb"pipe:\[\d+\]", b"PIPE", said.replace(str(pid).encode(), b"PID"))
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_everything_reaches_the_next_runtime(world: World) -> None:
    """Words, environment byte for byte, folder, descriptors, signals, exit code; and it is the same process."""
    env = [b"A=1", b"odd.name=2", b"BASH_FUNC_f%%=() {\n:; }", b"=x", b"no equals sign", b"", b"B=\xff\n\x01",
           b"EMPTY=", b"PERL5LIB=/nowhere", b"LC_ALL=C", b"_=/x",
           *(f"{key}={value}".encode() for key, value in world.env.items())]  # fmt: skip
    inherited = os.open("/etc/passwd", os.O_RDONLY)

    def prepare() -> None:
        os.chdir(world.folder)
        os.dup2(inherited, 200)
        os.closerange(3, 200)
        for number in range(1, 32):
            if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_IGN if number % 3 == 0 or number == signal.SIGPIPE else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2, 40})

    for words in ([b"state", b"x"], [], [b"--version"], [b"\xff \n", b"", b"--root"], [b"--log", b"checkpoint", b"ps"],
                  [b"features"], [b"unknown", b"-z"]):  # fmt: skip
        direct = spawn(world.next, words, env, prepare)
        through = spawn(ENTRY, words, env, prepare)
        assert direct[1] == 7 and b"/etc/passwd" in direct[0]
        assert through == direct


def test_python_is_not_started_for_what_is_not_ours(world: World) -> None:
    world.no_python()
    for call in ("state x", "start x", "kill x 9", "delete --force x", "exec x true", "ps x", "list", "spec", "--help",
                 "--log create features", "pause x", "create --help"):  # fmt: skip
        done = world.call(*call.split())
        assert (done.returncode, done.stderr) == (7, "said on stderr\n"), call
    for call in ("checkpoint x", "restore x", "--root=/a restore x"):
        assert "config-unknown-key" in world.call(*call.split()).stderr


@pytest.mark.parametrize("root", ["", "/run/containerd/runc/k8s.io"])
def test_a_held_container_is_work_and_no_other(world: World, root: str) -> None:
    world.no_python()
    (world.run / "held").mkdir()
    (world.run / "held" / f"{(root or '/run/runc').replace('/', '_')}@x").touch()
    options = ["--root", root] if root else []
    for command in ("start", "state", "kill", "delete", "pause", "resume"):
        assert "config-unknown-key" in world.call(*options, command, "--force", "x").stderr
        assert world.call(*options, command, "y").returncode == 7
        assert world.call("--root", "/other", command, "x").returncode == 7


def test_the_end_of_a_sandbox_with_marks_is_work(world: World) -> None:
    world.no_python()
    (world.run / "used" / "pod").mkdir(parents=True)
    assert "config-unknown-key" in world.call("--root", "/a", "delete", "pod").stderr
    for call in (["delete", "other"], ["state", "pod"], ["kill", "pod"], ["delete"]):
        assert world.call("--root", "/a", *call).returncode == 7


def test_the_note_of_the_next_runtime_is_kept_up(world: World) -> None:
    (world.run / "next").unlink()
    assert world.call("state", "x").returncode == 7
    noted = (world.run / "next").read_text()
    assert noted == f"{world.next}\n{world.config.read_text()}"
    other = world.folder / "other"
    other.write_text("#!/bin/sh\nexit 8\n")
    other.chmod(0o755)
    world.config.write_text(f"[runtime]\nnext = {json.dumps(str(other))}\n")  # edited by an admin
    assert [world.call("state", "x").returncode for _ in range(2)] == [8, 8]
    other.unlink()
    done = world.call("state", "x")
    assert done.returncode == 1 and "next-runtime-missing" in done.stderr


def test_the_notes_folder_is_made_for_root_alone(world: World) -> None:
    shutil.rmtree(world.run)
    world.call("state", "x")
    assert world.run.stat().st_mode & 0o777 == 0o700 and (world.run / "next").exists()


# The text of config.json: what the entry edits by itself, and what it leaves to Python.

ATTACK = json.dumps('"annotations":{"a":"b"},{"annotations":{ \\"annotations\\":{')
USUAL = {
    "containerd's": '{"ociVersion":"1.2.0","process":{"args":["sh","-c","a \\u0026\\u0026 b"]},'
    '"annotations":{"io.kubernetes.cri.container-name":"app"},"linux":{}}',
    "without annotations": '{"ociVersion":"1.2.0","linux":{}}',
    "with none in them": '{"annotations":{},"ociVersion":"1.2.0"}',
    "runc spec's": json.dumps({"ociVersion": "1.0.2", "mounts": [{"options": ["ro"]}]}, indent="\t"),
    "podman's, indented": json.dumps({"ociVersion": "1.0.2", "annotations": {"a": "b"}}, indent=2),
    "non-ASCII": '{"hostname":"größe","annotations":{"ä":"ö"}}',
    "an environment that plays JSON": f'{{"process":{{"env":[{ATTACK}]}},"annotations":{{"k":{ATTACK}}}}}',
    "the same without annotations": f'{{"process":{{"env":[{ATTACK}]}},"hostname":"a\\\\"}}',
}  # fmt: skip
UNUSUAL = {
    "ours": '{"annotations":{"grit.dev/checkpoint":"/x"}}',
    "CRIU's, set by a pod": '{"annotations":{"org.criu.config":"/evil"}}',
    "ours, escaped": '{"annotations":{"\\u0067rit.dev/checkpoint":"/x"}}',
    "ours, escaped slash": '{"annotations":{"grit.dev\\/checkpoint":"/x"}}',
    "CRIU's, escaped": '{"annotations":{"org\\u002Ecriu.config":"/evil"}}',
    "two": '{"annotations":{"a":"b"},"annotations":{"c":"d"}}',
    "another case, which Go takes for the same": '{"Annotations":{"a":"b"},"linux":{}}',
    "not in the outermost object": '{"linux":{"annotations":{"a":"b"}}}',
    "null": '{"annotations":null}',
    "no object": '["annotations"]',
    "empty": "",
    "an empty object": "{}",
}


@pytest.mark.parametrize("text", USUAL.values(), ids=USUAL)
@pytest.mark.parametrize("command", ["create", "run"])
def test_create_adds_our_annotation_and_nothing_else(world: World, command: str, text: str) -> None:
    world.no_python()
    bundle = world.folder / "bundle x"
    bundle.mkdir()
    path = bundle / "config.json"
    path.write_text(text)
    path.chmod(0o604)
    done = world.call("--root", "/r", command, "--pid-file", "/p", "--bundle", str(bundle), "x")
    assert (done.returncode, done.stderr) == (7, "said on stderr\n")
    before, after = json.loads(text), json.loads(path.read_text())
    assert after == {**before, "annotations": {**before.get("annotations", {}), **NOTE}}
    assert path.stat().st_mode & 0o777 == 0o604 and os.listdir(bundle) == ["config.json"]


@pytest.mark.parametrize("text", UNUSUAL.values(), ids=UNUSUAL)
def test_create_leaves_the_rest_to_python(world: World, text: str) -> None:
    world.no_python()
    (world.folder / "config.json").write_text(text)
    for place in ({"cwd": world.folder}, {}):
        words = ["create", "x"] if place else ["create", f"-b={world.folder}", "x"]
        assert "config-unknown-key" in world.call(*words, **place).stderr
    assert (world.folder / "config.json").read_text() == text


def test_create_of_what_is_no_bundle_is_left_to_python(world: World) -> None:
    world.no_python()
    (world.folder / "elsewhere").write_text("{}")
    (world.folder / "link").mkdir()
    (world.folder / "link/config.json").symlink_to(world.folder / "elsewhere")
    (world.folder / "big").mkdir()
    (world.folder / "big/config.json").write_text(json.dumps({"a": "x" * (8 << 20)}))
    for bundle in ("none", "link", "big"):
        assert "config-unknown-key" in world.call("create", "--bundle", str(world.folder / bundle), "x").stderr
    assert (world.folder / "elsewhere").read_text() == "{}"


def test_sandboxes_and_other_specs_pass_untouched(world: World) -> None:
    world.no_python()
    text = '{"ociVersion":"1.2.0","annotations":{"io.kubernetes.cri.container-type":"sandbox"}}'
    (world.folder / "config.json").write_text(text)
    assert world.call("create", "--bundle", str(world.folder), "x").returncode == 7
    assert world.call("create", "--config", "other.json", "x").returncode == 7
    assert (world.folder / "config.json").read_text() == text


# Python's part: refusals and mistakes as runc reports them.


def test_a_refusal_is_reported_to_log_and_stderr(world: World) -> None:
    log = world.folder / "log.json"
    done = world.call("--log", str(log), "--log-format", "json", "create", "--bundle", "/nowhere", "x")
    assert done.returncode == 1
    assert done.stderr.startswith("grit-runtime: bundle-unreadable: ") and done.stderr.count("\n") == 1
    assert json.loads(log.read_text().splitlines()[-1])["msg"] == done.stderr.rstrip("\n")
    (world.folder / "config.json").write_text("{")
    assert world.call("create", "x", cwd=world.folder).stderr.startswith("grit-runtime: config-not-json: ")


def test_main_reports_mistakes_and_interruptions(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(python, "LOGS", str(world.folder / "logs"))
    refusal = refuse("config-missing", path="/c")
    ends: list[BaseException] = [ZeroDivisionError("x"), python.Stopped(signal.SIGTERM), refusal]
    codes, said = [], []
    for end in ends:

        def fail(_call: object, end: BaseException = end) -> int:
            raise end

        monkeypatch.setattr(python, "_carry_out", fail)
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        codes.append(python.main(["checkpoint", "x"]))
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
        said.append(capfd.readouterr().err)
    assert codes == [1, 143, 1]
    assert "internal-error: " in said[0] and "Traceback" not in said[0]
    assert "interrupted: " in said[1] and "SIGTERM" in said[1]
    assert said[2].startswith("grit-runtime: config-missing: ")
    assert "in fail\n" in (world.folder / "logs/internal-errors.log").read_text()


def test_a_call_that_names_no_container_is_the_next_runtimes_to_answer(world: World) -> None:
    for words in (["checkpoint", "--help"], ["restore"]):
        done = world.call(*words)
        assert (done.returncode, done.stderr) == (7, "said on stderr\n")


def test_a_configuration_is_parsed_once_for_each_text(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    real = settings.parse

    def parse(content: str, path: str) -> dict[str, object]:
        parsed.append(content)
        return real(content, path)

    monkeypatch.setattr(settings, "parse", parse)
    monkeypatch.setenv("GRIT_RUNTIME_RUN", str(world.run))
    one, other = "[logs]\nkeep = 1\n", "[logs]\nkeep = 2\n"
    for text in (one, one, other, other, one):
        assert python.configuration(text, "/c")["logs"]["keep"] == int(text[-2])
    assert parsed == [one, other, one]
    for damaged in (b"{", b"[]", b'["x"]', json.dumps([one, 3]).encode()):
        (world.run / "configuration").write_bytes(damaged)
        assert python.configuration(one, "/c") == {"logs": {"keep": 1}}
    assert python.configuration("day = 2026-01-01", "/c") == real("day = 2026-01-01", "/c")


def test_little_is_loaded_before_the_work_begins() -> None:
    """The modules of the runtime path do not pull in what costs milliseconds at each call."""
    code = "import sys; sys.path.insert(0, 'shim'); import grit_runtime.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, timeout=60, check=True,
                          cwd=ENTRY.parents[1])  # fmt: skip
    heavy = "argparse dataclasses subprocess json tomllib tomlkit click pyroute2 logging inspect"
    assert not set(heavy.split()) & set(done.stdout.split())


def test_default_paths() -> None:
    text = ENTRY.read_text()
    assert f"'{settings.CONFIG}'" in text and f"'{python.RUN}'" in text
