#!/usr/bin/env python3
"""Proof on a real NVIDIA GPU that containers on it freeze and come back. Run by hand, as root; CI has no GPU.

    PYTHONPATH=shim:. python3 tests/gpu/device/prove.py [--out FOLDER] [SCENARIO...]

The machine needs driver 570 or newer, nvidia-container-runtime, runc, CRIU 4.2, PyTorch in its python3, and this
package installed. Every scenario prints what it saw; FOLDER gets proof.json and proof.md, the table for
docs/gpu-results.md. A scenario that fails does not stop the others; the exit code is 1 then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grit_runtime import cgroup, gpu, records, settings
from grit_runtime.cuda import client
from grit_runtime.cuda.trial import Trial

from tests.gpu.device import machine

GIB = 1 << 30
IMAGES = Path("/dev/shm/gpu-proof")
Facts = dict[str, Any]


def trial(name: str, *program: str, torch: bool = False, **more: Any) -> Trial:
    words = [*program, *(["--torch"] if torch else [])]
    return Trial(f"/run/gpu-proof/{name}", f"proof-{name}", words, python=machine.PYTHON, **more)


def images(name: str) -> str:
    shutil.rmtree(IMAGES / name, ignore_errors=True)
    return str(IMAGES / name)


def size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def check(what: str, true: object) -> None:
    if not true:
        raise AssertionError(what)


def round_trip(made: Trial, folder: str) -> Facts:
    """Checkpoint, restore into a fresh bundle, compare: the heart of most scenarios."""
    made.start()
    before, ticks = made.hashes(), made.ask()["ticks"]
    dumped = made.checkpoint(folder)
    check("the container is gone after its checkpoint", not made.state())
    back = made.restore(folder)
    after = made.ask()
    check("the hashes of GPU memory are equal", made.hashes() == before)
    check("it counts on from where it was", after["ticks"] >= ticks)
    return {
        "hashes": len(before),
        "first hash": before[0],
        "counter": f"{ticks} -> {after['ticks']}",
        "checkpoint s": round(dumped.seconds, 2),
        "restore s": round(back.seconds, 2),
        "images MiB": size(folder) >> 20,
        "past CRIU MiB": sum(path.stat().st_size for path in Path(folder).glob("gpu-*.mem")) >> 20,
        "watch events": after["watches"],
    }


def counter() -> Facts:
    """A plain CUDA program (libcuda alone), 1 GiB: counter and hash."""
    with trial("counter", "--bytes", str(GIB)) as made:
        return round_trip(made, images("counter"))


def pytorch_watches() -> Facts:
    """PyTorch with 2 GiB, and an inotify watch on a file of the overlay, which CRIU alone cannot dump."""
    with trial("pytorch", "--bytes", str(2 * GIB), "--watch", torch=True) as made:
        found = round_trip(made, images("pytorch"))
        check("the watch brings its event after the restore", found["watch events"])
        return found


def fresh_bundle() -> Facts:
    """The restore's bundle was never injected: what the real nvidia-container-runtime adds comes by us."""
    with trial("fresh", "--bytes", str(GIB // 4)) as made:
        made.start()
        hashes = made.hashes()
        init = made.state()["pid"]
        mounts = Path(f"/proc/{init}/mountinfo").read_text().count("nvidia")
        folder = images("fresh")
        made.checkpoint(folder)
        bundle = made.bundle()
        text = (bundle / "config.json").read_text()
        check("the fresh spec has no NVIDIA mount or device", "/dev/nvidia" not in text and "libcuda" not in text)
        words = ("--bundle", str(bundle), "--image-path", folder, "--work-path", made.work(), made.name)
        made.call("restore", "--detach", *words)
        check("hash", made.hashes() == hashes)
        now = Path(f"/proc/{made.state()['pid']}/mountinfo").read_text().count("nvidia")
        devices = sorted(path.name for path in Path(f"/proc/{made.state()['pid']}/root/dev").glob("nvidia*"))
        check("as many NVIDIA mounts as before", now == mounts)
        return {"nvidia mounts": f"{mounts} -> {now}", "devices": devices}


def paused() -> Facts:
    """Paused by the caller, as containerd does; then restored. And paused with --leave-running: still paused after."""
    with trial("paused", "--bytes", str(GIB)) as made:
        made.start()
        hashes = made.hashes()
        made.call("pause", made.name)
        made.checkpoint(images("paused-stay"), "--leave-running")
        check("still paused", made.state()["status"] == "paused")
        made.call("resume", made.name)
        check("hash after it was left running", made.hashes() == hashes)
        made.call("pause", made.name)
        folder = images("paused")
        made.checkpoint(folder)
        made.restore(folder)
        check("hash after the restore", made.hashes() == hashes)
        return {"hash": hashes[0], "status after --leave-running": "paused"}


# In the place of `criu`: it gives up whatever runc asks of it.
NO_CRIU = """#!/bin/sh
case " $* " in *" swrk "*) exit 1 ;; esac
exec {criu} "$@"
"""


def failed_dump() -> Facts:
    """CRIU fails when the GPU's memory has been taken out: it comes back, and the container runs on."""
    place = Path("/run/gpu-proof-no-criu")
    place.mkdir(exist_ok=True)
    (place / "criu").write_text(NO_CRIU.format(criu=shutil.which("criu")))
    (place / "criu").chmod(0o755)
    runtime = ("env", f"PATH={place}:{os.environ['PATH']}", "grit-runtime")
    with trial("failed", "--bytes", str(2 * GIB), "--processes", "2", torch=True) as made:
        made.start()
        hashes, ticks = made.hashes(), made.ask()["ticks"]
        folder = images("failed")
        made.runtime, usual = list(runtime), made.runtime
        done = made.checkpoint(folder, check=False)
        made.runtime = usual
        check("it failed", done.code != 0 and "dump-failed" in done.output)
        [record] = [kept.record() for kept in records.listing(made.name)]
        check("the memory had been taken out", record["phases"].get("save"))
        check("nothing of the dump is left", not list(Path(folder).glob("*.img")) + list(Path(folder).glob("*.mem")))
        check("it runs on, the hashes are equal", made.hashes() == hashes and made.ask()["ticks"] > ticks)
        made.checkpoint(folder)
        made.restore(folder)
        check("a second checkpoint is good", made.hashes() == hashes)
        return {"failure": done.output.splitlines()[-1], "save s": record["phases"]["save"]}


def memory_limit() -> Facts:
    """4 GiB on the GPU under a memory limit of 3 GiB: by hand it is killed, with us it lives on and comes back."""
    program = ("--bytes", str(4 * GIB))
    with trial("limit-hand", *program, limit=3 * GIB) as made:
        made.start()
        pid = machine.host_pids(made)[0]
        for words in (("lock",), ("checkpoint",)):
            subprocess.run(["cuda-checkpoint", "--action", *words, "--pid", str(pid)], timeout=120, check=False)
        end = time.monotonic() + 30
        while (by_hand := made.state().get("status")) == "running" and time.monotonic() < end:
            time.sleep(0.2)
        group = cgroup_memory(made.name)
    check("by hand the container is killed", by_hand != "running")
    with trial("limit", *program, limit=3 * GIB) as made:
        made.start()
        hashes = made.hashes()
        made.checkpoint(images("limit-stay"), "--leave-running")
        check("alive, hash equal", made.hashes() == hashes)
        check("the limit is back", limit_of(made.name) == 3 * GIB)
        folder = images("limit")
        made.checkpoint(folder)
        made.restore(folder)
        check("hash after the restore", made.hashes() == hashes)
        check("the limit is what the spec says", limit_of(made.name) == 3 * GIB)
        return {"without us": by_hand, "with us": made.state()["status"], "limit MiB": 3072, "GPU MiB": 4096, **group}


def cgroup_memory(name: str) -> Facts:
    for place in (f"/sys/fs/cgroup/{name}/memory.events",):
        try:
            return {"memory.events without us": " ".join(Path(place).read_text().split())}
        except OSError:
            continue
    return {}


def limit_of(name: str) -> int:
    for place in (f"/sys/fs/cgroup/{name}/memory.max",
                  f"/sys/fs/cgroup/memory/{name}/memory.limit_in_bytes"):  # fmt: skip
        if os.path.exists(place):
            return int(Path(place).read_text())
    return 0


def four_processes() -> Facts:
    """Four PyTorch processes of 2 GiB in one container."""
    with trial("four", "--bytes", str(2 * GIB), "--processes", "4", torch=True) as made:
        return round_trip(made, images("four"))


def leave_running() -> Facts:
    """--leave-running: the container goes on as it was, and the checkpoint is good for a second one."""
    with trial("stay", "--bytes", str(GIB)) as made:
        made.start()
        hashes, pid, ticks = made.hashes(), made.state()["pid"], made.ask()["ticks"]
        folder = images("stay")
        made.checkpoint(folder, "--leave-running")
        check("the same process", made.state()["pid"] == pid)
        check("hash", made.hashes() == hashes)
        on = made.ask()["ticks"]
        made.delete()
        made.restore(folder)
        check("hash of the copy", made.hashes() == hashes)
        return {"counter left running": f"{ticks} -> {on}", "counter restored": made.ask()["ticks"], "hash": hashes[0]}


def managed_memory() -> Facts:
    """Managed memory: refused by name, and the process runs on."""
    with trial("managed", "--bytes", str(64 << 20), "--managed") as made:
        made.start()
        hashes, ticks = made.hashes(), made.ask()["ticks"]
        done = made.checkpoint(images("managed"), check=False)
        check("refused", done.code != 0 and "cuda-managed-memory" in done.output)
        check("it runs on", made.hashes() == hashes and made.ask()["ticks"] > ticks)
        return {"refusal": done.output.splitlines()[-1], "status": made.state()["status"]}


def forked_child() -> Facts:
    """A forked child that holds the GPU: refused by name before anything is changed."""
    with trial("forked", "--bytes", str(64 << 20), "--fork") as made:
        made.start()
        done = made.checkpoint(images("forked"), check=False)
        check("refused", done.code != 0 and "gpu-forked-child" in done.output)
        check("it runs on", made.hashes())
        return {"refusal": done.output.splitlines()[-1]}


def full_map() -> Facts:
    """A restore passes a map with every GPU that the process saw; half of one would be refused by the driver."""
    with trial("map", "--bytes", str(GIB // 4)) as made:
        made.start()
        hashes = made.hashes()
        folder = images("map")
        made.checkpoint(folder)
        part = json.loads((Path(folder) / "grit.json").read_text())["gpu"]
        devices = [{"path": f"/dev/{path.name}", "minor": os.minor(path.stat().st_rdev)} for path in gpu_nodes()]
        pairs = gpu.plan_restore(settings.load().cuda, part, {"linux": {"devices": devices}}).pairs
        check("the map names every GPU", [old for old, _ in pairs] == [row["uuid"] for row in part["gpus"]])
        made.restore(folder)
        check("hash", made.hashes() == hashes)
        return {"gpuPairs": pairs, "driver": part["driver"], "gpus": [row["model"] for row in part["gpus"]]}


def gpu_nodes() -> list[Path]:
    return [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]


def with_the_program() -> Facts:
    """The other way: NVIDIA's cuda-checkpoint in place of the driver's API."""
    config = Path("/run/gpu-proof-binary.toml")
    text = Path(settings.config_path()).read_text()
    config.write_text(text.replace('way = "auto"', 'way = "binary"'))
    runtime = ("env", f"GRIT_RUNTIME_CONFIG={config}", "grit-runtime")
    with trial("binary", "--bytes", str(GIB), "--processes", "2", runtime=runtime) as made:
        return round_trip(made, images("binary"))


def gpu_test() -> Facts:
    """gritctl gpu-test, as an admin runs it."""
    done = subprocess.run(["gritctl", "gpu-test", "--python", shutil.which(machine.PYTHON) or ""], capture_output=True,
                          text=True, timeout=300, check=False)  # fmt: skip
    check(f"gritctl gpu-test: {done.stderr[-500:]}", done.returncode == 0)
    return {"output": done.stdout.splitlines()}


def frozen_answers() -> Facts:
    """What the driver answers about a frozen process, and how long it takes: not a pass or a failure, a fact."""
    with trial("frozen", "--bytes", str(64 << 20)) as made:
        made.start()
        pid = machine.host_pids(made)[0]
        group = cgroup.of(pid)
        found: Facts = {}
        helper = client.Helper()
        try:
            cgroup.freeze(group)
            begin = time.monotonic()
            answer = helper.states([pid], 5)[pid]
            found["GetState when frozen"] = f"{answer} after {time.monotonic() - begin:.3f} s"
        finally:
            cgroup.thaw(group)
            helper.close(1)
        check("it runs on", made.hashes())
        return found


SCENARIOS: dict[str, Callable[[], Facts]] = {
    one.__name__: one
    for one in (counter, pytorch_watches, fresh_bundle, paused, leave_running, failed_dump, memory_limit,
                four_processes, managed_memory, forked_child, full_map, with_the_program, gpu_test, frozen_answers)
}  # fmt: skip


def run(name: str) -> Facts:
    """One scenario: its facts, `verdict` and `seconds`."""
    begin, made = time.monotonic(), SCENARIOS[name]
    print(f"\n== {name}: {made.__doc__}", flush=True)
    try:
        found = {"verdict": "passed", **made()}
    except Exception as error:
        traceback.print_exc(limit=6, file=sys.stdout)
        found = {"verdict": "FAILED", "error": f"{type(error).__name__}: {error}"}
    shutil.rmtree(IMAGES, ignore_errors=True)
    found["seconds"] = round(time.monotonic() - begin, 1)
    print("\n".join(f"   {key}: {value}" for key, value in found.items()), flush=True)
    return found


def markdown(machine_facts: dict[str, str], results: dict[str, Facts], command: str) -> str:
    """The part of docs/gpu-results.md that this run gives. Pure."""
    lines = [f"Run of {machine_facts['date']}: `{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in machine_facts.items() if key != "date"]
    lines += ["", "| scenario | what | verdict | seen |", "|---|---|---|---|"]
    for name, found in results.items():
        seen = "; ".join(f"{key}: {value}" for key, value in found.items() if key not in ("verdict", "output"))
        what = (SCENARIOS[name].__doc__ or "").rstrip(".")
        lines.append(f"| {name} | {what} | {found['verdict']} | {seen.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    out = Path(words[words.index("--out") + 1]) if "--out" in words else Path("build")
    wanted = [word for word in words if word in SCENARIOS] or list(SCENARIOS)
    out.mkdir(parents=True, exist_ok=True)
    found = machine.facts()
    print("\n".join(f"{key}: {value}" for key, value in found.items()), flush=True)
    results: dict[str, Facts] = {}
    for name in wanted:
        results[name] = run(name)
        (out / "proof.json").write_text(json.dumps({"machine": found, "results": results}, indent=1) + "\n")
    command = "PYTHONPATH=shim:. python3 tests/gpu/device/prove.py"
    (out / "proof.md").write_text(markdown(found, results, command))
    failed = [name for name, result in results.items() if result["verdict"] != "passed"]
    logs = Path("/var/lib/grit-runtime/logs")
    if failed and logs.exists():
        subprocess.run(["tar", "-C", str(logs), "-czf", str(out / "logs.tgz"), "."], timeout=60, check=False)
    print(f"\n{len(results) - len(failed)} of {len(results)} passed" + (f"; failed: {failed}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
