"""What a shim does that restores on `create`, with plain programs alone: the demo's "without us".

A runtime binary for containerd: `create` with the annotation becomes `nvidia-container-runtime restore` of that folder
into the fresh bundle that containerd made; everything else goes to nvidia-container-runtime as it came. CRIU gets the
options that a careful admin writes by hand, for dump and restore alike.
"""

NAME = "/usr/local/bin/restore-without-us"

PROGRAM = r"""#!/usr/bin/python3 -IS
import json, os, sys

words, runtime = sys.argv[1:], "/usr/bin/nvidia-container-runtime"
mark = "/run/restored-without-us-" + words[-1]
if "create" in words:
    at = words.index("create")
    bundle, pid_file = (words[words.index(name) + 1] for name in ("--bundle", "--pid-file"))
    with open(bundle + "/config.json") as file:
        spec = json.load(file)
    images = spec.setdefault("annotations", {}).get("grit.dev/checkpoint")
    spec["annotations"]["org.criu.config"] = "/etc/criu-by-hand.conf"
    with open(bundle + "/config.json", "w") as file:
        json.dump(spec, file)
    if images:
        open(mark, "w").close()
        words = [*words[:at], "restore", "--detach", "--no-subreaper", "--bundle", bundle, "--pid-file", pid_file,
                 "--image-path", images, "--work-path", images + "-work", words[-1]]
elif "start" in words and os.path.exists(mark):
    sys.exit(0)
os.execv(runtime, [runtime, *words])
"""

CRIU_NAME = "/etc/criu-by-hand.conf"
CRIU = """tcp-established
file-locks
ghost-limit 64M
link-remap
ext-unix-sk
manage-cgroups=ignore
"""
