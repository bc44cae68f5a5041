"""Reasons: inotify and fanotify watches, timers."""

from __future__ import annotations

from . import Reason

REASONS: dict[str, Reason] = {
    "watch-not-found": Reason(
        "the {what} of process {pid}, descriptor {fd}, is on inode {ino} of device {dev}, and no path in the container"
        " leads to it ({searched})",
        "Let the program remove that watch, or look what it watches: a file on a file system that is unmounted or"
        " covered, or deleted and no longer open",
    ),
    "fanotify-filesystem-mark": Reason(
        "process {pid}, descriptor {fd}, has a fanotify mark on a whole file system (device {dev}) that is not mounted"
        " in the container",
        "Stop the program that watches a file system of the node, or run it outside of the container that moves",
    ),
    "fanotify-mark-unknown": Reason(
        "process {pid}, descriptor {fd}, has a fanotify mark of a kind that cannot be put back: {line}",
        "Stop that program before the checkpoint, or let it remove the mark",
    ),
    "fanotify-permission-pending": Reason(
        "process {pid}, descriptor {fd}, has {bytes} bytes of fanotify permission events that it has not answered, and"
        " tasks wait for the answer",
        "Try again when the program has answered; if that never happens, stop it before the checkpoint",
    ),
    "watches-too-many": Reason(
        "the container has {count} watches, or more than a million descriptors of inotify, fanotify and running timers",
        "Checkpoint it when it has fewer",
    ),
    "watches-detach-failed": Reason(
        "the {what} of process {pid}, descriptor {fd}, could not be taken away: {error}",
        "Nothing was changed. Is the container frozen, and are we root with CAP_SYS_PTRACE?",
    ),
    "watches-record-invalid": Reason(
        "the checkpoint's record of watches and timers is not one that grit-runtime writes: {what}",
        "Do not trust this checkpoint: make a new one, or find out who changed it",
    ),
}
