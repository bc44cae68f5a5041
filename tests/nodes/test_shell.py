"""grit-runtime called by a person at a shell: on a bundle of theirs, in the foreground, with a terminal or a file."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.nodes.moving import low_level
from tests.testbed import Node, Testbed, until

BUNDLE = "/tmp/shell-bundle"
COUNT = "trap 'exit 7' TERM INT; i=0; while :; do i=$((i+1)); echo $i; /bin/busybox sleep 0.05; done"


@pytest.fixture(params=["node-a", "node-b", "node-b with crun"])
def node(request: pytest.FixtureRequest, testbed: Testbed) -> Iterator[Node]:
    """Each node with runc at the chain's end, and the one whose cgroups crun can use with crun."""
    here = testbed.a if request.param == "node-a" else testbed.b
    with low_level(here, runtime="crun") if request.param.endswith("crun") else nullcontext():
        if request.param.endswith("crun"):
            assert "crun" in here.run(["grit-runtime", "--version"]).stdout
        yield here


@pytest.fixture
def bundle(node: Node) -> Iterator[Path]:
    """A bundle with busybox on an overlay, as `runc spec` makes it, without a terminal."""
    script = f"""set -e; mkdir -p {BUNDLE}/lower/bin {BUNDLE}/upper {BUNDLE}/work {BUNDLE}/rootfs {BUNDLE}/out
        cp /bin/busybox {BUNDLE}/lower/bin/; ln -sf busybox {BUNDLE}/lower/bin/sh
        cd {BUNDLE}; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay rootfs; runc spec"""
    node.run(["sh", "-c", script])
    edit(node, terminal=False, annotations={})
    yield node.path(BUNDLE)
    node.run(["sh", "-c", f"grit-runtime delete --force shell; umount {BUNDLE}/rootfs; rm -rf {BUNDLE}"], check=False)


def edit(node: Node, *, terminal: bool, annotations: dict[str, str]) -> None:
    path = node.path(f"{BUNDLE}/config.json")
    spec = json.loads(path.read_text())
    spec["process"].update(terminal=terminal, args=["/bin/sh", "-c", COUNT], env=["PATH=/bin"], rlimits=[])
    spec["root"] = {"path": "rootfs", "readonly": False}
    spec["annotations"] = annotations
    if terminal:
        spec["process"]["consoleSize"] = {"height": 24, "width": 80}
    path.write_text(json.dumps(spec))


def lines(path: Path) -> list[int]:
    """The numbers counted into a file."""
    text = path.read_text() if path.exists() else ""
    return [int(line) for line in text.splitlines() if line.isdigit()]


def foreground(node: Node, words: str, out: str) -> subprocess.Popen[bytes]:
    """`grit-runtime WORDS` in the foreground with its output in a regular file, which runc alone can't dump."""
    script = f"""cd {BUNDLE}; echo $$ >out/pid
        exec grit-runtime {words} >{BUNDLE}/out/{out} 2>{BUNDLE}/out/{out}.err </dev/null"""
    return node.popen(["sh", "-c", script])


def test_output_in_a_file_signals_and_the_exit_code(node: Node, bundle: Path) -> None:
    first = foreground(node, "run shell", "one")
    until("it counts", lambda: len(lines(bundle / "out" / "one")) > 3)
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime checkpoint --image-path {BUNDLE}/images shell"])
    first.wait(30)
    last = lines(bundle / "out" / "one")[-1]
    second = foreground(node, f"restore --image-path {BUNDLE}/images shell", "two")
    until("it goes on", lambda: len(lines(bundle / "out" / "two")) > 3, 60)
    numbers = lines(bundle / "out" / "two")
    assert numbers[0] in (last, last + 1), (bundle / "out" / "two.err").read_text()
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    node.run(["sh", "-c", f"kill -TERM $(cat {BUNDLE}/out/pid)"])
    assert second.wait(60) == 7
    assert "shell" not in node.run(["grit-runtime", "list", "-q"]).stdout.split()


