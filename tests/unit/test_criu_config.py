"""What is written into CRIU's configuration file, and what CRIU says of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from grit_runtime.checks import Refusal
from grit_runtime.criu import config, features
from grit_runtime.criu.config import Options


def test_the_file_is_as_criu_reads_it(tmp_path: Path) -> None:
    options = Options(
        (
            ("tcp-established", None),
            ("ghost-limit", "1073741824"),
            ("manage-cgroups", "ignore"),
            config.external_mount("/etc/hosts", "/var/lib/x/hosts"),
            config.external_file(110, 75),
            config.inherit_file(1, 110, 75),
        )
    )
    path = tmp_path / "criu.conf"
    config.write(path, options)
    assert path.read_text().splitlines() == [
        "tcp-established",
        "ghost-limit 1073741824",
        "manage-cgroups=ignore",
        "external mnt[/etc/hosts]:/var/lib/x/hosts",
        "external file[6e:4b]",
        "inherit-fd fd[1]:file[6e:4b]",
    ]
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("external", "mnt[/a b]:/c"),
        ("external", "mnt[/a]:/c\naction-script /evil"),
        ("external", "mnt[/a#b]:/c"),
        ("external", 'mnt[/a"]:/c'),
        ("external", "mnt[/a\u2028]:/c"),
        ("external", "mnt[/a\x00]:/c"),
        ("external", ""),
        ("tcp-established", "yes"),
        ("action-scripts", "/x"),
        ("exec-cmd", "/x"),
        ("ghost-limit", None),
    ],
)
def test_what_criu_would_read_otherwise_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(Refusal) as caught:
        config.text(Options(((name, value),)))
    assert caught.value.reason == "criu-option"


def test_a_key_with_a_bracket_is_refused() -> None:
    with pytest.raises(Refusal):
        config.external_mount("/a]:/etc/shadow", "/x")


def test_names_that_are_no_utf8_reach_the_file(tmp_path: Path) -> None:
    config.write(tmp_path / "c", Options((("libdir", os.fsdecode(b"/a\xff")),)))
    assert (tmp_path / "c").read_bytes() == b"libdir /a\xff\n"


@pytest.mark.parametrize(
    ("output", "version"),
    [
        ("Version: 4.2.1\n", (4, 2, 1)),
        ("Version: 4.2\nGitID: v4.2-3-gabc\n", (4, 2)),
        ("warning\nVersion: 3.17.1-dev\n", (3, 17, 1)),
        ("", ()),
    ],
)
def test_versions(output: str, version: tuple[int, ...]) -> None:
    assert features.parse_version(output) == version


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program called criu, and a PATH on which nothing else is found."""
    path = folder / "criu"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(features, "search_path", lambda: str(folder))


def test_criu_is_asked_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    say = f'echo x >> {count}; [ "$1" = check ] && echo Looks good. || echo Version: '
    fake(tmp_path, monkeypatch, say + "4.2.1")
    kept = str(tmp_path / "run" / "criu")
    first = features.features(kept)
    assert first == features.features(kept)
    assert (first.version, first.check, first.network_lock) == ((4, 2, 1), "", "skip")
    calls = len(count.read_text().splitlines())
    fake(tmp_path, monkeypatch, say + "4.3.0  # longer")
    assert features.features(kept).version == (4, 3, 0)
    assert len(count.read_text().splitlines()) == 2 * calls
    (tmp_path / "iptables-restore").write_text("")
    (tmp_path / "iptables-restore").chmod(0o755)
    assert features.features(kept).network_lock == "iptables"
    fake(tmp_path, monkeypatch, say + "4.3.1; [ $# = 3 ] && echo $3 is supported")
    assert features.features(kept).network_lock == "nftables"


def test_what_is_wrong_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = str(tmp_path / "kept")
    fake(tmp_path, monkeypatch, 'echo Version: 4.2.1; [ "$1" = check ] && echo "Error (a:1): no loopback"')
    assert features.features(kept).check == "Error (a:1): no loopback"
    assert not os.path.exists(kept)


def test_no_criu_and_an_old_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "search_path", lambda: str(tmp_path))
    with pytest.raises(Refusal) as caught:
        features.require(str(tmp_path / "a"))
    assert caught.value.reason == "criu-missing"
    fake(tmp_path, monkeypatch, "echo Version: 3.17.1")
    with pytest.raises(Refusal) as caught:
        features.require(str(tmp_path / "b"))
    assert caught.value.reason == "criu-too-old"
