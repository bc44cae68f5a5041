"""Work that goes on in a thread while CRIU does its own in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Aside(Generic[Result]):
    """`work` in a thread, begun at once. `wait` returns what it returns, and raises what it raises."""

    def __init__(self, work: Callable[[], Result]) -> None:
        import threading

        self._work = work
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> Result:
        """Until it is done. May be called again."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error
