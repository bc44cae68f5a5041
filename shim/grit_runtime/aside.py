"""Work that goes on in a thread while CRIU does its own in another process."""

from __future__ import annotations

from collections.abc import Callable


class Aside:
    """`work` in a thread, begun at once. What it raises, `wait` raises."""

    def __init__(self, work: Callable[[], None]) -> None:
        import threading

        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it is done. May be called again."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
