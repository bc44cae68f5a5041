"""What a pod may ask for, and that it gets it once."""

from pathlib import Path
from typing import Any

import pytest
from grit_runtime import policy
from grit_runtime.checks import Refusal
from grit_runtime.settings import Restore, Settings

SETTINGS = Settings(restore=Restore(allow=("kernel-differs", "file-differs")))


def spec(**more: object) -> dict[str, Any]:
    return {"annotations": {
        "io.kubernetes.cri.sandbox-id": "5a4db0x", "io.kubernetes.cri.container-name": "app",
        "grit.dev/checkpoint": "/mnt/checkpoints/pod", **more,
    }}  # fmt: skip


def test_what_is_asked_for() -> None:
    assert policy.wish({}, SETTINGS) is None and policy.wish({"annotations": {"grit.dev/allow": "x"}}, SETTINGS) is None
    plain = policy.wish(spec(**{"grit.dev/restore-name": "GRIT's own", "org.criu.config": "/evil"}), SETTINGS)
    assert plain == policy.Wish("/mnt/checkpoints/pod")
    asked = policy.wish(spec(**{"grit.dev/allow": "kernel-differs, file-differs"}), SETTINGS)
    assert asked is not None and asked.allow == {"kernel-differs", "file-differs"}
    with pytest.raises(Refusal, match="allow-not-permitted.*cpu-differs"):
        policy.wish(spec(**{"grit.dev/allow": "kernel-differs,cpu-differs"}), SETTINGS)
    odds: list[dict[str, object]] = [{"grit.dev/checkpoint": "/" + "x" * 5000}, {"grit.dev/checkpoint": 7}]
    odds.append({"grit.dev/allow": []})
    for odd in odds:
        with pytest.raises(Refusal, match="annotation-invalid"):
            policy.wish(spec(**odd), SETTINGS)


def test_a_restart_is_no_second_restore(tmp_path: Path) -> None:
    marks = str(tmp_path / "used")
    wanted = policy.Wish("/mnt/checkpoints/pod")
    first = spec(**{"io.kubernetes.container.restartCount": "0"})
    again = spec(**{"io.kubernetes.container.restartCount": "1"})
    other = spec(**{"io.kubernetes.cri.container-name": "sidecar"})
    assert not policy.used(first, wanted, marks) and not policy.used(spec(), wanted, marks)
    assert policy.used(again, wanted, marks), "this pod's first sandbox may have been another"
    policy.mark_tried(first, wanted, marks)
    assert not policy.used(again, wanted, marks), "the first attempt failed, and the kubelet counted it"
    policy.mark_used(first, wanted, marks)
    assert policy.used(again, wanted, marks) and policy.used(spec(), wanted, marks)
    assert not policy.used(other, wanted, marks), "each container of the pod has its own"
    assert not policy.used(spec(), policy.Wish("/mnt/checkpoints/later"), marks)
    policy.forget("5a4db0x", marks)
    assert not policy.used(spec(), wanted, marks)


@pytest.mark.parametrize("sandbox", ["../up", "..", ".", "", "a/b", "a\nb", "x" * 300])
def test_names_never_lead_elsewhere(sandbox: str, tmp_path: Path) -> None:
    odd = spec(**{"io.kubernetes.cri.sandbox-id": sandbox})
    marks = tmp_path / "marks"
    policy.mark_used(odd, policy.Wish("/p"), str(marks))
    assert not policy.used(odd, policy.Wish("/p"), str(marks)) and not list(tmp_path.iterdir())
    (tmp_path / "up").mkdir()
    policy.forget(sandbox, str(marks))
    assert (tmp_path / "up").exists()
