"""What infra/ describes and cannot be started here: each file against its schema, and against what it names."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
INFRA = ROOT / "infra"
DESCRIBED = [path for path in sorted(INFRA.rglob("*")) if path.suffix in (".yaml", ".yml", ".json")]
DOCKERFILE = INFRA / "Dockerfile"
KUBERNETES = "1.34"
COMPOSE = (INFRA / "compose.yaml", INFRA / "compose.gpu.yaml")
PINNED = re.compile(r"[\w./-]+:[\w.-]*\d[\w.$:{}-]*")


def read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)


def pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, in nested mappings and lists."""
    if isinstance(value, dict):
        yield from value.items()
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from pairs(each)


@pytest.mark.parametrize("path", DESCRIBED, ids=lambda path: path.name)
def test_what_is_secret_comes_from_the_environment(path: Path) -> None:
    for key, value in pairs(read(path)):
        named = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", str(key)) or re.search(r"://[^/]*@", str(value))
        assert not (named and isinstance(value, str)) or "${" in value, key


# ---- compose


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_fit_the_compose_specification(path: Path) -> None:
    from check_jsonschema.builtin_schemas import get_builtin_schema

    jsonschema.validate(read(path), get_builtin_schema("vendor.compose-spec"))


def test_compose_services_start_after_what_they_need_and_images_are_pinned() -> None:
    described = read(COMPOSE[0])
    services = described["services"]
    assert set(services) == {"postgres", "prefect", "store", "deployments", "worker"}
    for name, service in services.items():
        assert PINNED.fullmatch(service["image"]) and ":latest" not in service["image"]
        for other, how in service.get("depends_on", {}).items():
            awaited = "healthcheck" in services[other] or how["condition"] == "service_completed_successfully"
            assert awaited, f"{name} waits for {other}, whose health nobody asks"
        mounted = {volume.split(":")[0] for volume in service.get("volumes", [])}
        assert mounted <= set(described["volumes"])
    built = services["worker"]["build"]
    assert (INFRA / built["context"] / built["dockerfile"]).resolve() == DOCKERFILE
    assert set(read(COMPOSE[1])["services"]) <= set(services)


def test_compose_gives_prefects_file_every_place_that_it_names() -> None:
    wanted = set(re.findall(r"\{\{ \$(\w+) \}\}", (INFRA / "prefect.yaml").read_text(encoding="utf-8")))
    assert wanted and wanted <= set(read(COMPOSE[0])["services"]["deployments"]["environment"])


# ---- the image


def instructions() -> list[tuple[str, str]]:
    """(instruction, what follows) of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined.splitlines() if line.strip()]


def test_every_source_that_the_image_copies_exists_and_reaches_the_builder() -> None:
    sent = {line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [s for kind, rest in instructions() if kind == "COPY" and "--from" not in rest for s in rest.split()[:-1]]
    assert len(sources) >= 9
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in sent, source


def test_the_image_has_pinned_parents_and_a_user() -> None:
    parents = [rest.split()[0] for kind, rest in instructions() if kind == "FROM"]
    assert parents and all(PINNED.fullmatch(parent) for parent in parents)
    kinds = [kind for kind, _ in instructions()]
    last = len(kinds) - kinds[::-1].index("FROM")
    assert ("USER", "retort") in instructions()[last:] and "--uid 1000" in dict(instructions()[last:])["RUN"]
    assert not [rest for kind, rest in instructions() if kind in ("ENV", "ARG") and re.search("TOKEN|SECRET", rest)]
    assert "uv sync --locked" in DOCKERFILE.read_text(encoding="utf-8")


def test_the_image_for_machines_without_gpu_leaves_out_all_of_cuda() -> None:
    locked = {package["name"] for package in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]}
    of_cuda = {name for name in locked if name.startswith(("nvidia-", "cuda-", "triton"))}
    left_out = set((INFRA / "cuda-packages.txt").read_text(encoding="utf-8").split())
    assert left_out == of_cuda | {"torch", "torchvision"}


def commands() -> Iterator[str]:
    """Every program that the image's files start."""
    for service in read(COMPOSE[0])["services"].values():
        command = service.get("command", [])
        lines = command[2].splitlines() if command[:1] == ["sh"] else [shlex.join(command)]
        yield from (line.split()[0] for line in lines if line and service["image"].startswith("retort:"))
    (container,) = read(INFRA / "kubernetes" / "job.yaml")["spec"]["template"]["spec"]["containers"]
    yield from (line.split()[0] for line in container["args"][0].splitlines() if line)
    yield dict(instructions())["CMD"].split('"')[1]


def test_every_command_is_a_program_of_the_environment() -> None:
    from importlib.metadata import entry_points

    programs = {each.name for each in entry_points(group="console_scripts")}
    assert {"retort", "prefect"} == set(commands()) and set(commands()) <= programs


def test_every_option_of_the_job_is_one_of_the_command() -> None:
    from typer.main import get_command

    from flows.cli import app

    (container,) = read(INFRA / "kubernetes" / "job.yaml")["spec"]["template"]["spec"]["containers"]
    for line in container["args"][0].splitlines():
        _, name, *rest = shlex.split(line)
        known = {option for each in get_command(app).commands[name].params for option in each.opts}  # type: ignore[attr-defined]
        assert {part for part in rest if part.startswith("--")} <= known, line


# ---- Kubernetes


def test_the_job_is_one_that_kubernetes_takes() -> None:
    kubernetes_validate.validate(read(INFRA / "kubernetes" / "job.yaml"), KUBERNETES, strict=True)


def rendered(**values: Any) -> dict[str, Any]:
    """The job that a worker makes of the pool's template: placeholders filled in, and command and environment as lists,
    as Prefect's Kubernetes worker writes them."""
    from prefect.utilities.templating import apply_values

    template = read(INFRA / "kubernetes" / "job-template.json")
    known = template["variables"]["properties"]
    jsonschema.validate(values, template["variables"])
    defaults = {name: each["default"] for name, each in known.items() if "default" in each}
    job = apply_values(template["job_configuration"], {**defaults, **values})["job_manifest"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["args"] = container["args"].split()
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    return job


def test_the_job_template_of_a_work_pool_renders_to_a_job_with_gpus() -> None:
    given = {"image": "retort:0.1.0-cuda", "memory": "64Gi", "name": "run", "command": "prefect flow-run execute"}
    job = rendered(**given, gpus=2, env={"RETORT_STORE": "s3://bucket/store"})
    for field in ("completions", "parallelism"):  # Prefect's worker demands them of the pod, where Kubernetes has none
        assert job["spec"]["template"]["spec"].pop(field) == 1
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["nvidia.com/gpu"] == 2 and container["resources"][kind]["memory"] == "64Gi"
    assert container["image"] == "retort:0.1.0-cuda" and "{{" not in json.dumps(job)
    with pytest.raises(jsonschema.ValidationError, match="-1 is less than the minimum"):
        rendered(**given, gpus=-1)


def test_every_placeholder_of_the_job_template_is_a_variable_and_none_is_idle() -> None:
    template = read(INFRA / "kubernetes" / "job-template.json")
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])
