"""The files that a node gets at its start: pure text from the recipe."""

from __future__ import annotations

import json

from .recipe import Recipe

#: handlers of the CRI, and the names that `node.start(runtime=...)` knows
RUNTIMES = {
    "grit": "/usr/bin/grit-runtime",
    "nvidia": "/usr/bin/nvidia-container-runtime",
    "runc": "/usr/bin/runc",
    "crun": "/usr/bin/crun",
}


def containerd(recipe: Recipe) -> str:
    """config.toml of containerd: Debian's own (CNI's folders), plus the handlers. 1.7 and 2.x name the tables apart."""
    if recipe.suite == "trixie":
        version, cri, images = 2, "io.containerd.grpc.v1.cri", "io.containerd.grpc.v1.cri"
        sandbox = f"[plugins.'{images}']\nsandbox_image = 'docker.io/library/pause:latest'\n"
    else:
        version, cri, images = 3, "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"
        sandbox = f"[plugins.'{images}'.pinned_images]\nsandbox = 'docker.io/library/pause:latest'\n"
        sandbox += f"[plugins.'{cri}']\n"
    # root here may lack CAP_SYS_RESOURCE, without which no process can lower its oom_score_adj
    text = f"version = {version}\n{sandbox}restrict_oom_score_adj = true\n"
    text += f"[plugins.'{cri}'.cni]\nbin_dir = '/usr/lib/cni'\nconf_dir = '/etc/cni/net.d'\n"
    text += "[plugins.'io.containerd.internal.v1.opt']\npath = '/var/lib/containerd/opt'\n"
    # 1.7 forgets its own handler runc as soon as another is named
    for handler in RUNTIMES:
        text += f"[plugins.'{cri}'.containerd.runtimes.{handler}]\nruntime_type = 'io.containerd.runc.v2'\n"
        text += "pod_annotations = ['grit.dev/*']\n"
        text += "container_annotations = ['grit.dev/*', 'io.kubernetes.container.restartCount']\n"
        text += f"[plugins.'{cri}'.containerd.runtimes.{handler}.options]\nBinaryName = '{RUNTIMES[handler]}'\n"
    return text


def cni(recipe: Recipe) -> str:
    """The pods' network: a bridge, without address translation (there is no world outside the two nodes)."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": recipe.pods}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}, indent=1)


def hosts(recipes: tuple[Recipe, ...]) -> str:
    lines = [f"{recipe.address.split('/')[0]} {recipe.name}" for recipe in recipes]
    return "\n".join(["127.0.0.1 localhost", "::1 localhost", *lines, ""])


def devices(recipe: Recipe) -> str:
    """One line a device, as `enter` reads them: path below /dev, major, minor."""
    return "".join(f"{name} {major} {minor}\n" for name, major, minor in recipe.devices)


#: podman: no systemd here, and no pids controller on a unified node whose host has version 1
PODMAN = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
cgroupns = "host"
pids_limit = 0
"""
