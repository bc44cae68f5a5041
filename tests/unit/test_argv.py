"""The command line of an OCI runtime."""

from __future__ import annotations

import pytest
from grit_runtime.argv import parse

CONTAINERD = (
    "--root /run/containerd/runc/k8s.io --log /b/log.json --log-format json --systemd-cgroup "
    "create --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock abc"
).split()


def test_containerds_create() -> None:
    call = parse(CONTAINERD)
    assert (call.subcommand, call.id) == ("create", "abc")
    assert (call.root, call.log, call.log_format) == ("/run/containerd/runc/k8s.io", "/b/log.json", "json")
    assert (call.option("--bundle"), call.option("--pid-file")) == ("/b", "/b/init.pid")
    assert call.rebuilt() == CONTAINERD


@pytest.mark.parametrize(
    "words, command, ident, bundle",
    [
        (["create", "-b", "create", "x"], "create", "x", "create"),  # a value that looks like a subcommand
        (["--root=/r", "create", "--bundle=/b=1", "x"], "create", "x", "/b=1"),
        (["-root", "/r", "create", "-bundle", "/b", "x"], "create", "x", "/b"),  # Go takes one dash for two
        (["create", "x", "-b/crun"], "create", "x", "/crun"),
        (["create", "--bundle", "/1", "--bundle", "/2", "x"], "create", "x", "/2"),
        (["create", "--no-pivot", "--", "--bundle", "x"], "create", "--bundle", None),
        (["--debug", "--log", "create"], "", "", None),  # --log ate the only word
        (["--version"], "", "", None),
        ([], "", "", None),
    ],
)
def test_spellings(words: list[str], command: str, ident: str, bundle: str | None) -> None:
    call = parse(words)
    assert (call.subcommand, call.id, call.option("--bundle")) == (command, ident, bundle)
    assert call.rebuilt() == words


def test_defaults() -> None:
    call = parse(["state", "x"])
    assert (call.root, call.log, call.log_format, call.option("--bundle")) == (None, None, "text", None)


@pytest.mark.parametrize("word, on", [("--leave-running", True), ("--leave-running=true", True),
                                      ("--leave-running=false", False), ("--leave", False)])  # fmt: skip
def test_switches(word: str, on: bool) -> None:
    assert parse(["checkpoint", word, "x"]).flag("--leave-running") is on
    assert parse(["restore", "-d", "x"]).flag("--detach")


def test_a_switch_or_option_of_the_containers_process_is_not_ours() -> None:
    assert not parse(["restore", "x", "--", "--detach"]).flag("--detach")


def test_rebuilt_changes_only_what_is_asked() -> None:
    call = parse(["--log", "l", "restore", "--image-path=/old", "--work-path", "/w", "-d", "--unknown", "x"])
    words = call.rebuilt(add=["--file-locks"], remove={"--work-path"}, replace={"--image-path": "/new"})
    assert words == ["--log", "l", "restore", "--image-path", "/new", "--file-locks", "-d", "--unknown", "x"]
    assert parse(call.rebuilt(subcommand="delete")).subcommand == "delete"
