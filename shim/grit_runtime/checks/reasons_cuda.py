"""Reasons of the GPU: CUDA, NVML and what a GPU container cannot have."""

from __future__ import annotations

from . import Reason

REASONS: dict[str, Reason] = {
    "cuda-missing": Reason(
        "a process of the container uses the GPU and this node has no libcuda.so.1",
        "Install the NVIDIA driver's libraries on the node, or make them known to ldconfig",
    ),
    "cuda-init-failed": Reason(
        "CUDA does not start on this node: cuInit answers {result}",
        "See `nvidia-smi` and the kernel log; the checkpoint needs a working driver on the node itself",
    ),
    "cuda-off": Reason(
        "process {pid} uses the GPU and `[cuda] way` is `off`",
        "Set `way` to `auto` in config.toml, or stop the process",
    ),
    "cuda-binary-missing": Reason(
        "the program {binary} that `[cuda] way = \"binary\"` asks for is not there",
        "Install cuda-checkpoint, give its path as `[cuda] binary`, or set `way` to `auto`",
    ),
    "driver-too-old": Reason(
        "the NVIDIA driver {driver} cannot checkpoint through libcuda, and {binary} is not installed",
        "Upgrade to driver 570 or newer (550 with the cuda-checkpoint program)",
    ),
    "driver-aarch64": Reason(
        "the NVIDIA driver {driver} cannot checkpoint on aarch64",
        "Upgrade to driver 595 or newer",
    ),
    "nvml-missing": Reason(
        "NVML cannot be asked: {why}",
        "Install python3-pynvml (module pynvml) and the driver's libnvidia-ml.so.1",
    ),
    "gpu-forked-child": Reason(
        "process {pid} is a forked child of the CUDA process {parent} and holds its GPU ({fds} descriptors,"
        " {maps} mappings) without using CUDA itself",
        "Start such workers with `spawn` in place of `fork` (DataLoader: multiprocessing_context=\"spawn\","
        " or num_workers=0)",
    ),
    "gpu-without-cuda": Reason(
        "process {pid} holds the GPU ({fds} descriptors, {maps} mappings) but has no CUDA context, so nobody can"
        " suspend it",
        "Close NVML or the graphics context there, or end the process (nvidia-smi, a metrics exporter) first",
    ),
    "gpu-mig": Reason(
        "GPU {gpu} is in MIG mode, which the driver cannot checkpoint or restore",
        "Use a whole GPU for containers that are to be checkpointed",
    ),
    "gpu-mps": Reason(
        "process {pid} uses the GPU through an MPS server, which the driver cannot checkpoint",
        "Run the container without MPS (unset CUDA_MPS_PIPE_DIRECTORY)",
    ),
    "gpu-nvls": Reason(
        "process {pid} could not be suspended ({call}: {result}); it uses NCCL on GPUs with an NVSwitch, and NVLS"
        " multicast cannot be checkpointed",
        "Start it with NCCL_NVLS_ENABLE=0",
    ),
    "gpu-persistence": Reason(
        "GPU {gpu} has no persistence mode, and the cuda-checkpoint program cannot restore without it",
        "Run nvidia-persistenced (or nvidia-smi -pm 1), or use driver 570 or newer with `[cuda] way = \"driver\"`",
    ),
    "cuda-ipc": Reason(
        "process {pid} shares GPU memory with another process (CUDA IPC), which driver {driver} cannot checkpoint",
        "Upgrade to driver 610 or newer, or share no CUDA tensors between processes (NCCL: NCCL_P2P_DISABLE=1)",
    ),
    "cuda-managed-memory": Reason(
        "CUDA cannot checkpoint process {pid} ({call}: {result}): it uses managed memory (cudaMallocManaged), or CUDA"
        " IPC below driver 610; it runs on",
        "Use plain device memory in the program",
    ),
    "cuda-failed-state": Reason(
        "CUDA in process {pid} is in the state FAILED after an earlier checkpoint or restore",
        "The process cannot be used any more: restart the container",
    ),
    "cuda-lock-timeout": Reason(
        "process {pid} could not be locked in time ({result}): its GPU work did not come to an end",
        "Raise `[cuda] timeout`; a collective that waits for a peer never ends: checkpoint all of its processes"
        " together, with NCCL_NVLS_ENABLE=0",
    ),
    "cuda-timeout": Reason(
        "CUDA did not answer in time: {call} of process {pid}",
        "Is the process frozen or stopped? Otherwise raise `[cuda] timeout`",
    ),
    "cuda-process-died": Reason(
        "process {pid} died while its GPU memory was copied to the host ({result})",
        "See the kernel log for the OOM killer; raise `[cuda] margin` or the container's memory limit",
    ),
    "cuda-call-failed": Reason(
        "CUDA {call} of process {pid} answers {result}",
        "See the process's own output and the kernel log (Xid lines)",
    ),
    "cuda-state-stuck": Reason(
        "CUDA in process {pid} is {state} and does not become {goal}",
        "Run `cuda-checkpoint --get-state --pid {pid}`; end the container if it stays so",
    ),
    "cuda-restore-memory": Reason(
        "process {pid} does not get its memory on the GPU ({call}: {result})",
        "Free the GPU: another process uses it, or it is in MIG mode",
    ),
    "gpu-still-held": Reason(
        "process {pid} still holds the GPU ({fds} descriptors, {maps} mappings) after it was suspended",
        "CRIU could not dump it; report the program and the driver version",
    ),
    "gpu-not-in-images": Reason(
        "the images in {path} hold {have} bytes of memory, less than the {need} that came from the GPU",
        "The checkpoint lacks GPU memory and is not usable; look for `CUDA plugin` in the dump log",
    ),
    "gpu-carrier-died": Reason(
        "the process that saves GPU memory ended before its time (exit code {code}); the container runs on",
        "Look in the kernel log for what has killed it, and checkpoint again; `[cuda] past_criu = 0` does without it",
    ),
    "gpu-memory-owed": Reason(
        "an earlier checkpoint of container {id} failed and could not give its GPU memory back, which is in {path}",
        "Find out why that file can't be read, then run `gritctl recover`; keep the file until then",
    ),
    "gpu-memory-unreturned": Reason(
        "the memory in {path} that the container had on its GPU could not be given back to it: {error}",
        "Look at the node's log for what is wrong with that file, check the checkpoint with `gritctl verify`,"
        " and restore again",
    ),
    "gpu-manifest-invalid": Reason(
        "the checkpoint's manifest is not as this version writes it: {field}",
        "Take the checkpoint again; do not edit grit.json",
    ),
    "gpu-process-missing": Reason(
        "the GPU process with PID {pid} of the checkpoint is not among the restored processes",
        "The checkpoint is not usable: its manifest and its images differ",
    ),
    "driver-mismatch": Reason(
        "the checkpoint was taken with NVIDIA driver {old}, this node has {new}",
        "Restore on a node with the same driver version",
    ),
    "gpu-too-few": Reason(
        "the checkpoint used {old} GPUs, this container has {new}",
        "Give the container as many GPUs as it had",
    ),
    "gpu-other-model": Reason(
        "the checkpoint was taken on {old}, this container has {new}",
        "Restore on the same GPU model",
    ),
    "gpu-less-memory": Reason(
        "GPU {gpu} has {new} MiB of memory, the checkpoint was taken on one with {old} MiB",
        "Restore on a GPU with as much memory",
    ),
    "gpu-memory-busy": Reason(
        "GPU {gpu} has {free} MiB free, the checkpoint needs {need} MiB",
        "End what else uses this GPU",
    ),
    "gpu-map-unsupported": Reason(
        "the checkpoint must move to GPUs with other UUIDs, which driver {driver} cannot do",
        "Upgrade to driver 580 or newer, or restore on the same GPUs",
    ),
    "host-memory": Reason(
        "the GPU memory of the container needs {need} MiB of host memory, the node has {have} MiB available",
        "Free memory on the node: GPU memory passes through the host on its way to and from the disk",
    ),
    "gpu-test-failed": Reason(
        "the test did not get past {step}: {error}",
        "See `gritctl logs` for CRIU's own log, and `gritctl doctor` for what this node lacks",
    ),
    "memory-limit-left": Reason(
        "the memory limit in {file} could not be put back: the container needs more than it allows",
        "Lower it by hand when the container needs less, or raise it in the pod",
    ),
}
