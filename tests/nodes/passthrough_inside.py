"""Runs in a node: what a program that uses an OCI runtime sees of it. Prints [[step, exit code, stdout, stderr], ...].

usage: passthrough_inside.py RUNTIME CGROUP-PARENT
Whoever runs it twice, with a runtime and with us in front of the same one, must see the same. Numbers that differ from
run to run (PIDs, times, counters) are masked.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

HERE = "/tmp/passthrough"
CALLS = """
--version
-v
--help
-h
help
features
list
list -q
frobnicate x
--frobnicate
--log
state
state none
kill none
start none
delete none
delete --force none
ps none
exec none true
events none
update none
pause none
create
create --help
checkpoint
restore --help
--root /no/where/at/all list
"""
NOTE = re.compile(r'\s*"org\.criu\.config": ?"[^"]*",?')  # the one thing that we add, as `state` tells it


class Scenario:
    def __init__(self, runtime: str, parent: str) -> None:
        self.runtime, self.parent = runtime, parent
        self.steps: list[tuple[str, Any, str, str]] = []
        # What a shell would drop or change is here too.
        os.environ.update({"odd.name": "1", "BASH_FUNC_f%%": "() { :; }", "EMPTY": "", "TRICKY": "a\nb"})

    def note(self, step: str, code: Any, out: str, err: str) -> None:
        def masked(text: str) -> str:
            text = re.sub(r"\d+", "#", NOTE.sub("", text))
            return re.sub(r"[ \t]+", " ", text)

        self.steps.append((step, code, masked(out), masked(err)))

    def call(self, *words: str, input: str = "", how: str = "", before: Sequence[str] = (), **options: Any) -> None:
        """One call; its streams are files, so that a container which keeps them keeps nobody waiting."""
        with open(f"{HERE}/in", "w+") as stdin, open(f"{HERE}/out", "w+") as out, open(f"{HERE}/err", "w+") as err:
            stdin.write(input)
            stdin.seek(0)
            command = [*before, self.runtime, *words]
            code = subprocess.run(command, stdin=stdin, stdout=out, stderr=err, timeout=100, check=False,
                                  **options).returncode  # fmt: skip
            out.seek(0)
            err.seek(0)
            self.note(" ".join(words) + how, code, out.read(), err.read())

    def bundle(self, *args: str, terminal: bool = False) -> None:
        """The bundle, written anew, as containerd writes it."""
        process = self.spec["process"]
        process.update(args=["/bin/sh", "-c", *args], terminal=terminal)
        with open(f"{HERE}/b/config.json", "w") as file:
            json.dump(self.spec, file, separators=(",", ":"))

    def prepare(self) -> None:
        shutil.rmtree(HERE, ignore_errors=True)
        os.makedirs(f"{HERE}/b/rootfs/bin")
        os.makedirs(f"{HERE}/spec")
        os.makedirs("/run/runc", mode=0o700, exist_ok=True)  # `list` fails before the first container
        shutil.copy("/usr/bin/busybox", f"{HERE}/b/rootfs/bin/busybox")
        for applet in ("sh", "sleep", "cat", "ls", "tty"):
            os.symlink("busybox", f"{HERE}/b/rootfs/bin/{applet}")
        os.chdir(HERE)

    def no_container(self) -> None:
        """Calls that need none."""
        self.call("spec", cwd=f"{HERE}/spec")
        self.call("spec", cwd=f"{HERE}/spec")  # it is there already
        with open(f"{HERE}/spec/config.json") as file:
            text = file.read()
        self.note("the spec", 0, text, "")
        self.spec = json.loads(text)
        self.spec["root"]["readonly"] = False
        self.spec["annotations"] = {"z": "last"}
        hook = {"path": "/usr/bin/cp", "args": ["cp", "/proc/self/environ", f"{HERE}/hook-environ"]}
        self.spec["hooks"] = {"createRuntime": [hook]}
        self.spec["linux"]["cgroupsPath"] = f"{self.parent}/passthrough"
        self.call()
        for words in CALLS.strip().split("\n"):
            self.call(*words.split())
        for log_format in ("text", "json"):
            self.call("--log", f"{HERE}/log", "--log-format", log_format, "state", "none")
        with open(f"{HERE}/log") as file:
            self.note("the log", 0, file.read(), "")

    def lifecycle(self) -> None:
        self.bundle("trap 'exit 7' TERM; sleep 1000 & echo up; wait")
        with open(f"{HERE}/output", "w") as output:  # `create` hands its streams to the container
            words = ["create", "--bundle", f"{HERE}/b", "--pid-file", f"{HERE}/pid", "c"]
            done = subprocess.run([self.runtime, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                  timeout=100, check=False)  # fmt: skip
        self.note("create", done.returncode, "", "")
        with open(f"{HERE}/hook-environ", "rb") as environ:
            self.note("what a hook sees", 0, repr(sorted(environ.read().split(b"\0"))), "")
        self.call("state", "c")
        self.call("create", "--bundle", f"{HERE}/b", "c")  # the ID is taken
        self.call("start", "c")
        self.until_up()
        self.call("state", "c")
        self.call("start", "c")
        self.call("exec", "c", "/bin/sh", "-c", "echo out; echo err >&2; exit 3")
        self.call("exec", "c", "/bin/cat", input="through stdin\n")
        self.call("exec", "--env", "A=b c", "--cwd", "/bin", "c", "/bin/sh", "-c", 'echo "$A" "$PWD"')
        self.call("exec", "c", "/nowhere")
        self.call("ps", "c")
        self.call("list")
        self.call("events", "--stats", "c")
        self.call("update", "--pids-limit", "100", "c")
        self.call("pause", "c")
        self.call("state", "c")
        self.call("resume", "c")
        self.call("kill", "c", "0")
        with open(f"{HERE}/pid") as file:
            pid = int(file.read())
        self.call("kill", "c", "TERM")
        self.note("its end", self.reaped(pid), "", "")
        with open(f"{HERE}/output") as output:
            self.note("its output", 0, output.read(), "")
        self.call("state", "c")
        self.call("delete", "c")
        self.call("delete", "c")

    def reaped(self, pid: int) -> int:
        """The exit code of `pid`. As a shim we reap whatever comes: crun leaves children of `exec` to its parent."""
        signal.alarm(60)
        while True:
            one, status = os.waitpid(-1, 0)
            if one == pid:
                signal.alarm(0)
                return os.waitstatus_to_exitcode(status)

    def until_up(self) -> None:
        end = time.monotonic() + 60
        while True:
            with open(f"{HERE}/output") as output:
                if output.read() == "up\n":
                    return
            if time.monotonic() > end:
                raise TimeoutError("the container does not come up")
            time.sleep(0.01)

    def attached(self) -> None:
        """`run` in the foreground: streams, exit code, signals, descriptors."""
        self.bundle("cat; echo out; echo err >&2; exit 5")
        self.call("run", "--bundle", f"{HERE}/b", "c", input="in\n")
        self.call("run", "--bundle=b", "c", how=" (a relative bundle)")
        self.call("run", "c", cwd=f"{HERE}/b", how=" (in the bundle)")
        self.bundle("ls /proc/self/fd; cat <&3")
        # systemd's way names the process, so it must still be the same one
        systemd = ["/bin/sh", "-c", 'export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"', "-"]
        for name, before, options in (("preserve-fds", [], ["--preserve-fds", "1"]), ("systemd", systemd, [])):
            reader, writer = os.pipe()
            os.write(writer, b"inherited\n")
            os.close(writer)

            def third(reader: int = reader) -> None:
                os.dup2(reader, 3)
                os.set_inheritable(3, True)  # dup2 of 3 to 3 leaves it as it was

            self.call("run", "--bundle", f"{HERE}/b", *options, "c", preexec_fn=third, close_fds=False, before=before,
                      how=f" ({name})")  # fmt: skip
            os.close(reader)
        self.bundle("trap 'echo term; exit 9' TERM; sleep 1000 & echo up; wait")
        child = subprocess.Popen([self.runtime, "run", "--bundle", f"{HERE}/b", "c"], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        first = child.stdout.readline()
        child.send_signal(signal.SIGTERM)
        self.note("run, and SIGTERM to it", child.wait(60), first + child.stdout.read(), "")
        self.bundle("sleep 1000")
        self.call("run", "--detach", "--bundle", f"{HERE}/b", "--pid-file", f"{HERE}/pid", "c")
        self.call("delete", "--force", "c")

    def console(self) -> None:
        """--console-socket: we get the terminal's other end."""
        self.bundle("tty; echo in a terminal", terminal=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(f"{HERE}/console")
        server.listen()
        server.settimeout(60)
        words = ["create", "--bundle", f"{HERE}/b", "--console-socket", f"{HERE}/console", "c"]
        child = subprocess.Popen([self.runtime, *words], stdin=subprocess.DEVNULL)
        connection, _ = server.accept()
        fds = socket.recv_fds(connection, 4096, 1)[1]
        self.note("create --console-socket", child.wait(60), "", "")
        self.call("start", "c")
        said = b""
        while b"in a terminal" not in said:
            said += os.read(fds[0], 4096)
        self.note("the terminal", 0, said.decode(), "")
        self.call("delete", "--force", "c")


def main() -> None:
    runtime, parent = sys.argv[1:]
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: containers become our children
    scenario = Scenario(runtime, parent)
    scenario.prepare()
    try:
        for part in (scenario.no_container, scenario.lifecycle, scenario.attached, scenario.console):
            part()
    finally:
        subprocess.run([runtime, "delete", "--force", "c"], capture_output=True, timeout=60, check=False)
    print(json.dumps(scenario.steps))


if __name__ == "__main__":
    main()
