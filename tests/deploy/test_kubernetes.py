"""The manifests for Kubernetes: valid by the schemas of several versions, restricted, and in step with the program."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from engine.cli.main import cli
from engine.service.config import Config
from engine.spec import parse_spec
from engine.spec.units import parse_duration

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("deploy/kubernetes/*.yaml"), *ROOT.glob("examples/orchestrators/kubernetes/*.yaml")])
VERSIONS = ("1.33", "1.34", "1.37")

Manifest = dict[str, Any]


def manifests(file: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(file.read_text()))


ALL = [(file, manifest) for file in FILES for manifest in manifests(file)]
PODS = [
    pytest.param(file, pod, id=f"{file.name}-{manifest['metadata']['name']}")
    for file, manifest in ALL
    for pod in [manifest if manifest["kind"] == "Pod" else manifest.get("spec", {}).get("template")]
    if pod is not None
]


def containers(pod: Manifest) -> Iterator[Manifest]:
    yield from pod["spec"].get("initContainers", ())
    yield from pod["spec"]["containers"]


def ours(pod: Manifest) -> list[Manifest]:
    return [one for one in containers(pod) if "backfill-engine" in one["image"]]


def does_work(pod: Manifest) -> bool:
    """True for daemons and workers; a caller has nothing to finish."""
    return any("command" not in one for one in ours(pod))


def config_of(file: Path) -> Config | None:
    for manifest in manifests(file):
        text = manifest.get("data", {}).get("backfill.toml") if manifest["kind"] == "ConfigMap" else None
        if text is not None:
            return Config.model_validate(tomllib.loads(text))
    return None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("file", "manifest"), [pytest.param(f, m, id=f"{f.name}-{m['kind']}-{m['metadata']['name']}") for f, m in ALL]
)
def test_the_schema_of_kubernetes_allows_it(file: Path, manifest: Manifest, version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_refuse_a_key_that_kubernetes_does_not_know() -> None:
    manifest = manifests(ROOT / "deploy/kubernetes/daemon.yaml")[2]
    manifest["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[0], strict=True)


@pytest.mark.parametrize(("file", "pod"), PODS)
def test_every_pod_keeps_to_the_restricted_standard(file: Path, pod: Manifest) -> None:
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
    for one in containers(pod):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, one["name"]
        assert {"cpu", "memory"} <= set(one["resources"]["requests"])
        assert "memory" in one["resources"]["limits"]
        assert ":" in one["image"] and not one["image"].endswith(":latest")
    for volume in spec["volumes"]:
        assert set(volume) & {"emptyDir", "configMap", "secret"}, volume


@pytest.mark.parametrize(("file", "pod"), PODS)
def test_secrets_arrive_as_files_that_others_cannot_read_and_never_in_the_environment(
    file: Path, pod: Manifest
) -> None:
    for volume in pod["spec"]["volumes"]:
        if "secret" in volume:
            assert volume["secret"]["defaultMode"] & 0o007 == 0
    for one in containers(pod):
        assert all("valueFrom" not in variable for variable in one.get("env", ()))
        assert "envFrom" not in one
        mounts = one.get("volumeMounts", ())
        assert all("subPath" not in mount for mount in mounts), "a file that is mounted by itself is never renewed"


@pytest.mark.parametrize(("file", "pod"), PODS)
def test_there_is_time_to_drain(file: Path, pod: Manifest) -> None:
    config = config_of(file)
    drain_s = (config.drain if config is not None else Config.model_fields["drain"].default) if does_work(pod) else 0.0
    before_s = sum(
        float(one["lifecycle"]["preStop"]["exec"]["command"][-1]) for one in containers(pod) if "lifecycle" in one
    )
    cut_off_s = 20.0 if config is not None else 0.0  # what a daemon may need beyond `drain`
    assert pod["spec"].get("terminationGracePeriodSeconds", 30) >= max(before_s + drain_s + cut_off_s, 1.0)


@pytest.mark.parametrize(("file", "pod"), PODS)
def test_what_runs_in_a_pod_are_commands_that_exist(file: Path, pod: Manifest) -> None:
    for one in ours(pod):
        lines = [one["args"]] if "command" not in one else []
        lines += [
            one[probe]["exec"]["command"][1:]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
            if probe in one
        ]
        for name, *arguments in lines:
            command = cli.get_command(None, name)  # type: ignore[arg-type]
            assert command is not None, name
            command.make_context(name, list(arguments), resilient_parsing=False)


@pytest.mark.parametrize("file", [file for file in FILES if config_of(file) is not None], ids=lambda file: file.name)
def test_the_daemon_of_a_manifest_understands_its_configuration_and_finds_its_files(file: Path) -> None:
    config = config_of(file)
    assert config is not None
    [pod] = [param.values[1] for param in PODS if param.values[0] == file]  # type: ignore[misc]
    [daemon] = ours(pod)
    mounts = [Path(mount["mountPath"]) for mount in daemon["volumeMounts"]]
    paths = [one.dsn_file for one in config.connections.values()]
    paths += [config.auth.tokens_file] if config.auth.tokens_file else []
    paths += [config.tls.certificate, config.tls.key] if config.tls else []
    paths += [address.path for address in config.listen if address.path]
    for path in paths:
        assert path is not None
        assert any(mount in Path(path).parents for mount in mounts), path
    [socket] = [address.path for address in config.listen if address.path]
    assert Path(socket).parent not in mounts, "a volume of Kubernetes is writable for all: the daemon refuses it"
    for one in containers(pod):
        assert {"name": "BACKFILL_DAEMON", "value": f"unix://{socket}"} in one["env"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_secret_that_is_mounted_holds_the_files_that_are_named(file: Path) -> None:
    [secret] = manifests(ROOT / "deploy/kubernetes/secret.example.yaml")
    text = file.read_text()
    for name in ("main.dsn", "tokens.toml", "pg_service.conf", "ca.crt"):
        if f"/run/secrets/backfill/{name}" in text:
            assert name in secret["stringData"], name


def test_the_job_of_the_manifest_is_a_valid_spec() -> None:
    [text] = [m["data"]["job.yaml"] for m in manifests(ROOT / "deploy/kubernetes/job.yaml") if m["kind"] == "ConfigMap"]
    assert parse_spec(text, {}, file="job.yaml").name == "orders-to-v2"


def test_a_job_ends_on_what_only_a_person_can_mend_and_is_tried_again_otherwise() -> None:
    from engine import errors

    [job] = [m for m in manifests(ROOT / "deploy/kubernetes/job.yaml") if m["kind"] == "Job"]
    [fails, disrupted] = job["spec"]["podFailurePolicy"]["rules"]
    codes = {
        one.exit_code
        for one in vars(errors).values()
        if isinstance(one, type) and issubclass(one, errors.BackfillError) and one.exit_code < 75
    }
    assert fails["action"] == "FailJob"
    assert set(fails["onExitCodes"]["values"]) == codes - {errors.CannotConnect.exit_code, 1}
    assert disrupted["action"] == "Ignore"
    assert job["spec"]["backoffLimit"] >= 10


def test_only_callers_with_the_label_reach_the_daemons() -> None:
    [policy] = [m for m in manifests(ROOT / "deploy/kubernetes/daemon.yaml") if m["kind"] == "NetworkPolicy"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"backfill-client": "true"}}}]


def test_the_drain_is_written_where_it_counts() -> None:
    for file in FILES:
        config = config_of(file)
        if config is not None:
            assert config.drain == parse_duration("30s")
