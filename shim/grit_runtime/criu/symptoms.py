"""Lines by which a known failure is recognised in a log of CRIU's, the runtime's, cuda-checkpoint's or the container's.

One row: what to look for in a line, and the reason's name (its text and remedy are in checks/). Named groups become
facts of the reason. The first row that any line matches wins, so the particular comes before the general, and what
CRIU also logs when all is well comes last. Wordings are those of CRIU 4.1 and 4.2.

They are compiled when a log is read: a checkpoint or restore that goes well doesn't pay for them.
"""

from __future__ import annotations

import re

SYMPTOMS: list[tuple[str, str]] = [
    # mounts
    (r"No mapping for (?P<mount>\d+):.* mountpoint", "mount-unmapped"),
    (r"Mount (?P<mount>\d+):.*is autodetected external mount", "mount-autodetected"),
    (r"(?P<mount>\d+:\S+).*has unreachable sharing|has unreachable sharing", "mount-unreachable"),
    (r"(?P<mount>\d+:\S+) doesn't have a proper root mount", "mount-foreign"),
    (r"Can't remount \S*/mnt-0*(?P<mount>\d+) with MS_PRIVATE: (?:Inv|No such)", "mount-source-symlink"),
    (r"mnt-v2: (?:Failed to|Can't) copy sharing", "mount-sharing"),
    (r"Can't stat mountpoint (?P<path>\S+)", "mountpoint-missing"),
    (r"create criu restore mount(?:point)? for (?P<path>\S+)", "mountpoint-refused"),
    (r"nvidia-container-cli.*mount error.*proc/driver/nvidia", "nvidia-legacy-hook"),
    (r"Can't lookup mount=-?\d+ for fd=(?P<fd>-?\d+) path=(?P<path>.*)", "file-outside"),
    (r"Open files on overmounted mounts are not supported yet; .*path=(?P<path>.*)", "file-covered"),
    (r"binfmt_misc.*(?:EPERM|Operation not permitted)", "mount-binfmt"),
    # file descriptors and what is behind them
    (r"Can't dump that handle", "watch-handle"),
    (r"Can't find suitable path for handle \(dev (?P<device>\S+) ino (?P<inode>\w+)\)", "watch-path-gone"),
    (r"anon_inode:\[io_uring\]", "io-uring"),
    (r"send_fds failed \(-22\)", "io-uring"),  # since Linux 6.7 such a descriptor can't be passed on
    (r"anon_inode:\[perf_event\]", "perf-event"),
    (r"anon_inode:\[userfaultfd\]", "userfaultfd"),
    (r"anon_inode:\[?bpf[-_](?:prog|link)", "bpf-program"),
    (r"Unknown shit \d+ \((?:\S*/)?anon_inode:\[?(?P<kind>[^\])]+)", "descriptor-unsupported"),
    (r"Unknown shit (?P<kind>\d+ \(.*\))", "descriptor-unsupported"),
    (r"Connected TCP socket, consider using --tcp-established", "tcp-connected"),
    (r"[Ii]n-flight connection", "tcp-in-flight"),
    (r"Unsupported proto 262 for socket|multipathtcp=0", "mptcp"),
    (r"Unsupported proto (?P<protocol>\d+) for socket", "socket-unsupported"),
    (r"Can't connect inet socket back: Network is unreachable", "network-down"),
    (r"Can't (?:bind|connect) inet socket(?: back)?|Can't bind inet socket", "address-gone"),
    (r"External socket is used", "unix-socket-outside"),
    (r"Can't dump half of stream unix connection\. name: (?P<name>.*); peer", "unix-peer-outside"),
    (r"Can't dump half of stream unix connection", "unix-peer-outside"),
    (r"unix: Dangling connection \d+|Unix socket \d+ (?:not found|without peer \d+)", "unix-peer-outside"),
    (r"Can't dump corked dgram socket", "socket-corked"),
    (r"netlink: The socket has data to read", "netlink-unread"),
    (r"Can't get (?P<option>\d+:\d+) opt", "socket-option"),
    (r"Unknown socket collected \((?P<protocol>family \d+)\)", "socket-unsupported"),
    (r"Unsupported socket (?P<protocol>(?:family|type): \d+)", "socket-unsupported"),
    (r"Can't dump ghost file (?P<path>.*) of (?P<size>\d+) size, increase limit", "ghost-too-large"),
    (r"Can't create link remap for (?P<path>.*?)\. Use", "link-remap-off"),
    (r"(?P<path>\S*link_remap\.\d+)\S*.*No such file", "link-remap-lost"),
    (r"Can't open file (?P<path>/?dev/shm/\S+).*No such file", "shm-lost"),
    (r"Can't dump file (?P<fd>\d+) of that type .*chr 195:(?P<minor>\d+)", "gpu-file-open"),
    (r"Can't dump file (?P<fd>\d+) of that type .*chr (?P<major>\d+):(?P<minor>\d+)", "device-foreign"),
    (r"Can't dump file (?P<fd>\d+) of that type \[\d+\] \((?P<kind>.*)\)", "descriptor-unsupported"),
    (r"Some file locks are hold by dumping tasks", "file-locks-held"),
    (r"Don't have tty to inherit session|is not a session leader\. Consider using --shell-job", "terminal-foreign"),
    (r"A session leader of .*?(?P<process>\d+)\(\d+\) is outside of its pid namespace", "session-outside"),
    (r"doesn't live in IPC ns", "sysv-host"),
    (r"pidfd pid (?P<target>-?\d+) is not a part of process tree", "pidfd"),
    (r"PIDFD_THREAD flag is currently not supported", "pidfd-thread"),
    (r"Can't dump nested (?P<kind>\w+) namespace for (?P<process>\d+)", "nested-namespace"),
    (r"Unable to dump more than one (?P<kind>net)ns", "nested-namespace"),
    (r"No NS ID with kid (?P<kind>\d+)", "namespace-outside"),
    # processes that can't be stopped; then CRIU waits for them until its time is up
    (r"zombie (?P<pid>\d+) \(comm .*\) found while seizing", "task-traced"),
    (r"Unseizable non-zombie (?P<process>\d+) found", "process-stray"),
    # GPU
    (r"Missing required plugin: (?P<plugin>\S+)", "plugin-missing"),
    (r"handle_device_vma plugin failed", "gpu-mapping-left"),
    (r"Timeout reached\. Try to interrupt", "criu-timeout"),
    (r"OS call failed or operation not supported on this OS", "cuda-os-call"),
    (r"no CUDA-capable device is detected|Failed to initialize NVML", "gpu-not-visible"),
    (r"cuda.*initialization error", "cuda-initialization"),
    (r"device[-_ ]map.*invalid argument|cuda-checkpoint.*invalid argument", "cuda-map"),
    (r"cuda.*out of memory|CUDA_ERROR_OUT_OF_MEMORY", "cuda-memory"),
    (r"cuda.*(?:not supported|CUDA_ERROR_NOT_SUPPORTED|\b801\b)", "cuda-unsupported"),
    (r"nvmlDeviceGetHandleByPciBusId.*(?:Not Found|failed)", "nccl-bus-id"),
    (r"cudaHostUnregister", "cuda-pinned"),
    (r"NCCL.*(?:NVLS|[Mm]ulticast)", "nccl-multicast"),
    # files, processors, security modules, environment
    (r"File (?P<path>.*) has bad size (?P<here>\d+) \(expect (?P<there>\d+)\)", "file-size"),
    (r"File (?P<path>.*) has bad mode (?P<here>0\d+) \(expect (?P<there>0\d+)\)", "file-mode"),
    (r"File (?P<path>.*) has bad build-ID", "file-build"),
    (r"Can't open file (?P<path>.*?)(?: on restore)?: No such file", "file-not-there"),
    (r"FPU feature required by image|CPU (?:instruction )?capabilities do not match run time", "cpu-features"),
    (r"mismatched lsm types and lsm profile specified|can't write lsm profile|lsm profile.*not found", "lsm-profile"),
    (r"(?:[Aa]pp[Aa]rmor|SELinux).*(?:not found|No such file|not supported by kernel)", "lsm-profile"),
    (r"Unable to restore into an empty PID namespace", "pid-namespace-empty"),
    (r"Can't fork for (?P<pid>\d+): File exists", "pid-in-use"),
    (r"Locking network failed|built without libnftables support|execvp\(.ip6?tables-restore", "network-lock-failed"),
    (r"kerndat_tcp_repair failed|Unable to connect a socket: Network is unreachable", "loopback-down"),
    (r"(?P<probe>kerndat_\w+) failed when initializing kerndat", "kernel-probe"),
    (r"has rseq but kernel lacks get_rseq_conf feature", "rseq-kernel"),
    (r"(?P<pid>\d+) killed by signal 11", "task-crashed"),
    (r"killed by signal 9", "task-killed"),
    (r"Can't get rlimit \d+: Operation not permitted", "rights-missing"),
    (r"vdso: ELF header magic mismatch", "image-newer"),
    (r"Unexpected rt vDSO area bounds", "criu-older-than-kernel"),
    (r"Failed to create shm set: File exists|Failed to (?:create|set) (?:msg|sem)\w* .*File exists", "ipc-exists"),
    (r"Can't find sysv shmem for", "ipc-left-out"),
    (r"No inventory\.img image|Unexpected EOF on \(empty-image\)", "image-empty"),
    (r"(?:Head m|M)agic doesn't match for (?P<path>\S+)|Unexpected EOF on (?P<file>\S+)", "image-rejected"),
    (r"Read \d+ bytes while \d+ expected from|Img trimmed|Failed unpacking object", "image-rejected"),
    (r"Not supported images version|Too old image", "image-rejected"),
    (r"Need to set the --tcp-close options", "tcp-close-needed"),
    (r"page-pipe: splice: Bad file descriptor", "lazy-pages"),
    (r"Unable to interrupt task: (?P<pid>\d+) \(Operation not permitted\)", "task-traced"),
    (r"suspending seccomp failed|couldn't suspend seccomp|seccomp filters not supported", "seccomp-kernel"),
    (r"No space left on device", "disk-full"),
    (r"Read-only file system", "disk-read-only"),
    (r"Error \(criu/cgroup\.c:\d+\): (?P<what>.*)", "cgroup-differs"),
    # what runtimes say
    (r"criu failed: type \w+ errno 56|CRIU version check failed|unrecognized option", "criu-option-unknown"),
    (r"pull access denied|failed to pull|authorization failed", "base-image"),
    (r"criu failed: type NOTIFY errno 0", "criu-hook-failed"),
    # what CRIU logs when all is well, too
    (r"CUDA plugin is disabled|Disabling CUDA plugin", "gpu-plugin-off"),
    (r"Could not find restore thread", "gpu-no-context"),
]


def anything() -> re.Pattern[str]:
    """Any of them: to pick a line out of a long log before the rows are tried one by one."""
    return re.compile("|".join(re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern, _ in SYMPTOMS))
