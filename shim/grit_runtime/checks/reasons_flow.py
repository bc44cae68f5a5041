"""Reasons of the flows themselves: checkpoint, restore, and what stands between two nodes."""

from __future__ import annotations

from grit_runtime.checks import Reason

REASONS = {
    "container-busy": Reason(
        "another operation is running on container {id}",
        "Wait for it to end; `gritctl recover` ends one whose process died.",
    ),
    "container-exists": Reason(
        "there is a container {id} already, so nothing can be restored under that name",
        "Delete it first, or restore under another name.",
    ),
    "container-held": Reason(
        "container {id} was restored and has not been started yet, so it isn't paused",
        "Start it.",
    ),
    "container-lost": Reason(
        "the container's first process {pid} ended, and its exit code went elsewhere",
        "Run it detached, and read its state.",
    ),
    "container-not-running": Reason(
        "container {id} is {status}, so there is nothing to dump",
        "Start it first.",
    ),
    "cgroup-unknown": Reason(
        "process {pid} is in no control group that can freeze it",
        "Mount the freezer controller (version 1) or the unified hierarchy (version 2) below /sys/fs/cgroup.",
    ),
    "freeze-timeout": Reason(
        "the control group {cgroup} did not freeze within {seconds} s; it runs on",
        "A task in uninterruptible sleep (state D in ps) keeps it: wait for its I/O, then try again.",
    ),
    "runtime-timeout": Reason(
        "{command} and CRIU did not end within {seconds} s and were ended",
        "Raise `timeout` in the configuration's [checkpoint] table if the images are large; else see CRIU's log.",
    ),
    "dump-failed": Reason(
        "CRIU could not dump container {id}, which runs on: {error}",
        "`gritctl diagnose {log}` explains it.",
    ),
    "restore-failed": Reason(
        "CRIU could not restore container {id}, of which nothing is left: {error}",
        "`gritctl diagnose {log}` explains it.",
    ),
    "images-unwritable": Reason(
        "the image folder {path} can't be written: {error}",
        "Name a folder on a file system with room that root can write.",
    ),
    "injection-failed": Reason(
        "{runtime} did not add its mounts and devices to the restored container's spec: {error}",
        "Check the toolkit's configuration; a new container with a GPU has to work first.",
    ),
    "manifest-missing": Reason(
        "{path} has no grit.json, so it is not a finished checkpoint made by grit-runtime",
        "Name the folder of a finished checkpoint; one that was interrupted can't be used.",
    ),
    "manifest-broken": Reason(
        "{path} can't be read as a manifest: {error}",
        "Copy the checkpoint again, or make a new one.",
    ),
    "manifest-future": Reason(
        "{path} has format {format}, and this grit-runtime knows formats up to {known}",
        "Upgrade grit-runtime on this node.",
    ),
    "image-changed": Reason(
        "{name} in {path} is not as the checkpoint left it: {what}",
        "Copy the checkpoint again.",
    ),
    "arch-mismatch": Reason(
        "the checkpoint was made on {theirs}, and this node is {ours}",
        "Restore it on a node of the same architecture.",
    ),
    "cpu-mismatch": Reason(
        "this node's processor lacks what the checkpoint's processes may use: {missing}",
        "Restore it on a node with the same or a newer processor.",
    ),
    "criu-older": Reason(
        "the checkpoint was made by CRIU {theirs}, and this node has {ours}",
        "Install CRIU {theirs} or newer on this node.",
    ),
    "runtime-differs": Reason(
        "the checkpoint was made through {theirs}, and this node has {ours}; they name mounts differently",
        "Restore it through {theirs}.",
    ),
    "file-differs": Reason(
        "{path} is another file here than where the checkpoint was made",
        "Use the same image and the same driver version on both nodes.",
    ),
    "file-missing": Reason(
        "{path}, which the checkpoint's processes have mapped, is not there in the new container",
        "Use the same image and the same driver version on both nodes.",
    ),
    "terminal-needs-console": Reason(
        "container {id} had a terminal, and the restore got no --console-socket",
        "Restore it attached, or pass --console-socket.",
    ),
    "mount-through-symlink": Reason(
        "the image mounts something at {path}, and in the new rootfs a symlink is on the way there",
        "Restore it with the image and the layer that it was made with.",
    ),
    "pid-in-use": Reason(
        "PID {pid} of the checkpoint is taken in the pid namespace that the container shares",
        "Restore it into a pod where these PIDs are free, or don't share the pid namespace.",
    ),
    "privilege-raised": Reason(
        "the checkpoint's process {pid} has {what}, which this container's spec does not give",
        "Restore it into a container with the same security context.",
    ),
    "outside-namespaces": Reason(
        "the checkpoint's processes were not in a {kind} namespace of their own, and this container's spec gives one",
        "Restore it into a container with the same namespaces.",
    ),
}
