"""The messages of CRI's runtime.v1.RuntimeService that the tests use: numbers from its published interface."""

from __future__ import annotations

from .wire import Fields

POD, CONTAINER, NODE = 0, 1, 2  # NamespaceMode
CREATED, RUNNING, EXITED, UNKNOWN = range(4)  # ContainerState

_NAMESPACES: Fields = {"network": (1, "int"), "pid": (2, "int"), "ipc": (3, "int")}
_POD_CONFIG: Fields = {
    "metadata": (1, {"name": (1, "text"), "uid": (2, "text"), "namespace": (3, "text"), "attempt": (4, "int")}),
    "hostname": (2, "text"),
    "log_directory": (3, "text"),
    "labels": (6, "map"),
    "annotations": (7, "map"),
    "linux": (8, {"cgroup_parent": (1, "text"), "security_context": (2, {"namespace_options": (1, _NAMESPACES)})}),
}
_RESOURCES: Fields = {"cpu_shares": (3, "int"), "memory_limit": (4, "int"), "oom_score_adj": (5, "int")}
_SECURITY: Fields = {
    "capabilities": (1, {"add": (1, ["text"])}),
    "namespace_options": (3, _NAMESPACES),
    "masked_paths": (13, ["text"]),
    "readonly_paths": (14, ["text"]),
}
_METADATA: Fields = {"name": (1, "text"), "attempt": (2, "int")}
_CONTAINER_CONFIG: Fields = {
    "metadata": (1, _METADATA),
    "image": (2, {"image": (1, "text"), "named": (18, "text")}),
    "command": (3, ["text"]),
    "args": (4, ["text"]),
    "envs": (6, [{"key": (1, "text"), "value": (2, "text")}]),
    "mounts": (7, [{"container_path": (1, "text"), "host_path": (2, "text"), "readonly": (3, "int")}]),
    "labels": (9, "map"),
    "annotations": (10, "map"),
    "log_path": (11, "text"),
    "tty": (14, "int"),
    "stdin": (12, "int"),
    "linux": (15, {"resources": (1, _RESOURCES), "security_context": (2, _SECURITY)}),
}
_CONTAINER_STATUS: Fields = {
    "id": (1, "text"), "metadata": (2, _METADATA), "state": (3, "int"), "exit_code": (7, "int"),
    "reason": (10, "text"), "message": (11, "text"),
}  # fmt: skip
_POD_STATUS: Fields = {"id": (1, "text"), "state": (3, "int"), "network": (5, {"ip": (1, "text")})}
_NUMBER: Fields = {"value": (1, "int")}
_STATS: Fields = {
    "cpu": (2, {"timestamp": (1, "int"), "used": (2, _NUMBER)}),
    "memory": (3, {"timestamp": (1, "int"), "working_set": (2, _NUMBER)}),
}
_POD_ID: Fields = {"pod_sandbox_id": (1, "text")}
_CONTAINER_ID: Fields = {"container_id": (1, "text")}

#: method -> its request and its answer
METHODS: dict[str, tuple[Fields, Fields]] = {
    "Version": ({"version": (1, "text")}, {"runtime_name": (2, "text"), "runtime_version": (3, "text")}),
    "RunPodSandbox": ({"config": (1, _POD_CONFIG), "runtime_handler": (2, "text")}, _POD_ID),
    "StopPodSandbox": (_POD_ID, {}),
    "RemovePodSandbox": (_POD_ID, {}),
    "PodSandboxStatus": ({**_POD_ID, "verbose": (2, "int")}, {"status": (1, _POD_STATUS), "info": (2, "map")}),
    "CreateContainer": (
        {**_POD_ID, "config": (2, _CONTAINER_CONFIG), "sandbox_config": (3, _POD_CONFIG)},
        _CONTAINER_ID,
    ),
    "StartContainer": (_CONTAINER_ID, {}),
    "StopContainer": ({**_CONTAINER_ID, "timeout": (2, "int")}, {}),
    "RemoveContainer": (_CONTAINER_ID, {}),
    "ContainerStatus": (
        {**_CONTAINER_ID, "verbose": (2, "int")},
        {"status": (1, _CONTAINER_STATUS), "info": (2, "map")},
    ),
    "ExecSync": (
        {**_CONTAINER_ID, "cmd": (2, ["text"]), "timeout": (3, "int")},
        {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int")},
    ),
    "Attach": (
        {**_CONTAINER_ID, "stdin": (2, "int"), "tty": (3, "int"), "stdout": (4, "int"), "stderr": (5, "int")},
        {"url": (1, "text")},
    ),
    "ContainerStats": (_CONTAINER_ID, {"stats": (1, _STATS)}),
    "CheckpointContainer": ({**_CONTAINER_ID, "location": (2, "text"), "timeout": (3, "int")}, {}),
}
