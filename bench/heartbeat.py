"""Runs in the benchmark's containers in place of the workload's own start: the workload, and a heart that beats in it.

The longest time between two beats, as the container itself saw it, is how long it stood still. BENCH_WITHOUT names
parts of the workload that this container shall not have.
"""

import os
import sys
import threading
import time

sys.path.insert(0, "/workload")

import workload  # type: ignore[import-not-found]  # noqa: E402

BEAT = 0.001  # s


class Heartbeat:
    """A part of the workload: the question "heartbeat" is answered by the longest gap (s) since it was last asked."""

    def __init__(self) -> None:
        self.longest, self.beats = 0.0, 0
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(BEAT)
            now = time.monotonic()
            self.longest, last = max(self.longest, now - last), now
            self.beats += 1

    def check(self) -> dict[str, object]:
        seen = self.beats
        while self.beats < seen + 2:  # the first beat after a freeze may not have come yet
            time.sleep(BEAT)
        longest, self.longest = self.longest, 0.0
        return {"longest": longest}


def main() -> None:
    without = os.environ.get("BENCH_WITHOUT", "").split(",")
    os.environ["GRIT_PARTS"] = ",".join(name for name in workload.PARTS if name not in without)
    serve = workload.serve

    def with_heartbeat(made: workload.Workload) -> None:
        made.parts["heartbeat"] = Heartbeat()
        serve(made)

    workload.serve = with_heartbeat
    workload.main()


if __name__ == "__main__":
    main()
