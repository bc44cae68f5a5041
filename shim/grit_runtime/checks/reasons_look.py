"""Reasons about what the processes of a container hold, and about its mounts."""

from __future__ import annotations

from grit_runtime.checks import Reason

REASONS = {
    # what a process holds
    "io-uring": Reason(
        "process {process} uses io_uring ({object}), which CRIU can't dump",
        "Turn it off in the program (UV_USE_IO_URING=0 for libuv and uvloop), or deny io_uring_setup by seccomp.",
    ),
    "perf-event": Reason(
        "process {process} has a perf event open ({object}), which CRIU can't dump",
        "End the profiler, then checkpoint again.",
    ),
    "userfaultfd": Reason(
        "process {process} has a userfaultfd open ({object}), which CRIU can't dump",
        "Close it, or turn off what uses it: post-copy migration, some garbage collectors.",
    ),
    "bpf-program": Reason(
        "process {process} holds a BPF program or link ({object}), which CRIU can't dump",
        "Let a process outside the container load it, and close it here.",
    ),
    "bpf-map": Reason(
        "process {process} holds a BPF map ({object}), which CRIU can't dump as distributions build it",
        "Close it before the checkpoint.",
    ),
    "secret-memory": Reason(
        "process {process} uses memfd_secret ({object}), whose content nobody but it can read",
        "Turn it off in the program, or boot the node with secretmem.enable=0.",
    ),
    "pidfd": Reason(
        "process {process} holds a pidfd ({object}) of process {target}, which is not in the container",
        "Close it before the checkpoint.",
    ),
    "pidfd-thread": Reason(
        "process {process} holds a pidfd of a thread ({object}), which CRIU can't dump",
        "Close it before the checkpoint.",
    ),
    "message-queue": Reason(
        "process {process} has the message queue {path} open ({object}), which CRIU can't dump",
        "Close it before the checkpoint.",
    ),
    "netlink-unread": Reason(
        "process {process} has a netlink socket with data that it has not read ({object}), which CRIU can't dump",
        "Try again: this passes as soon as the program reads it.",
    ),
    "file-covered": Reason(
        "process {process} holds {path}, a file on a mount that another mount covers ({object})",
        "Close it before the checkpoint, or mount before the program starts.",
    ),
    "descriptor-unsupported": Reason(
        "process {process} holds an open {kind} ({object}), which CRIU can't dump",
        "Close it before the checkpoint.",
    ),
    "namespace-outside": Reason(
        "process {process} holds a namespace that no process of the container is in ({kind}, {object})",
        "Close it before the checkpoint.",
    ),
    "mptcp": Reason(
        "process {process} has a socket of multipath TCP ({object}), which CRIU can't dump",
        "Start the program with GODEBUG=multipathtcp=0 if it is written in Go, or set net.mptcp.enabled=0.",
    ),
    "socket-unsupported": Reason(
        "process {process} has a socket of protocol {protocol} ({object}), which CRIU can't dump",
        "Close it before the checkpoint.",
    ),
    "tcp-established": Reason(
        "process {process} has a TCP connection from {local} to {peer} ({object})",
        "Nothing to do: it goes on after a restore with the same address, and is ended cleanly with another one.",
    ),
    "in-flight-connection": Reason(
        "process {process} listens at {local} and has {count} connections that it has not accepted ({object})",
        "They are dropped by the checkpoint; the clients must connect again.",
    ),
    "unix-peer-outside": Reason(
        "process {process} has a Unix socket ({object}, {name}) connected to a process outside the container",
        "Close the connection before the checkpoint: only named datagram sockets can be left open.",
    ),
    "unix-datagram-outside": Reason(
        "process {process} sends to a Unix datagram socket outside the container ({object})",
        "Nothing to do, as long as the node of the restore has a socket at the same path.",
    ),
    "device-foreign": Reason(
        "process {process} has {path} open ({object}, device {major}:{minor}), which CRIU can't dump",
        "Close it before the checkpoint, or don't give the container the device.",
    ),
    "device-mapped": Reason(
        "process {process} has {object} mapped, which CRIU can't dump",
        "Unmap it before the checkpoint, or don't give the container the device.",
    ),
    "uprobe": Reason(
        "process {process} is traced by a uprobe",
        "End the tracer, then checkpoint again.",
    ),
    "ghost-too-large": Reason(
        "process {process} holds {object}, deleted, of {size}: over the limit of {limit}",
        "Raise checkpoint.ghost_limit, or close the file.",
    ),
    "ghost-file": Reason(
        "process {process} holds {object}, deleted, of {size}",
        "Nothing to do: its content goes with the image.",
    ),
    "link-remap": Reason(
        "process {process} holds {object}, whose name is deleted while others are left",
        "Nothing to do: CRIU gives it a name for the restore.",
    ),
    "stdio-file": Reason(
        "process {process} writes to {path}, a file of the host ({object})",
        "Nothing to do: the restore connects it to the new container's own.",
    ),
    "file-outside": Reason(
        "process {process} holds {path}, a file outside the container's mounts ({object})",
        "Close it before the checkpoint; start the program without handing it open files.",
    ),
    "file-lock": Reason(
        "process {process} holds a {kind} lock on {object}",
        "Nothing to do: it is held again after the restore.",
    ),
    "inotify": Reason(
        "process {process} watches files by inotify ({object})",
        "Nothing to do: the watches are taken away for the dump and put back.",
    ),
    "fanotify": Reason(
        "process {process} watches files by fanotify ({object})",
        "Nothing to do: the marks are taken away for the dump and put back.",
    ),
    "sysv-host": Reason(
        "process {process} has a System V shared memory of the host mapped ({object})",
        "Run the container in its own IPC namespace (no hostIPC).",
    ),
    "sysv-shared": Reason(
        "process {process} shares a System V memory ({object}) with {count} others outside the container",
        "End the others' use of it, or checkpoint the pod as one container.",
    ),
    # what a process is
    "traced": Reason(
        "process {process} ({object}) is traced by process {tracer}, outside the container",
        "Detach the debugger, then checkpoint again.",
    ),
    "nested-pid-namespace": Reason(
        "process {process} ({object}) is in a PID namespace of its own inside the container",
        "Run it without a sandbox of its own (Chromium: --no-sandbox), or in a container of its own.",
    ),
    "user-namespace": Reason(
        "process {process} ({object}) is in a user namespace of its own inside the container",
        "Run it without a sandbox of its own (Chromium: --no-sandbox), or in a container of its own.",
    ),
    "nested-namespace": Reason(
        "process {process} ({object}) is in a namespace of its own inside the container: {kind}",
        "Run it without a sandbox of its own, or in a container of its own.",
    ),
    "exec-session": Reason(
        "process {process} ({object}) was put into the container by exec and is not a child of its first process",
        "It ends with the checkpoint and does not come back; end the session first if it matters.",
    ),
    "session-outside": Reason(
        "process {process} ({object}) belongs to a session whose leader is outside the container",
        "End this process: an exec session that has ended left it behind.",
    ),
    "process-stray": Reason(
        "process {process} ({object}) was put into the container from outside, and not into its cgroup",
        "End it; enter a container by its runtime's exec, not by nsenter.",
    ),
    "task-stopped": Reason(
        "process {process} ({object}) is stopped by a signal, and under cgroup version 1 CRIU waits for it forever",
        "Continue it (kill -CONT), or run the node with cgroup version 2.",
    ),
    "terminal-outside": Reason(
        "process {process} has a terminal of the host open ({object})",
        "Start the container with a terminal of its own (terminal: true), or without one.",
    ),
    # the container as a whole
    "mount-behind-spec": Reason(
        "{object} was mounted into the container by somebody else than its runtime",
        "Nothing to do here; the restore needs the same mount in the new container's spec.",
    ),
    "overlay-stacked": Reason(
        "the layer {object} of the container's rootfs itself lies on an overlay, where CRIU can't find its files",
        "Keep the containers' layers on a file system of their own (a volume at /var/lib/containerd).",
    ),
    "host-network": Reason(
        "the container uses the host's network",
        "Its connections and addresses only come back on this node; ports must be free at the restore.",
    ),
    "runtime-other": Reason(
        "the container was not started through grit-runtime: nobody will take care of what is said to be handled",
        "Start it with the runtime handler grit (a RuntimeClass, --runtime, --runc-binary); see `gritctl install`.",
    ),
    # which container
    "container-not-found": Reason(
        "none of the {count} containers that run here has the id, name or pod {name}",
        "Name it as `ctr containers ls`, `crictl ps` or `podman ps` do, or give --root or --pid.",
    ),
    "container-ambiguous": Reason(
        "several containers have the name {name}: {ids}",
        "Name one of them by its id, or as NAMESPACE/POD or POD/CONTAINER.",
    ),
    "process-not-found": Reason("process {pid} is not there", "Name one that runs, as this node counts."),
    "look-not-permitted": Reason("the processes of {name} can't be read", "Run it as root."),
    # what a checkpoint needs
    "gpu-held": Reason(
        "{count} processes use GPUs and hold {size} there",
        "Nothing to do: they are suspended for the dump, all at once, and resumed afterwards.",
    ),
    "criu-check": Reason("CRIU is not at ease on this kernel: {what}", "See `gritctl doctor`."),
    "space-short": Reason(
        "{path} has {free} of free space, and the images may take {need}",
        "Make room, or give another folder.",
    ),
    # the mounts of a restore
    "mount-missing": Reason(
        "the image needs something mounted at {destination}, and nothing of this container's spec goes there. {whose}",
        "Give the new container the same mount, or list the destination in restore.optional_mounts.",
    ),
    "mount-version-differs": Reason(
        "the image needs {destination}, and this node has {here} in its place",
        "Restore on a node with the same driver version, or allow mount-version-differs if no process uses the file.",
    ),
    "mount-unexpected": Reason(
        "the image would mount {fstype} at {destination}, which the container's spec does not",
        "Restore it with the spec that it was made with, or allow mount-unexpected if the image is trusted.",
    ),
    "mount-flags-differ": Reason(
        "the image mounts {destination} without {flags}, which the container's spec asks for",
        "Restore it with the spec that it was made with, or allow mount-flags-differ if the image is trusted.",
    ),
    "masks-differ": Reason(
        "the image leaves {path} open, which the container's spec masks or makes read-only",
        "Checkpoint a container that has the same masks, or allow masks-differ if the image is trusted.",
    ),
}
