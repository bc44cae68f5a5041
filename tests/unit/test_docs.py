"""The man pages and the admin's guide tell of every command, option and key that there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from grit_runtime.ctl.main import COMMANDS, main
from grit_runtime.settings import Settings

ROOT = Path(__file__).parents[2]
MAN = ROOT / "docs" / "man"


def rendered(name: str) -> str:
    """A man page as a person reads it, on one line without hyphenation."""
    argv = ["man", "--warnings", "--nh", "-E", "ascii", "-l", str(MAN / name)]
    env = {"PATH": "/usr/bin:/bin", "MANWIDTH": "500"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0 and done.stderr == ""
    return " ".join(re.sub(".\b", "", done.stdout).split())


def test_gritctl_8_has_every_command_and_our_options() -> None:
    text = rendered("gritctl.8")
    for name in COMMANDS:
        assert re.search(rf" {name} ", text), name
    for name in ("logs", "doctor", "recover", "install", "uninstall"):
        command = main.get_command(None, name)  # type: ignore[arg-type]
        assert command
        for param in command.params:
            for option in [o for o in param.opts if o.startswith("--") and not getattr(param, "hidden", False)]:
                assert re.search(rf"{option}\b", text) or option == "--number", f"{name} {option}"


def test_grit_runtime_toml_5_has_every_key_with_its_default() -> None:
    text = rendered("grit-runtime.toml.5")
    for table, values in Settings()._asdict().items():
        part = re.split(r" \[[a-z]+\] ", text.partition(f" [{table}] ")[2])[0]
        assert part, table
        for key, value in values._asdict().items():
            found = re.search(rf"\b{key} = (\[.*?\]|\S+)", part)
            assert found, f"{table}.{key}"
            sizes = {1 << 30: '"1G"', 64 << 20: '"64M"'}
            if isinstance(value, bool):
                assert found[1] == str(value).lower(), key
            elif isinstance(value, int):
                assert found[1] == sizes.get(value, str(value)), key
            elif isinstance(value, str):
                assert found[1] == f'"{value}"', key


@pytest.mark.parametrize("name", ["grit-runtime.8", "gritctl.8", "grit-runtime.toml.5"])
def test_each_page_has_a_whatis_line(name: str) -> None:
    page = name.rpartition(".")[0]
    assert re.search(rf"NAME {re.escape(page)} +- \w", rendered(name))


def test_the_guide_names_only_what_there_is() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    for name in set(re.findall(r"gritctl ([a-z-]+)", text)):
        assert name in COMMANDS, name
    for path in set(re.findall(r"packaging/kubernetes/[a-z-]+\.yaml", text)):
        assert (ROOT / path).is_file(), path
