"""The helper process: libcuda and NVML behind lines of JSON on stdin and stdout.

One helper serves one operation, with one cuInit. Every request runs in a thread of its own, so all processes are
suspended at the same time; answers come in the order in which they are ready, with the request's number.
When stdin ends it waits for the calls that run (a checkpoint cut in the middle helps nobody) and leaves.

    {"n": 1, "do": "open", "way": "auto", "binary": "cuda-checkpoint", "timeout": 120}
    {"n": 1, "ok": {"way": "driver", "cuda": 13000, ...}}
    {"n": 2, "do": "lock", "pid": 4711, "timeout_ms": 60000}
    {"n": 2, "ok": {"result": 0, "seconds": 0.01}}
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import binary, driver, names, nvml

Answer = dict[str, Any]


class Server:
    """What is open: the way to CUDA (`driver` or `binary`) and NVML, each once."""

    def __init__(self) -> None:
        self.way: driver.Driver | binary.Binary | None = None
        self.uuids: list[str] = []
        self.nvml: Any = None
        self.no_nvml = "NVML was not opened"

    def open(self, way: str, path: str, timeout: float) -> Answer:
        """Choose the way by asking what is there; `problem` in the answer names why there is none."""
        try:
            self.nvml = nvml.load()
        except nvml.Missing as error:
            self.no_nvml = str(error)
        answer: Answer = {
            "way": "",
            "cuda": 0,
            "driver": nvml.driver_version(self.nvml) if self.nvml else "",
            "no_nvml": "" if self.nvml else self.no_nvml,
            "machine": os.uname().machine,
        }
        library = driver.load("libcuda.so.1")
        if library is None:
            return answer | {"problem": "libcuda"}
        capable = driver.Driver.able(library)
        program = shutil.which(path)
        if way == "driver" and not capable:
            return answer | {"problem": "old"}
        if way in ("auto", "driver") and capable:
            self.way = cuda = driver.Driver(library)
            result = cuda.init()
            if result != names.SUCCESS:
                return answer | {"problem": "init", "result": result}
            self.uuids = cuda.uuids()
            return answer | {"way": "driver", "cuda": cuda.version(), "maps": cuda.version() >= 13000}
        if program is None:
            return answer | {"problem": "binary" if way == "binary" else "old"}
        self.way = tool = binary.Binary(program, timeout)
        return answer | {"way": "binary", "actions": tool.actions, "maps": tool.maps}

    def inventory(self) -> Answer:
        """All GPUs of the node in CUDA's order (in NVML's, where CUDA was not asked)."""
        if self.nvml is None:
            return {"problem": self.no_nvml}
        known = nvml.gpus(self.nvml)
        order = [uuid for uuid in self.uuids if uuid in known] or list(known)
        return {"gpus": [{"uuid": uuid, **known[uuid]} for uuid in order]}

    def usage(self) -> Answer:
        if self.nvml is None:
            return {"problem": self.no_nvml}
        used = {str(pid): share for pid, share in nvml.usage(self.nvml).items()}
        return {"usage": used, "mps": nvml.served_by_mps(self.nvml)}

    def state(self, pid: int) -> Answer:
        result, state = self._cuda().state(pid)
        return {"result": result, "state": state}

    def lock(self, pid: int, timeout_ms: int) -> Answer:
        return timed(lambda: self._cuda().lock(pid, timeout_ms))

    def checkpoint(self, pid: int) -> Answer:
        return timed(lambda: self._cuda().checkpoint(pid))

    def restore(self, pid: int, pairs: list[list[str]]) -> Answer:
        return timed(lambda: self._cuda().restore(pid, [(old, new) for old, new in pairs]))

    def unlock(self, pid: int) -> Answer:
        return timed(lambda: self._cuda().unlock(pid))

    def _cuda(self) -> driver.Driver | binary.Binary:
        if self.way is None:
            raise RuntimeError("CUDA was not opened")
        return self.way


def timed(call: Callable[[], int]) -> Answer:
    begin = time.monotonic()
    result = call()
    return {"result": result, "seconds": round(time.monotonic() - begin, 4)}


def main() -> None:
    server, writing, running = Server(), threading.Lock(), []
    # libraries print what they like on fd 1: answers go to a copy of it, and fd 1 becomes stderr
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def serve(number: int, do: str, arguments: Answer) -> None:
        try:
            answer: Answer = {"n": number, "ok": getattr(server, do)(**arguments)}
        except Exception as error:  # whatever went wrong belongs to the one who asked
            answer = {"n": number, "error": f"{type(error).__name__}: {error}"}
        with writing:
            try:
                print(json.dumps(answer), file=out, flush=True)
            except OSError:
                pass  # nobody listens any more

    for line in sys.stdin:
        request = json.loads(line)
        thread = threading.Thread(target=serve, args=(request.pop("n"), request.pop("do"), request), daemon=True)
        thread.start()
        running.append(thread)
    for thread in running:
        thread.join()
    sys.stderr.flush()
    os._exit(0)  # libcuda's own threads and exit handlers have nothing left to do here


if __name__ == "__main__":
    main()
