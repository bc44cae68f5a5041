"""The record of one operation, made while it runs: phases with their durations, bytes, the reason if it is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grit_runtime.checks import Refusal, refuse
from grit_runtime.settings import Settings


class Recording:
    """What `records.keep` will write. `logs` are CRIU's, `kept` is the folder where they were put."""

    def __init__(self, operation: str, container: str, settings: Settings) -> None:
        self.settings = settings
        self.logs: list[str] = []
        self.content: dict[str, Any] = {
            "operation": operation, "result": "ok", "reason": "", "message": "", "container": container,
            "started": time.time(), "seconds": 0.0, "phases": {}, "bytes": {}, "notes": [],
        }  # fmt: skip
        self._start = time.monotonic()
        self.kept: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; phases may nest."""
        start = time.monotonic()
        try:
            yield
        finally:
            phases = self.content["phases"]
            phases[name] = round(phases.get(name, 0.0) + time.monotonic() - start, 6)

    def note(self, text: str) -> None:
        """Something that a person who reads the record should know, and that failed nothing."""
        self.content["notes"].append(text)

    def failed(self, reason: str, **facts: object) -> Refusal:
        """The refusal of an operation that CRIU gave up; its fact `log` becomes the folder where the logs are kept."""
        refusal = refuse(reason, **facts)
        self.content.update(result="failed", reason=reason, message=refusal.message)
        return refuse(reason, **{**facts, "log": self.keep() or facts["log"]})

    def keep(self) -> str | None:
        """Keep the logs and the record as it stands; the folder's path. A second call writes nothing."""
        if self.kept is None:
            from grit_runtime import records

            self.content["seconds"] = round(time.monotonic() - self._start, 6)
            content, settings = self.content, self.settings
            self.kept = records.keep(content["container"], content["operation"], content, self.logs, settings)
            records.metrics(settings, content)
        return self.kept


@contextmanager
def recording(operation: str, container: str, settings: Settings) -> Iterator[Recording]:
    """Keep a record of the block, however it ends."""
    record = Recording(operation, container, settings)
    try:
        yield record
    except Refusal as refusal:
        if record.kept is None:
            record.content.update(result="refused", reason=refusal.reason, message=refusal.message)
        raise
    except BaseException as error:
        record.content.update(result="failed", reason="internal-error", message=str(error))
        raise
    finally:
        record.keep()
