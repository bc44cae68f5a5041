"""gritctl: one module for each command, each of which exports `command`, a click command.

Exit codes, the same for all of them: OK (ready, done, nothing wrong), BAD (refused, or something is wrong),
UNKNOWN (could not be determined; also click's own code for a mistake in the command line).
"""

from __future__ import annotations

OK, BAD, UNKNOWN = 0, 1, 2
