"""The package: whole, and installed, upgraded, removed and purged under running containers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testbed import Container, Node

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIG = "/etc/grit-runtime/config.toml"
OURS = ("/etc/grit-runtime", "/usr/bin/grit-runtime", "/usr/bin/gritctl", "/usr/libexec/grit-runtime",
        "/run/grit-runtime", "/usr/share/grit-runtime",
        "/usr/lib/python3/dist-packages/grit_runtime", "/var/lib/grit-runtime")  # fmt: skip


def test_lintian_has_nothing_to_say(deb: Path) -> None:
    done = subprocess.run(["lintian", "--allow-root", deb], capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_same_files_make_the_same_package(deb: Path, tmp_path: Path) -> None:
    version = deb.name.split("_")[1]
    built = build(tmp_path / "once", version)
    if Path(f"{built}.inputs").read_text() != Path(f"{deb}.inputs").read_text():  # somebody works in this checkout
        deb = build(tmp_path / "again", version)
    assert built.read_bytes() == deb.read_bytes()


def build(folder: Path, version: str) -> Path:
    subprocess.run(["packaging/build-deb", "--version", version, "--output", folder], cwd=CHECKOUT, check=True,
                   stdin=subprocess.DEVNULL, capture_output=True, timeout=250)  # fmt: skip
    return folder / f"grit-runtime_{version}_all.deb"


@pytest.fixture
def container(node: Node, deb: Path) -> Iterator[Container]:
    """A container that runs through us; afterwards it is gone, and our package is as it was."""
    found = node.start("packaged", image="busybox", runtime="grit")
    try:
        yield found
    finally:
        try:
            found.delete()
        finally:
            apt(node, "purge", "grit-runtime", check=False)
            node.install(deb)


def apt(node: Node, *words: str, check: bool = True) -> str:
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    done = node.run(["apt-get", "-q", "-y", "--no-download", *words], check=check, env=env, timeout=180)
    assert "warning" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def alive(container: Container) -> bool:
    return container.exec("echo", "alive") == "alive\n"


@pytest.mark.timeout(600)
def test_installed_upgraded_removed_and_purged_while_containers_run(
    node: Node, container: Container, tmp_path: Path
) -> None:
    edited = node.path(CONFIG).read_text() + "# an admin's remark\n"
    node.path(CONFIG).write_text(edited)

    later = build(tmp_path, "9.9.9")
    node.install(later)
    assert node.run(["dpkg-query", "-W", "-f", "${Version}", "grit-runtime"]).stdout == "9.9.9"
    assert node.path(CONFIG).read_text() == edited
    assert alive(container)
    second = node.start("later", image="busybox", runtime="grit")
    assert alive(second)
    second.delete()

    said = apt(node, "remove", "grit-runtime")
    assert "containers still use it" in said
    assert node.path(CONFIG).read_text() == edited
    assert alive(container)

    apt(node, "purge", "grit-runtime")
    assert alive(container)
    container.node.ctr("tasks", "pause", container.name)
    container.node.ctr("tasks", "resume", container.name)
    container.delete()
    assert node.leaks() == []
    node.path("/usr/bin/grit-runtime").unlink()
    assert [path for path in OURS if node.path(path).exists() or node.path(path).is_symlink()] == []


@pytest.mark.timeout(300)
def test_nothing_is_left_when_no_container_runs(node: Node, container: Container) -> None:
    container.delete()
    node.path("/var/lib/grit-runtime/logs").mkdir(parents=True, exist_ok=True)
    node.write("/var/lib/grit-runtime/install.json", "{}")
    assert "run gritctl uninstall before removing it" in apt(node, "purge", "grit-runtime")
    assert [path for path in OURS if node.path(path).exists() or node.path(path).is_symlink()] == []
    assert node.run(["dpkg", "--audit"]).stdout == ""
