"""Reasons about the rw layer, /dev/shm, where a checkpoint lies, and what a pod may ask for."""

from __future__ import annotations

from grit_runtime.checks import Reason

REASONS: dict[str, Reason] = {
    "layer-upper-unknown": Reason(
        "the writable directory of the container's overlay, {upper}, is not where the mount table says",
        "Look at the overlay line of /proc/PID/mountinfo; if nothing need be carried, set rw_layer = false",
    ),
    "layer-unreadable": Reason(
        "the container's writable layer cannot be saved: {path}: {error}",
        "Free what holds it or mend the file system, and checkpoint again; rw_layer = false leaves the layer out",
    ),
    "layer-unwritable": Reason(
        "{path} cannot be written: {error}",
        "The checkpoint folder needs room for the container's writable layer and must be writable for root",
    ),
    "layer-corrupt": Reason(
        "{path} is not a whole tar archive: {detail}",
        "Copy the checkpoint again, or make a new one",
    ),
    "layer-hostile": Reason(
        "{path} holds a member that no layer may hold: {member}: {detail}",
        "Do not use this checkpoint: it was not made by a container runtime, or it was altered",
    ),
    "layer-too-large": Reason(
        "{path} unpacks to more than the {room} bytes that are free below {target}",
        "Make room on this node, or look whether the archive was altered",
    ),
    "layer-apply-failed": Reason(
        "the writable layer {path} cannot be applied: {member}: {error}",
        "The container is deleted with its root filesystem, so nothing has to be undone; mend the cause and try again",
    ),
    "shm-conflict": Reason(
        "/dev/shm of this pod already holds another {member}",
        "Restore the pod's containers into a fresh pod; a name in /dev/shm can be taken only once",
    ),
    "shm-too-small": Reason(
        "/dev/shm needs {need} bytes and has {room} free",
        "Give the new pod's /dev/shm at least the size that the old one had",
    ),
    "checkpoint-path-invalid": Reason(
        "the checkpoint's path {path} is not usable: {detail}",
        "Give the absolute path of the checkpoint's folder or tar file, without .. in it",
    ),
    "checkpoint-path-outside": Reason(
        "{path} is not below a folder from which this node restores ({roots})",
        "Put the checkpoint there, or add its folder to roots in the section [restore] of config.toml",
    ),
    "checkpoint-path-unsafe": Reason(
        "{path} cannot be trusted: {detail}",
        "Checkpoints are root's alone: chown root, chmod go-w, and no symbolic links below the configured folder",
    ),
    "checkpoint-not-found": Reason(
        "there is no checkpoint for container {name} in {path}",
        "A checkpoint is FOLDER/CONTAINER/checkpoint with CRIU's images; see what was copied, and the name",
    ),
    "download-timeout": Reason(
        "the checkpoint in {path} did not become complete within {wait} seconds",
        "Let the copy end first (its last file is download-state, or grit.json in the image folder), or raise wait",
    ),
    "checkpoint-archive-unreadable": Reason(
        "the checkpoint archive {path} cannot be unpacked: {error}",
        "It must be a tar file, plain or gzip, with a folder checkpoint/ in it, and fit below /var/lib/grit-runtime",
    ),
    "container-name-invalid": Reason(
        "{name} is not usable as the name of a container's folder",
        "The name comes from the pod's specification; it may hold no slash and be neither . nor ..",
    ),
    "annotation-invalid": Reason(
        "the annotation {key} is not usable: {detail}",
        "Correct it in the pod's metadata and create the pod again",
    ),
    "allow-not-permitted": Reason(
        "the pod asks to pass over {asked}, which this node does not leave to pods",
        "The node's admin can name it under allow in the section [restore] of config.toml",
    ),
}
