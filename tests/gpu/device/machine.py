"""The GPU machine that a proof runs on: what it is, and a container on it by hand, without us."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from grit_runtime import nvidia, settings
from grit_runtime.cuda.trial import Trial

PYTHON = shutil.which("python3") or "/usr/bin/python3"
CRIU_CONFIG = "link-remap\nghost-limit 64M\nfile-locks\nmanage-cgroups=ignore\n"


def says(*words: str) -> str:
    """The output of a command in one line; "" if it cannot be run."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return " ".join((done.stdout or done.stderr).split())


def facts() -> dict[str, str]:
    query = says("nvidia-smi", "--query-gpu=name,driver_version,memory.total,persistence_mode", "--format=csv,noheader")
    torch = says(PYTHON, "-c", "import torch; print(torch.__version__)")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "gpu": query,
        "kernel": os.uname().release,
        "cores": str(os.cpu_count()),
        "criu": says("criu", "--version"),
        "runc": says("runc", "--version"),
        "toolkit": says("nvidia-container-runtime", "--version").split(" commit")[0],
        "pytorch": torch,
        "python": says("/usr/bin/python3", "--version"),
        "cgroups": "v2" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "v1",
        "huge pages": Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip(),
    }


def injected(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as NVIDIA's runtime edits it, with real sources and CRIU's options: for runc by hand."""
    with tempfile.TemporaryDirectory() as folder:
        made = nvidia.inject(settings.load(), "/usr/bin/nvidia-container-runtime", spec, folder)
    made = nvidia.real_sources(made)
    config = f"/run/by-hand-{os.getpid()}.conf"
    # a machine without iptables and nftables can hold no connections still; there are none in these containers
    Path(config).write_text(CRIU_CONFIG + "network-lock skip\n")
    made.setdefault("annotations", {})["org.criu.config"] = config
    return made


class ByHand(Trial):
    """The same container under plain runc, with cuda-checkpoint called by hand, one process after the other."""

    def __init__(self, folder: str, name: str, program: list[str], **more: Any) -> None:
        super().__init__(folder, name, program, runtime=["runc"], python=PYTHON, edit=injected, **more)

    def cuda(self, *words: str) -> None:
        for pid in self.pids():
            subprocess.run(["cuda-checkpoint", *words, "--pid", str(pid)], check=True, timeout=300)

    def pids(self) -> list[int]:
        """The processes with GPU memory, as this machine numbers them."""
        return host_pids(self)

    def restore_in_place(self, images: str) -> None:
        """`runc restore` into the bundle that it was started from, which has all that NVIDIA's runtime added."""
        words = ("--bundle", str(self.bundles[-1]), "--image-path", images, "--work-path", self.work())
        self.call("restore", "--detach", *words, self.name)


def host_pids(trial: Trial) -> list[int]:
    """The processes of a container that report to us, by their numbers here."""
    init = trial.state()["pid"]
    inner = {trial.status(number)["pid"] for number in range(trial.processes)}
    space = os.stat(f"/proc/{init}/ns/pid").st_ino
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}/ns/pid").st_ino == space:
                text = Path(f"/proc/{name}/status").read_text()
                numbers = next(line for line in text.splitlines() if line.startswith("NSpid:")).split()
                if int(numbers[-1]) in inner:
                    found.append(int(name))
        except OSError:
            continue
    return sorted(found)


def config_of(trial: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trial.bundles[-1] / "config.json").read_text())
    return found
