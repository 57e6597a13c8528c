"""The examples for orchestrators: linted, valid by what schemas there are, and the same script everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hera.workflows.models import WorkflowTemplate

from engine.service.config import Config, load_config
from engine.spec import json_schema

EXAMPLES = Path(__file__).parents[2] / "examples"
SHELL = EXAMPLES / "orchestrators" / "shell"
SCRIPT = (SHELL / "backfill.sh").read_text()
ARGO = EXAMPLES / "orchestrators" / "argo" / "backfill.yaml"
KUBERNETES = EXAMPLES / "orchestrators" / "kubernetes" / "backfill.yaml"
JOB = EXAMPLES / "daemon" / "job.yaml"


def json_schema_allows(spec: dict[str, Any]) -> bool:
    jsonschema.validate(spec, json_schema(for_daemon=True))
    return True


def argo_step() -> dict[str, Any]:
    [step] = [one for one in yaml.safe_load(ARGO.read_text())["spec"]["templates"] if "script" in one]
    return step["script"]


def shown(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as Argo's own types understand it: what they do not know is not in it."""
    understood = WorkflowTemplate.model_validate(manifest)
    return understood.model_dump(by_alias=True, exclude_none=True, exclude_unset=True, mode="json")


@pytest.mark.parametrize("script", sorted(SHELL.glob("*.sh")), ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    arguments = [str(program), "--shell=sh", "--enable=all", "--exclude=SC2250", str(script)]
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout
    assert script.read_text().startswith("#!/bin/sh\n") and script.stat().st_mode & 0o111


def test_the_kubernetes_job_runs_the_script_of_the_shell_example() -> None:
    config, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert config["data"]["backfill.sh"] == SCRIPT
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["sh", "/etc/backfill/backfill.sh", "/etc/backfill/job.yaml"]


def test_the_argo_step_runs_the_script_of_the_shell_example() -> None:
    assert argo_step()["source"].rstrip("\n") == SCRIPT.rstrip("\n")


def test_the_types_of_argo_know_every_key_of_the_workflow() -> None:
    manifest = yaml.safe_load(ARGO.read_text())
    assert shown(manifest) == manifest


def test_the_types_of_argo_would_not_know_a_mistake() -> None:
    manifest = yaml.safe_load(ARGO.read_text())
    manifest["spec"]["templates"][1]["retryStrategie"] = {"limit": "1"}
    assert shown(manifest) != manifest


@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_the_step_of_argo_is_a_container_that_kubernetes_allows(version: str) -> None:
    spec = yaml.safe_load(ARGO.read_text())["spec"]
    container = {key: value for key, value in argo_step().items() if key != "source"} | {"name": "main"}
    names = ("volumes", "securityContext", "automountServiceAccountToken")
    pod = {"containers": [container]} | {name: spec[name] for name in names}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step"}, "spec": pod}
    kubernetes_validate.validate(manifest, version, strict=True)
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_what_only_a_person_can_mend_is_not_tried_again_anywhere() -> None:
    final = "[2, 3, 4, 6, 7, 8]"
    [step] = [one for one in yaml.safe_load(ARGO.read_text())["spec"]["templates"] if "script" in one]
    assert f"not in {final}" in step["retryStrategy"]["expression"]
    _, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == json.loads(final)


def test_every_form_of_the_job_is_the_same_job() -> None:
    spec = yaml.safe_load(JOB.read_text())
    config, _ = yaml.safe_load_all(KUBERNETES.read_text())
    assert json.loads((SHELL / "job.json").read_text()) == spec
    assert yaml.safe_load(config["data"]["job.yaml"]) == spec
    namespace: dict[str, Any] = {}
    source = (EXAMPLES / "orchestrators" / "airflow" / "orders_to_v2.py").read_text()
    begin = source.index("SPEC = ")
    exec(source[begin : source.index("\n}\n", begin) + 3], namespace)
    assert namespace["SPEC"] == spec


def test_the_example_of_a_daemon_is_valid_and_allows_the_example_of_a_job(tmp_path: Path) -> None:
    dsn = tmp_path / "main.dsn"
    dsn.write_text("postgresql://backfill@db.example/shop?sslmode=verify-full\n")
    dsn.chmod(0o640)  # as a group's file, or as Kubernetes makes the files of a secret
    file = tmp_path / "backfill.toml"
    file.write_text((EXAMPLES / "daemon" / "backfill.toml").read_text().replace("/etc/backfill/main.dsn", str(dsn)))
    file.chmod(0o640)
    config: Config = load_config(file)
    spec = yaml.safe_load(JOB.read_text())
    assert json_schema_allows(spec)
    main = config.connections["main"]
    assert {spec["source"]["table"], spec["target"]["table"]} <= {str(pattern) for pattern in main.tables}
    assert main.work and config.allow.expressions
