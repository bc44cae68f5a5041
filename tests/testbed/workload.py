"""The program that runs in test containers: it holds everything that is hard to checkpoint, and answers questions.

It runs in the container with that image's Python, alone: `python3 -I -S /workload/workload.py`. Environment:
GRIT_PARTS     which parts it holds, by name, separated by commas (default: all of PARTS)
GRIT_MEMORY    MiB of random bytes (default 256)
GRIT_ADDRESS   the address its TCP sockets are bound to (default 127.0.0.1)

Talk: a file /run/workload/ask-N with {"question": ...} is answered by a file answer-N (both appear by rename).
Questions: "check" (all parts), the name of a part, "identity", "parts". An answer is a flat dict; "bad" lists the keys
of it that are not as they should be. What a part could not do is in "PART_error".
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time

sys.path.insert(0, "/workload")

from workload_files import FILES  # type: ignore[import-not-found] # noqa: E402
from workload_kernel import KERNEL  # type: ignore[import-not-found] # noqa: E402
from workload_sockets import SOCKETS  # type: ignore[import-not-found] # noqa: E402

TALK = "/run/workload"
#: The child is forked first, when nothing is there to inherit. The watches come next: CRIU dumps descriptors by number,
#: so they are what a dump without us fails at. epoll is last: it is over the others' descriptors.
ORDER = ("child", "watches", "fanotify", *FILES, *SOCKETS, "timer", "epoll")
PARTS = {name: {**FILES, **SOCKETS, **KERNEL}[name] for name in dict.fromkeys(ORDER)}


class Workload:
    def __init__(self) -> None:
        self.identity = {"identity": secrets.token_hex(16), "started": time.time(), "pid": os.getpid()}
        chosen = os.environ.get("GRIT_PARTS") or ",".join(PARTS)
        unknown = set(chosen.split(",")) - set(PARTS)
        if unknown:
            sys.exit(f"workload: no such parts: {sorted(unknown)}; there are {list(PARTS)}")
        self.parts: dict[str, object] = {}
        for name, make in PARTS.items():
            if name in chosen.split(","):
                self.parts[name] = make(self.parts)

    def answer(self, question: str, arguments: dict[str, object]) -> dict[str, object]:
        found: dict[str, object] = {**self.identity, "pid_now": os.getpid(), "hostname": os.uname().nodename}
        if question == "identity":
            return found
        if question == "parts":
            return {"parts": list(self.parts)}
        names = list(self.parts) if question == "check" else [question]
        for name in names:
            try:
                found.update(self.parts[name].check(**arguments))  # type: ignore[attr-defined]
            except Exception as error:
                found[f"{name}_error"] = f"{type(error).__name__}: {error}"
        found["bad"] = [key for key, value in found.items() if bad(key, value)]
        return found


def bad(key: str, value: object) -> bool:
    return value is False or key.endswith("_error") or (key.endswith("_gap") and value != 0)


def serve(workload: Workload) -> None:
    while True:
        for name in sorted(os.listdir(TALK)):
            if not name.startswith("ask-"):
                continue
            with open(f"{TALK}/{name}") as file:
                asked = json.load(file)
            os.unlink(f"{TALK}/{name}")
            try:
                found = workload.answer(asked.pop("question"), asked)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            number = name[len("ask-") :]
            with open(f"{TALK}/part-{number}", "w") as file:
                json.dump(found, file)
            os.rename(f"{TALK}/part-{number}", f"{TALK}/answer-{number}")
            print(f"answered {number}", flush=True)
        time.sleep(0.02)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.makedirs(TALK, exist_ok=True)
    workload = Workload()
    with open(f"{TALK}/ready", "w") as file:
        json.dump(workload.identity, file)
    print("ready", flush=True)
    serve(workload)


if __name__ == "__main__":
    main()
