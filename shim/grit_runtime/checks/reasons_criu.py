"""Reasons that come from CRIU: its images, its configuration, and what its logs say."""

from __future__ import annotations

from grit_runtime.checks import Reason

REASONS = {
    # images
    "image-missing": Reason(
        "the checkpoint lacks {path}: {what}",
        "Copy the whole checkpoint again.",
    ),
    "image-truncated": Reason(
        "{path} is not as long as the other images say: {what}",
        "Copy the whole checkpoint again.",
    ),
    "image-malformed": Reason(
        "{path} is not an image of CRIU's: {what} at byte {offset}",
        "Copy the whole checkpoint again; don't restore it if it comes from elsewhere.",
    ),
    "image-format": Reason(
        "{path} has image format {version}, which is older or newer than what this CRIU can be given",
        "Make the checkpoint again with CRIU 4.1 or newer.",
    ),
    "image-incremental": Reason(
        "{path} is incremental: it needs the images at {parent} too",
        "Make a full checkpoint (without --parent-path); an incremental one can't be moved alone.",
    ),
    # the program and its configuration
    "criu-missing": Reason(
        "CRIU is not installed on this node",
        "Install the package criu (4.1 or newer; on kernel 6.16 and newer 4.2).",
    ),
    "criu-too-old": Reason(
        "CRIU {version} is installed, and 4.0 is the oldest that works here",
        "Install a newer criu; on kernel 6.16 and newer 4.2 is needed.",
    ),
    "criu-option": Reason(
        "the CRIU option {option} can't be set to '{value}': {what}",
        "Change the path or name that the value comes from.",
    ),
    # logs
    "log-unreadable": Reason(
        "the log {path} can't be read: {error}",
        "Name a log, an image folder or a checkpoint that you may read.",
    ),
    "log-cut": Reason(
        "the log ends in stage {stage} without an error: CRIU was killed, or the node went down",
        "See dmesg for the killer of processes without memory; `gritctl recover` undoes what such an end leaves.",
    ),
    "checkpoint-unknown": Reason(
        "{path} is no file, no folder and no container whose logs were kept",
        "Name a checkpoint's folder or archive, a log, or a container's id; `gritctl logs` lists what was kept.",
    ),
    "no-images": Reason(
        "{path} holds no images of CRIU's",
        "Name the folder of a checkpoint: the one with inventory.img, or the one above.",
    ),
    "archive-unreadable": Reason(
        "the archive {path} can't be read: {error}",
        "Copy it again; zstd archives have to be unpacked first.",
    ),
    "archive-not-verified": Reason(
        "{path} is an archive, whose files can't be compared where they are",
        "Unpack it below one of restore.roots, then verify the folder.",
    ),
    # what CRIU's logs say of mounts
    "mount-unmapped": Reason(
        "mount {mount} of the image ({place}) has no counterpart in the restored container's spec",
        "Restore through grit-runtime, which has NVIDIA's mounts made again; other mounts have to be in the new spec.",
    ),
    "mount-autodetected": Reason(
        "mount {mount} was dumped with `external mnt[]`, which a restore has to be given as well",
        "Make the checkpoint through grit-runtime, which names each mount.",
    ),
    "mount-unreachable": Reason(
        "mount {mount} was made behind the spec and shares propagation with the host",
        "Use the toolkit's CDI mode, in which all NVIDIA mounts are in the spec; or checkpoint through grit-runtime.",
    ),
    "mount-foreign": Reason(
        "mount {mount} is bound from outside the container, and nothing in the spec says so",
        "Checkpoint through grit-runtime, which names such mounts to CRIU.",
    ),
    "mount-source-symlink": Reason(
        "the source of mount {mount} ({place}) is a symbolic link or can't be bound",
        "Name the real file in the spec; grit-runtime does so for what it injects.",
    ),
    "mount-sharing": Reason(
        "CRIU's mount engine could not copy the propagation of a mount: {what}",
        "Make the container's volumes rprivate, or set mntns-compat-mode in CRIU's configuration.",
    ),
    "mountpoint-missing": Reason(
        "the mountpoint {path} is not there in the new container",
        "Use the same image and carry the rootfs changes; for /dev/nvidiaN give it as many GPUs as before.",
    ),
    "mountpoint-refused": Reason(
        "the runtime could not prepare the mount at {path}",
        "Its source or mountpoint is missing here: the same driver version has to be installed on both nodes.",
    ),
    "nvidia-legacy-hook": Reason(
        "NVIDIA's prestart hook ran on restore before /proc was mounted",
        "Set the toolkit's mode to cdi; the legacy mode can't be restored.",
    ),
    "mount-binfmt": Reason(
        "the container sees the host's binfmt_misc, which CRIU may not read",
        "Take the mount out of the container.",
    ),
    # of open files and sockets
    "watch-handle": Reason(
        "a process watches a file by inotify or fanotify whose handle CRIU can't open (overlay, /proc, deleted)",
        "Checkpoint through grit-runtime, which takes such watches away and puts them back.",
    ),
    "watch-path-gone": Reason(
        "a process watches inode {inode} on device {device}, which has no path any more",
        "End the watch (the file was deleted), or checkpoint through grit-runtime.",
    ),
    "tcp-connected": Reason(
        "a process has a connected TCP socket, and CRIU was not told to keep or close it",
        "Checkpoint through grit-runtime, or pass --tcp-established.",
    ),
    "tcp-in-flight": Reason(
        "a TCP connection is being set up or waits to be accepted",
        "Try again; if it persists, the program doesn't accept its connections: drain them first.",
    ),
    "network-down": Reason(
        "a restored connection's network is unreachable: lo or the interface is down",
        "Restore through grit-runtime, which raises lo first.",
    ),
    "address-gone": Reason(
        "a socket's old address is not there in the new network",
        "Listen on 0.0.0.0 or ::; restore through grit-runtime, which closes connections of the old address.",
    ),
    "unix-socket-outside": Reason(
        "a Unix socket is connected to a process outside the container",
        "Checkpoint through grit-runtime, or pass --ext-unix-sk; stream sockets have to be closed.",
    ),
    "socket-corked": Reason(
        "process {process} has a corked UDP socket ({object}), which CRIU can't dump",
        "Try again; if it persists, have the program take UDP_CORK off its socket.",
    ),
    "socket-option": Reason(
        "CRIU could not read the socket option {option}",
        "CRIU 4.1 can't dump inet sockets on kernel 6.16 and newer: install CRIU 4.2.",
    ),
    "link-remap-off": Reason(
        "{path} was unlinked and is open, and has another name",
        "Checkpoint through grit-runtime, or set link-remap in CRIU's configuration.",
    ),
    "link-remap-lost": Reason(
        "{path}, which CRIU made at the dump, is not there in the new container",
        "Carry the container's rootfs changes and /dev/shm with the checkpoint; grit-runtime does.",
    ),
    "shm-lost": Reason(
        "{path} was in the pod's /dev/shm, which the checkpoint did not carry",
        "Set shm = true in the configuration's [checkpoint] table and make the checkpoint again.",
    ),
    "gpu-file-open": Reason(
        "descriptor {fd} is a GPU's device file (195:{minor}): a process still held the GPU at the dump",
        "Checkpoint through grit-runtime; end processes that hold it without using CUDA (forked workers, NVML).",
    ),
    "file-locks-held": Reason(
        "a process holds file locks, and CRIU was not told to keep them",
        "Checkpoint through grit-runtime, or pass --file-locks.",
    ),
    "terminal-foreign": Reason(
        "the container's terminal belongs to a session outside of it",
        "Run it without a terminal, or checkpoint through grit-runtime.",
    ),
    # of GPUs
    "plugin-missing": Reason(
        "the image was made with CRIU's plugin {plugin}, which this node lacks",
        "Install the plugin in /usr/lib/criu, or make the checkpoint through grit-runtime, which needs none.",
    ),
    "gpu-mapping-left": Reason(
        "a process still had a GPU's memory mapped at the dump",
        "Checkpoint through grit-runtime, which suspends the GPU first; the driver has to be 570 or newer.",
    ),
    "criu-timeout": Reason(
        "CRIU gave up waiting for the tasks (10 s unless told otherwise)",
        "Raise CRIU's option timeout; suspend the GPU before the container is frozen, as grit-runtime does.",
    ),
    "cuda-os-call": Reason(
        "cuda-checkpoint could not work on a process: {what}",
        "The process has no CUDA context, or the driver is older than 570: check with `gritctl doctor`.",
    ),
    "gpu-not-visible": Reason(
        "the restored container can't see its GPU: {what}",
        "Give the new container as many GPUs; restore through grit-runtime, which makes its device files.",
    ),
    "cuda-initialization": Reason(
        "CUDA could not be initialised: {what}",
        "Run as root on the host, with the host's libcuda; check with `gritctl doctor`.",
    ),
    "cuda-map": Reason(
        "the driver refused the map from old GPUs to new ones",
        "Map every GPU that the process saw, by UUID; the driver has to be 580 or newer on both nodes.",
    ),
    "cuda-memory": Reason(
        "CUDA ran out of memory: {what}",
        "Restore on GPUs with as much free memory; MIG slices are not supported.",
    ),
    "cuda-unsupported": Reason(
        "the driver can't checkpoint this process: {what}",
        "Managed memory, MIG, MPS and CUDA IPC (before 610) are not supported; ARM needs driver 595 or newer.",
    ),
    "nccl-bus-id": Reason(
        "NCCL looks for a GPU at the address that it had on the other node",
        "Have the program make its communicators again after the restore, or restore on GPUs in the same slots.",
    ),
    "cuda-pinned": Reason(
        "registrations of host memory with CUDA were lost by the restore",
        "Don't keep memory registered by cudaHostRegister across a checkpoint.",
    ),
    "nccl-multicast": Reason(
        "NCCL uses NVLink multicast, which can't be checkpointed",
        "Set NCCL_NVLS_ENABLE=0 in the container.",
    ),
    "gpu-plugin-off": Reason(
        "CRIU's CUDA plugin switched itself off, so this dump may hold no GPU memory",
        "Nothing to do if grit-runtime made the checkpoint: it suspends the GPU itself. Else don't trust it.",
    ),
    "gpu-no-context": Reason(
        "CRIU's CUDA plugin found a process without a CUDA context",
        "Harmless, unless that process held a GPU.",
    ),
    # of files, processors, security modules
    "file-size": Reason(
        "{path} has {here} bytes here and had {there} where the checkpoint was made",
        "Use the same image, carry the rootfs changes, and don't write to it in between.",
    ),
    "file-mode": Reason(
        "{path} has mode {here} here and had {there} where the checkpoint was made",
        "Use the same image and carry the rootfs changes.",
    ),
    "file-build": Reason(
        "{path} is another build here than where the checkpoint was made",
        "Use the same image and the same driver version on both nodes.",
    ),
    "file-not-there": Reason(
        "{path} is not there in the new container",
        "Use the same image; carry the rootfs changes and the volumes with the checkpoint.",
    ),
    "cpu-features": Reason(
        "this node's processor lacks what the checkpoint's processes use: {what}",
        "Restore on a node with the same or a newer processor.",
    ),
    "lsm-profile": Reason(
        "the checkpoint's AppArmor or SELinux profile can't be had here: {what}",
        "Load the profile on this node, or run the container with the same security options.",
    ),
    "pid-namespace-empty": Reason(
        "the pid namespace to restore into has no init process",
        "Restore into the sandbox's namespace while the sandbox runs.",
    ),
    "network-lock-failed": Reason(
        "CRIU could not lock the network: {what}",
        "Install iptables or nftables, or set network_lock in the configuration's [checkpoint] table.",
    ),
    "loopback-down": Reason(
        "CRIU could not try out TCP, because the loopback interface of its own network namespace is down",
        "Set it up on the node: `ip link set lo up`.",
    ),
    "kernel-probe": Reason(
        "CRIU could not find out what this kernel can do ({probe})",
        "Run `criu check` as root; the kernel needs CONFIG_CHECKPOINT_RESTORE, and CRIU has to be made for it.",
    ),
    "rseq-kernel": Reason(
        "the kernel can't tell CRIU of restartable sequences",
        "Use kernel 5.13 or newer.",
    ),
    "task-crashed": Reason(
        "process {pid} crashed right after its restore",
        "CRIU may be too old for this kernel or C library: install 4.2 or newer.",
    ),
    "task-killed": Reason(
        "a process was killed while CRIU worked, most likely by the memory limit",
        "Give the container more memory: GPU memory is copied into it at a checkpoint. See `dmesg`.",
    ),
    "rights-missing": Reason(
        "root lacks CAP_SYS_RESOURCE on this machine, so CRIU can't read the tasks' limits",
        "Run on a machine whose root has all capabilities, or run the container as root.",
    ),
    "image-newer": Reason(
        "the image was made by a newer CRIU than this one",
        "Install the CRIU that made it, or a newer one, on this node.",
    ),
    "criu-older-than-kernel": Reason(
        "this CRIU is too old for this kernel",
        "Install CRIU 4.1 or newer (4.2 for kernel 6.16 and newer).",
    ),
    "ipc-exists": Reason(
        "the pod's IPC namespace already holds the SysV objects of the image",
        "Restore through grit-runtime, which leaves them out, or into a fresh pod.",
    ),
    "ipc-left-out": Reason(
        "a process has SysV shared memory mapped, and the image holds no such segment",
        "Two containers that share SysV segments can't be restored: use POSIX shared memory.",
    ),
    "image-empty": Reason(
        "an image that CRIU needs is not there: the folder is another one, or the dump did not end",
        "Name the folder with inventory.img, and check it with `gritctl verify`.",
    ),
    "image-rejected": Reason(
        "CRIU could not read an image: {what}",
        "Check it with `gritctl verify`; copy the checkpoint again.",
    ),
    "tcp-close-needed": Reason(
        "the image was made with tcp-close, which the restore has to be given as well",
        "Restore through grit-runtime.",
    ),
    "lazy-pages": Reason(
        "CRIU's page server failed: lazy pages don't work here",
        "Checkpoint without --lazy-pages.",
    ),
    "task-traced": Reason(
        "CRIU could not stop process {pid}: somebody else traces it or it is ending",
        "End the debugger or tracer, then try again.",
    ),
    "seccomp-kernel": Reason(
        "the kernel can't suspend or dump seccomp filters: {what}",
        "Use a kernel with CONFIG_CHECKPOINT_RESTORE, and root with CAP_SYS_ADMIN.",
    ),
    "disk-full": Reason(
        "there is no room left where the images go",
        "Free space, or name another folder; `gritctl check` tells how much is needed.",
    ),
    "disk-read-only": Reason(
        "CRIU could not write: {what}",
        "Name a folder on a file system that is mounted read-write.",
    ),
    "cgroup-differs": Reason(
        "CRIU could not handle a control group: {what}",
        "Set manage-cgroups=ignore, as grit-runtime does, when cgroup versions or paths differ.",
    ),
    # what runtimes say
    "criu-option-unknown": Reason(
        "CRIU ended before it opened its log: its configuration has an option that it doesn't know",
        "Look into /etc/criu/*.conf and the file that the annotation org.criu.config names.",
    ),
    "base-image": Reason(
        "the base image of the checkpoint could not be pulled",
        "Give the pod the pull secret, or pull the image on this node first.",
    ),
    "criu-hook-failed": Reason(
        "CRIU's work was broken off by a hook of the runtime, and the log says no more",
        "Look at CRIU's own log; a kept copy is listed by `gritctl logs`.",
    ),
}
