"""Reasons of the node: its configuration, its programs, what operations have left on it."""

from __future__ import annotations

from grit_runtime.checks import Reason

REASONS = {
    "containerd-config-unknown": Reason(
        "{path} is left as it is, because {why}",
        "Put it right, or add the handler by hand as gritctl(8) shows.",
    ),
    "containerd-config-old": Reason(
        "{path} has no version or version 1, which containerd 2 converts only in memory",
        "Write it anew with 'containerd config migrate', then run gritctl install again.",
    ),
    "containerd-cri-disabled": Reason(
        "{path} switches the CRI plugin off (disabled_plugins), so no handler can be used through it",
        "Take cri out of disabled_plugins if Kubernetes shall use this containerd; ctr needs no handler.",
    ),
    "containerd-not-proved": Reason(
        "'containerd config dump' with the new {path} says: {why}; the file is back as it was",
        "Report this with the output of 'containerd config dump'.",
    ),
    "restart-failed": Reason(
        "systemctl restart {unit} failed",
        "See 'systemctl status {unit}'; gritctl uninstall takes the change back.",
    ),
    "handler-taken": Reason(
        "the handler {handler} in {path} is of type {type}",
        "Leave it if it is GRIT's own shim, which finds us by grit.toml; else give gritctl install another --handler.",
    ),
    "handler-name": Reason(
        "{name} can't be the name of a handler",
        "Use small letters, digits and dashes, at most 63.",
    ),
    "k3s-not-started": Reason(
        "{path} is not there, so the layout of this node's containerd configuration is not known",
        "Start the service once, then run gritctl install again.",
    ),
    "locale-missing": Reason(
        "{name} runs with the locale {locale}, which is not installed, and so Perl complains whenever it calls us",
        "Set PERL_BADLANG=0 for it, as /usr/share/grit-runtime/locale.conf does for services, and restart it.",
    ),
    "nothing-to-configure": Reason(
        "no containerd, k3s, RKE2, GRIT or podman was found here",
        "Name containerd's configuration file with --containerd.",
    ),
    "nothing-installed": Reason(
        "gritctl install has changed nothing here that is still on record",
        "Take what was added by hand away by hand.",
    ),
    "file-changed": Reason(
        "{path} was changed by somebody else while it was being edited",
        "Run the command again.",
    ),
    "backup-missing": Reason(
        "the backup {path} is gone or was changed",
        "Our entry was taken out of the file instead; look at the result.",
    ),
    "chain-plain-runc": Reason(
        "this node has GPUs, but the next runtime is {next}: its containers get no GPU through this handler",
        "Run gritctl install --next {nvidia}.",
    ),
    "nvidia-toolkit-missing": Reason(
        "this node has GPUs, but no nvidia-container-runtime was found",
        "Install the NVIDIA Container Toolkit, or name its runtime with gritctl install --next PATH.",
    ),
    "chain-loop": Reason(
        "{path} names grit-runtime as a runtime, and grit-runtime calls it: each call would go round in a circle",
        "Name runc or crun there.",
    ),
    # doctor's
    "handler-missing": Reason(
        "{name} has no handler of ours ({path})",
        "Run gritctl install.",
    ),
    "toolkit-legacy": Reason(
        "{path} has mode legacy: its mounts are made by a hook, behind the spec, and can't be restored",
        "Set mode to auto or cdi there, and restart containerd.",
    ),
    "criu-check-failed": Reason(
        "criu check says: {what}",
        "Load what it misses, or install a CRIU that fits this kernel.",
    ),
    "libcriu-missing": Reason(
        "crun needs libcriu.so.2 for checkpoint and restore, and this node has none",
        "Install the package libcriu2.",
    ),
    "criu-kernel": Reason(
        "CRIU {version} can't dump inet sockets on kernel {kernel}, which is 6.16 or newer",
        "Install CRIU 4.2 or newer, on Debian 13 for example from testing.",
    ),
    "kernel-old": Reason(
        "kernel {kernel} has no {what}",
        "Use kernel {needed} or newer.",
    ),
    "network-lock-missing": Reason(
        "the network lock is {wanted}, and this node has not what that needs",
        "Install iptables, or a CRIU with nftables, or set network_lock in {config}.",
    ),
    "huge-pages-off": Reason(
        "transparent huge pages are {state}, so GPU memory is copied by small pages, a third slower",
        "Write madvise to /sys/kernel/mm/transparent_hugepage/enabled.",
    ),
    "space-low": Reason(
        "{path} has {free} free",
        "Make room, or keep checkpoints elsewhere: one takes the memory of its container, the GPU's included.",
    ),
    "root-writable": Reason(
        "{path}, from which checkpoints are restored, can be written by others than root",
        "Run 'chown root {path}; chmod go-w {path}': whoever writes there can become root.",
    ),
    "recovery-needed": Reason(
        "operations that died have left something to undo ({count})",
        "Run gritctl recover.",
    ),
    "part-missing": Reason(
        "{what} is missing",
        "Install the package grit-runtime again, with what it depends on.",
    ),
    "not-root": Reason(
        "the check was not made by root, so {what} could not be seen",
        "Run gritctl doctor as root.",
    ),
    "gpu-silent": Reason(
        "the NVIDIA driver is loaded, but nvidia-smi does not answer",
        "Look what nvidia-smi says.",
    ),
    "logs-unknown": Reason(
        "nothing is kept of a container {id}",
        "List what is kept with 'gritctl logs'.",
    ),
    "logs-number": Reason(
        "operation {number} was asked for, and {count} are kept",
        "List them with 'gritctl logs'.",
    ),
    "recover-failed": Reason(
        "{count} of the operations that died could not be undone",
        "Look at the steps above, put them right by hand and remove the folder.",
    ),
}
