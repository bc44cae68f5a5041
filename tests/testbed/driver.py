"""The fake NVIDIA driver of a node, and the stand-in for its container runtime: files, links, folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .places import HERE

if TYPE_CHECKING:
    from .node import Node

VERSION = "570.86.10"

#: what the stand-in binds into a container: file below the driver's folder -> destination
LIBRARIES = (
    "libcuda libcudadebugger libnvidia-ml libnvidia-cfg libnvidia-opencl libnvidia-gpucomp libnvidia-ptxjitcompiler "
    "libnvidia-allocator libnvidia-pkcs11 libnvidia-nvvm libnvidia-eglcore libnvidia-glcore libnvidia-tls "
    "libnvidia-glsi libnvidia-fbc libnvidia-rtcore libnvoptix libGLX_nvidia libEGL_nvidia libGLESv2_nvidia "
    "libGLESv1_CM_nvidia libnvcuvid libnvidia-encode libnvidia-opticalflow"
).split()
PROGRAMS = "nvidia-smi nvidia-debugdump nvidia-persistenced nvidia-cuda-mps-control nvidia-cuda-mps-server".split()
DATA = {
    "nvidia_icd.json": "/etc/vulkan/icd.d/nvidia_icd.json",
    "nvidia-application-profiles-rc": "/usr/share/nvidia/nvidia-application-profiles-rc",
    "10_nvidia.json": "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
}
#: on one node only
OPTIONAL = {"node-a": {"nvidia-drm_gbm.so": "/usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so"},
            "node-b": {"nvoptix.bin": "/usr/share/nvidia/nvoptix.bin"}}  # fmt: skip


def binds(node: str) -> dict[str, str]:
    """File below the driver's folder -> destination in a container, for this node."""
    libraries = {f"{name}.so.{VERSION}": f"/usr/lib/x86_64-linux-gnu/{name}.so.{VERSION}" for name in LIBRARIES}
    programs = {f"bin/{name}": f"/usr/bin/{name}" for name in PROGRAMS}
    return {**libraries, **programs, **DATA, **OPTIONAL[node]}


def lay(node: Node) -> None:
    """Puts the driver's files, the stand-in and its configuration into a node."""
    recipe = node.recipe
    wanted = binds(node.name)
    for name in wanted:
        if name != "10_nvidia.json":
            # the same content on both nodes: the same driver version
            node.write(f"{recipe.driver}/{name}", f"{name} of driver {VERSION}\n" * 64, 0o755)
    # one source is a symlink, as glvnd's is
    node.write(f"{recipe.driver}/share/egl.json", f"egl of driver {VERSION}\n")
    node.path(f"{recipe.driver}/10_nvidia.json").symlink_to("share/egl.json")
    node.write("/etc/nvidia-container-runtime/config.toml", CONFIG)
    node.write("/usr/bin/nvidia-container-runtime", (HERE / "nvidia_standin.py").read_text(), 0o755)
    for hook in ("nvidia-cdi-hook", "nvidia-container-runtime-hook"):
        node.write(f"/usr/bin/{hook}", (HERE / "nvidia_hook_standin.py").read_text(), 0o755)
    node.write(
        "/etc/nvidia-container-runtime/standin.json",
        json.dumps(
            {
                "driver": recipe.driver,
                "binds": wanted,
                "devices": [[name, major, minor] for name, major, minor in recipe.devices],
                "env": {"NVIDIA_STANDIN_DRIVER": VERSION},
            }
        ),
    )


CONFIG = """[nvidia-container-cli]
load-kmods = true

[nvidia-container-runtime]
log-level = "info"
mode = "auto"
runtimes = ["runc", "crun"]
"""
