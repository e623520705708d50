from __future__ import annotations

from typing import Any

import pytest

from gpuyard import options
from gpuyard.errors import UsageError


def refused(play: str = "launch", **given: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        options.check(play, **given)
    return str(caught.value).splitlines()


def test_what_is_known_passes() -> None:
    options.check("launch", extra=options.taken_by("launch"), configured=options.OPTIONS, environment=["HOME"])
    options.check("status", extra=["ansible_user", "gpuyard_mode", "mine"], others=["mine"], run="any-0")
    options.check("launch", extra=["rust_version"], role_options=lambda: {"rust_version"})
    options.check("launch", configured=["inventory_dir", "groups", "colour"], environment=options.ENVIRONMENT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"extra": ["max_price_per_hr"]},
            "-e max_price_per_hr=… is no option of launch.yml; did you mean",
        ),
        ({"extra": ["worklaod"]}, "did you mean workload?"),
        ({"extra": ["colour"]}, "-e colour=… is no option of launch.yml."),
        ({"extra": ["lines"]}, "-e lines=… is an option of logs.yml, not of launch.yml."),
        (
            {"extra": ["overrides", "x"]},
            "-e x=… is no option of launch.yml; overrides are apart by commas: -e",
        ),
        ({"configured": ["providr"]}, "providr, in group_vars or the like, is no option; did you mean provider?"),
        ({"environment": ["GPUYARD_SANDBX"]}, "GPUYARD_SANDBX, in the environment, is no variable of gpuyard; did you"),
        ({"environment": ["GPUYARD_Q"]}, "known are: GPUYARD_HEARTBEAT"),
        ({"undefined": {"workload": "'x' is undefined."}}, "workload cannot be worked out: 'x' is undefined."),
        ({"run": "../x"}, "run='../x' cannot be a run name"),
        ({"run": True}, "run='True' cannot be a run name"),
    ],
)
def test_what_nobody_would_read_is_refused(given: dict[str, Any], said: str) -> None:
    lines = refused(**given)
    assert said in lines[0]
    assert lines[-1] == "Nothing was asked, rented or ended."


def test_words_that_ansible_cuts_off_are_shown_with_the_way_to_write_them() -> None:
    assert refused(lost=[("gpu_name=RTX", "4090")])[0] == (
        "-e 'gpu_name=RTX 4090': Ansible cuts it at the space and would take gpu_name=RTX; "
        """write -e gpu_name=RTX_4090 or -e '{"gpu_name": "RTX 4090"}'."""
    )
    assert """write -e '{"ssh_key": "/my keys"}'.""" in refused(lost=[("ssh_key=/my", "keys")])[0]
    assert refused(lost=[("", "sandbox")])[0] == "-e 'sandbox' sets nothing: write -e name=value."


def test_all_mistakes_come_at_once_but_no_flood() -> None:
    lines = refused(extra=[f"x{number}" for number in range(100)], environment=["GPUYARD_X"])
    assert len(lines) == 24
    assert lines[20] == "… and 81 more."
    assert "workload, provider" in lines[21] and "gpuyard_other_variables" in lines[22]