def test_run_with_the_annotation_in_the_foreground(node: Node, bundle: Path) -> None:
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime run --detach shell >out/one 2>&1 </dev/null"])
    until("it counts", lambda: len(lines(bundle / "out" / "one")) > 3)
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime checkpoint --image-path /var/lib/grit/shell/images shell"])
    edit(node, terminal=False, annotations={"grit.dev/checkpoint": "/var/lib/grit/shell/images"})
    last = lines(bundle / "out" / "one")[-1]
    again = foreground(node, "run shell", "two")
    until("it goes on", lambda: len(lines(bundle / "out" / "two")) > 3)
    assert (bundle / "out" / "two").read_text().splitlines()[0] in (str(last), str(last + 1))
    node.run(["grit-runtime", "kill", "shell", "KILL"])
    assert again.wait(60) == 137
    node.run(["rm", "-rf", "/var/lib/grit/shell"])


@pytest.mark.parametrize("node", ["node-a"], indirect=True)
def test_images_stay_when_the_runtime_fails_after_the_dump(node: Node, bundle: Path) -> None:
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime run --detach shell >out/one 2>&1 </dev/null"])
    until("it counts", lambda: len(lines(bundle / "out" / "one")) > 3)
    failing = """#!/bin/sh
        runc "$@"; code=$?
        for word; do test "$word" != checkpoint || code=3; done
        exit $code"""
    node.write(f"{BUNDLE}/failing", failing, 0o755)
    node.write(f"{BUNDLE}/config.toml", f'[runtime]\nnext = "{BUNDLE}/failing"\n')
    words = ["grit-runtime", "checkpoint", "--image-path", f"{BUNDLE}/images", "shell"]
    node.run(words, env={"GRIT_RUNTIME_CONFIG": f"{BUNDLE}/config.toml"})
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime restore -d --image-path images shell >out/two 2>&1 </dev/null"])
    until("it goes on", lambda: len(lines(bundle / "out" / "two")) > 3)


def test_a_terminal(node: Node, bundle: Path) -> None:
    edit(node, terminal=True, annotations={})
    screen = Screen(node, f"cd {BUNDLE}; exec grit-runtime run shell")
    screen.wait_for("5\r\n")
    node.run(["sh", "-c", f"cd {BUNDLE}; grit-runtime checkpoint --image-path {BUNDLE}/images shell"])
    last = screen.end()
    screen = Screen(node, f"cd {BUNDLE}; exec grit-runtime restore --image-path {BUNDLE}/images shell")
    text = screen.wait_for("\n" + str(int(last.split()[-1]) + 3) + "\r\n")
    assert "grit-runtime:" not in text
    screen.write("\x03")  # Ctrl-C goes through the raw terminal to the container's own
    screen.end()
    assert screen.process.returncode == 7
    assert "shell" not in node.run(["grit-runtime", "list", "-q"]).stdout.split()


class Screen:
    """A program of the node on a terminal of ours."""

    def __init__(self, node: Node, script: str) -> None:
        self.master, slave = pty.openpty()
        self.process = node.popen(["sh", "-c", script], stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.text = ""

    def read(self, seconds: float) -> bool:
        """One more piece; False at its end or when nothing came."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            self.text += os.read(self.master, 65536).decode(errors="replace")
            self.text = self.text.replace("\r\r\n", "\r\n")  # before the container's own pty is as we want it
        except OSError:
            return False
        return True

    def wait_for(self, wanted: str, seconds: float = 60) -> str:
        end = time.monotonic() + seconds
        while wanted not in self.text:
            assert time.monotonic() < end and (self.read(1) or self.process.poll() is None), repr(self.text[-200:])
        return self.text

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> str:
        """What it showed, when it has ended."""
        end = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < end, repr(self.text[-200:])
            self.read(0.1)
        while self.read(0):
            pass
        os.close(self.master)
        return self.text
