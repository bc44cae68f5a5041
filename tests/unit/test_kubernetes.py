"""packaging/kubernetes: manifests with only fields that Kubernetes knows, of the right types, that fit each other."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grit_runtime.ctl.containerd import POD_ANNOTATIONS, Handler
from grit_runtime.policy import CHECKPOINT
from grit_runtime.settings import Restore

FOLDER = Path(__file__).parents[2] / "packaging" / "kubernetes"

# The part of the API (v1, apps/v1, node.k8s.io/v1) that is used: str, int and bool stand for themselves, [x] for a list
# of x, {"*": x} for any key, "!" before a key that must be there.
QUANTITY = {"*": (str, int)}
META = {"!name": str, "namespace": str, "labels": {"*": str}, "annotations": {"*": str}}
CONTAINER = {
    "!name": str,
    "!image": str,
    "command": [str],
    "resources": {"requests": QUANTITY, "limits": QUANTITY},
    "securityContext": {"privileged": bool},
    "volumeMounts": [{"!name": str, "!mountPath": str, "readOnly": bool}],
}
POD = {
    "!containers": [CONTAINER],
    "initContainers": [CONTAINER],
    "runtimeClassName": str,
    "restartPolicy": str,
    "nodeSelector": {"*": str},
    "tolerations": [{"key": str, "operator": str, "effect": str}],
    "hostPID": bool,
    "automountServiceAccountToken": bool,
    "terminationGracePeriodSeconds": int,
    "volumes": [{"!name": str, "configMap": {"!name": str}, "hostPath": {"!path": str, "type": str}}],
}
TOP = {"!apiVersion": str, "!kind": str, "!metadata": META}
KINDS: dict[tuple[str, str], Any] = {
    ("v1", "Namespace"): TOP,
    ("v1", "Pod"): {**TOP, "!spec": POD},
    ("node.k8s.io/v1", "RuntimeClass"): {**TOP, "!handler": str, "scheduling": {"nodeSelector": {"*": str}}},
    ("apps/v1", "DaemonSet"): {
        **TOP,
        "!spec": {
            "!selector": {"matchLabels": {"*": str}},
            "!template": {"metadata": {"labels": {"*": str}}, "!spec": POD},
            "updateStrategy": {"type": str, "rollingUpdate": {"maxUnavailable": (int, str)}},
        },
    },
}


def read(text: str) -> list[Any]:
    """The documents of a YAML text; Perl's libyaml reads it, which lintian has brought along."""
    script = "$YAML::XS::Boolean = 'JSON::PP'; local $/; print encode_json([YAML::XS::Load(scalar <STDIN>)])"
    argv = ["perl", "-MYAML::XS", "-MJSON::PP", "-e", script]
    done = subprocess.run(argv, input=text.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    found: list[Any] = json.loads(done.stdout)
    return found


def wrong(value: Any, wanted: Any, where: str) -> list[str]:
    """What in `value` is not as the schema `wanted` has it."""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [fault for i, item in enumerate(value) for fault in wrong(item, wanted[0], f"{where}[{i}]")]
    if not isinstance(wanted, dict):
        return [] if isinstance(value, wanted) and (wanted is not int or value is not True) else [f"{where}: {value!r}"]
    if not isinstance(value, dict):
        return [f"{where} is no map"]
    fields = {key.lstrip("!"): kind for key, kind in wanted.items()}
    faults = [f"{where}.{key[1:]} is missing" for key in wanted if key.startswith("!") and key[1:] not in value]
    for key, item in value.items():
        if key not in fields and "*" not in fields:
            faults.append(f"{where}.{key} is unknown")
        else:
            faults += wrong(item, fields.get(key, fields.get("*")), f"{where}.{key}")
    return faults


def documents() -> dict[str, Any]:
    found = [document for path in sorted(FOLDER.glob("*.yaml")) for document in read(path.read_text())]
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in found}


def pods(document: Any) -> Any:
    return document["spec"]["template"]["spec"] if document["kind"] == "DaemonSet" else document["spec"]


def test_every_field_is_known_and_of_its_type() -> None:
    assert len(documents()) == 5
    for name, document in documents().items():
        assert wrong(document, KINDS[document["apiVersion"], document["kind"]], name) == []


def test_they_fit_each_other_and_the_runtime() -> None:
    all_ = documents()
    assert all_["RuntimeClass/grit"]["handler"] == Handler().name
    before, after = all_["Pod/trainer"], all_["Pod/trainer-restored"]
    assert before["spec"] == after["spec"], "a restore needs the spec of the checkpoint"
    assert before["spec"]["runtimeClassName"] == all_["RuntimeClass/grit"]["metadata"]["name"]
    path = after["metadata"]["annotations"][CHECKPOINT]
    assert any(path.startswith(root + "/") for root in Restore().roots)
    assert [CHECKPOINT.partition("/")[0] + "/*"] == POD_ANNOTATIONS
    daemon = all_["DaemonSet/grit-runtime-install"]
    labels = daemon["spec"]["template"]["metadata"]["labels"]
    assert daemon["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert daemon["metadata"]["namespace"] == all_["Namespace/grit-system"]["metadata"]["name"]
    for document in (before, daemon):
        spec = pods(document)
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for name, amount in {k: v for r in container["resources"].values() for k, v in r.items()}.items():
                assert re.fullmatch(r"\d+(m|[KMG]i)?", str(amount)), name


def test_their_scripts_are_well_formed() -> None:
    scripts = [
        (container["command"][0], container["command"][-1])
        for document in documents().values()
        if "spec" in document
        for container in [*pods(document).get("initContainers", []), *pods(document)["containers"]]
        if "\n" in container["command"][-1]
    ]
    assert len(scripts) == 3
    for program, text in scripts:
        if program == "/bin/sh":
            subprocess.run(["sh", "-n"], input=text.encode(), timeout=60, check=True)
        else:
            compile(text, "<pod>", "exec")


@pytest.mark.parametrize("fault", ["nodeselector: {}", "hostPID: 'yes'", "hostPID: 1", "nodeSelector: {a: true}"])
def test_the_check_finds_faults(fault: str) -> None:
    pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers: [{name: c, image: i}]\n"
    assert wrong(read(pod)[0], KINDS["v1", "Pod"], "pod") == []
    assert wrong(read(f"{pod}  {fault}\n")[0], KINDS["v1", "Pod"], "pod")
