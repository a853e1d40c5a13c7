"""The containers: the Dockerfile and compose.yaml are valid, closed to others, and start what exists.

No container engine is needed. The commands of compose.yaml run here, in this environment instead of the image's.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.conftest import PROJECT
from tests.npm_packages import npm_file
from tests.test_serve import running
from vec_pipeline.__main__ import main

TEXT = (PROJECT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {name: service for name, service in SERVICES.items() if "entrypoint" in service}
WORKERS = {name: service for name, service in SERVICES.items() if name not in SERVERS}
HEALTH_DURATIONS = ("start_period", "interval", "timeout")


def set_by(**environment: str) -> dict[str, dict[str, Any]]:
    """The services as Compose reads them: with variables, or with what stands after `:-` where they are not set."""
    text = TEXT
    for _ in range(2):  # a default may hold a variable
        text = re.sub(
            r"\$\{(\w+)(?::-((?:[^{}]|\$\{\w+\})*))?\}", lambda found: environment.get(found[1]) or found[2] or "", text
        )
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return services


def test_the_dockerfile_is_clean() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), PROJECT / "Dockerfile"], capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (0, "")


def test_what_the_image_needs_is_sent_to_the_builder() -> None:
    kept = re.findall(r"^!(.+?)/?$", (PROJECT / ".dockerignore").read_text(), re.MULTILINE)
    assert all(list(PROJECT.glob(pattern)) for pattern in kept)
    assert {"vec_pipeline", "configs", "config.yaml", "hatch_build.py", "constraints.txt"} <= set(kept)


def test_compose_yaml_is_what_the_specification_allows(pytestconfig: pytest.Config) -> None:
    schema = json.loads(npm_file(pytestconfig, "dclint@3.1.0", "schemas/compose.schema.json"))
    validator = jsonschema_rs.validator_for(schema)
    assert [str(error) for error in validator.iter_errors(COMPOSE)] == []
    durations = [service["healthcheck"][name] for service in SERVERS.values() for name in HEALTH_DURATIONS]
    assert all(re.fullmatch(r"\d+s", each) for each in durations), "which the schema leaves open"
    wrong = {"services": {"server": {**SERVICES["server"], "helthcheck": {}}}}
    assert not validator.is_valid(wrong)


def test_each_service_has_an_image_of_the_dockerfile_with_or_without_a_gpu() -> None:
    stages = set(re.findall(r"^FROM .* AS (\w+)$", (PROJECT / "Dockerfile").read_text(), re.MULTILINE))
    for name, service in SERVICES.items():
        variant = "cpu" if name.endswith("-cpu") else "cuda"
        assert service["build"]["args"] == {"VARIANT": variant} and variant in stages
        assert service["image"] == f"vec-pipeline:{variant}"
        assert service.get("gpus") == ("all" if variant == "cuda" else None)


def test_up_starts_one_server_and_nothing_else() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["server"]
    assert set(SERVERS) == {"server", "server-cpu"} and set(WORKERS) == {"worker", "worker-cpu"}


def test_every_variable_has_a_default() -> None:
    assert set(re.findall(r"\$\{(\w+)\}", TEXT)) == {"PWD"}, "which the shell sets"
    assert "$" not in str(set_by(PWD="/project"))


def test_the_containers_can_do_little_and_leave_files_of_the_user() -> None:
    for service in set_by(PWD="/project").values():
        assert service["user"] == "1000:1000" and service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["volumes"][-2:] == ["./output:/data/output", "models:/cache"]
    assert set_by(USER_ID="7", GROUP_ID="8")["server"]["user"] == "7:8"


@pytest.mark.parametrize("name", SERVERS)
def test_the_server_is_published_for_this_machine_alone(name: str) -> None:
    assert set_by()[name]["ports"] == ["127.0.0.1:8000:8000"]
    assert set_by(PORT="9000")[name]["ports"] == ["127.0.0.1:9000:8000"]


def test_a_worker_annotates_what_is_mounted() -> None:
    for name in WORKERS:
        service = set_by(PHOTOS="/home/me", CONFIG="small")[name]
        options = ["--config", "small", "--output", "output/small/annotations.csv"]
        assert service["command"] == ["run", "/home/me", *options]
        assert service["volumes"][0] == "/home/me:/home/me:ro"


def test_the_server_needs_a_token_and_its_health_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The entrypoint and the health check of compose.yaml; only the port and the folder are others."""
    program, command, *options = set_by()["server"]["entrypoint"]
    assert (program, command, *options[-2:]) == ("vec-pipeline", "serve", "--host", "0.0.0.0")
    where = {"demo": str(PROJECT / "configs" / "demo.yaml"), "output/demo/served.csv": str(tmp_path / "served.csv")}
    options = [where.get(each, each) for each in options]
    assert main(["serve", *options]) == 2
    assert "make a token first, with --new-token" in capsys.readouterr().err
    assert main(["serve", *options, "--new-token"]) == 0
    with running(tmp_path / "served.csv", *options) as server:
        assert server.client.get("/v1/options").status_code == 401
        assert health(server.port) == 0
        assert server.end() == 0
    assert health(server.port) != 0


def health(port: int) -> int:
    """The exit status of the health check."""
    _, program, *arguments = SERVICES["server"]["healthcheck"]["test"]
    arguments = [each.replace(":8000/", f":{port}/") for each in arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([program, *arguments], env={"PATH": path}, stderr=subprocess.DEVNULL, timeout=60).returncode


def test_the_server_may_finish_what_waits_before_it_is_killed() -> None:
    from vec_pipeline.commands.serve.server import DRAIN_S

    for service in SERVERS.values():
        assert float(service["stop_grace_period"].removesuffix("s")) > DRAIN_S
