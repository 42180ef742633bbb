"""launch/k8s_jobset.yaml against the API's own models, both variants."""

import re
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from sfrik_jax import errors
from sfrik_jax.__main__ import build_parser, split_overrides
from sfrik_jax.processes.cluster import OWN

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "launch" / "k8s_jobset.yaml"


def variant(name: str) -> dict:
    """The manifest as it stands, or after the edits that its head names for TPUs."""
    text = MANIFEST.read_text()
    if name == "tpu":
        edits = re.search(r"sed -e '/(.+)/d' -e 's/(.+)//'", text)
        assert edits is not None
        kept = [line for line in text.splitlines() if not re.search(edits[1], line)]
        text = "\n".join(re.sub(edits[2], "", line) for line in kept)
    return yaml.safe_load(text)


@pytest.fixture(params=["gpu", "tpu"])
def jobset(request):
    return variant(request.param)


def job(jobset: dict) -> dict:
    [replicated] = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def container(jobset: dict) -> dict:
    [main] = job(jobset)["template"]["spec"]["containers"]
    return main


def test_the_api_s_models_read_all_of_it(jobset):
    # Generated from the types of JobSet and of Kubernetes' jobs and pods. They refuse a
    # wrong type and drop a field that they do not know: what comes back is all there.
    model = JobsetV1alpha2JobSet.from_dict(jobset)
    assert model is not None
    assert model.to_dict() == jobset
    # Enumerations that the models leave as text.
    policy = jobset["spec"]["failurePolicy"]
    assert policy["restartStrategy"] in ("Recreate", "BlockingRecreate")
    assert [rule["action"] for rule in policy["rules"]] == ["FailJobSet"]
    assert all(
        re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        for rule in policy["rules"]
    )


def test_a_misspelt_field_and_a_wrong_type_are_found(jobset):
    job(jobset)["backofLimit"] = 0
    model = JobsetV1alpha2JobSet.from_dict(jobset)
    assert model is not None
    assert model.to_dict() != jobset
    job(jobset)["backoffLimit"] = "none"
    with pytest.raises(ValueError, match="backoffLimit"):
        JobsetV1alpha2JobSet.from_dict(jobset)


def test_every_exit_code_has_its_rule(jobset):
    rules = job(jobset)["podFailurePolicy"]["rules"]
    by_code = {
        code: rule["action"]
        for rule in rules
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    codes = {
        each.code
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.SfrikError)
    }
    again = {errors.Preempted.code, errors.WorkerError.code}
    # A lost peer counts: the job fails, and JobSet starts all of it again.
    assert errors.WorkerError.code not in by_code
    assert by_code.pop(errors.Preempted.code) == "Ignore"
    assert set(by_code) == codes - again | {126, 127}
    assert set(by_code.values()) == {"FailJob"}
    for rule in rules:
        assert sorted(rule) in (
            ["action", "onExitCodes"],
            ["action", "onPodConditions"],
        )
        if "onExitCodes" in rule:
            values = rule["onExitCodes"]["values"]
            assert values == sorted(set(values))  # the API refuses others
            assert rule["onExitCodes"]["containerName"] == container(jobset)["name"]
    # A pod failure policy needs this.
    assert job(jobset)["template"]["spec"]["restartPolicy"] == "Never"


def test_the_processes_find_each_other(jobset):
    hosts = job(jobset)["parallelism"]
    assert job(jobset)["completions"] == hosts
    names = [each["name"] for each in container(jobset)["env"]]
    assert jobset["spec"]["coordinator"]["replicatedJob"] == "hosts"
    variables = {each["name"]: each for each in container(jobset)["env"]}
    if "google.com/tpu" in container(jobset)["resources"]["limits"]:
        # GKE names the hosts of a slice itself, which jax reads.
        assert not [name for name in names if name.startswith("SFRIK_")]
        selector = job(jobset)["template"]["spec"]["nodeSelector"]
        rows, columns = selector["cloud.google.com/gke-tpu-topology"].split("x")
        chips = container(jobset)["resources"]["limits"]["google.com/tpu"]
        assert int(rows) * int(columns) == hosts * chips
        return
    coordinator, count, index = OWN
    assert variables[count]["value"] == str(hosts)
    assert "job-completion-index" in str(variables[index])
    host, port = variables[coordinator]["value"].split(":")
    # $(NAME) is replaced only by a variable that stands before it.
    assert host == "$(COORDINATOR_HOST)"
    assert names.index("COORDINATOR_HOST") < names.index(coordinator)
    assert [p["containerPort"] for p in container(jobset)["ports"]] == [int(port)]


def test_the_command_is_ours_and_its_volumes_are_there(jobset):
    main = container(jobset)
    assert main["command"][:3] == ["python", "-m", "sfrik_jax"]
    rest, overrides = split_overrides([*main["command"][3:], *main["args"]])
    args = build_parser().parse_args(rest)
    assert (ROOT / args.config).exists()
    mounts = {mount["name"]: mount["mountPath"] for mount in main["volumeMounts"]}
    assert args.workdir.startswith(mounts["shared"])
    assert overrides == [f"data.path={mounts['shared']}/data"]
    assert mounts["shm"] == "/dev/shm"
    spec = job(jobset)["template"]["spec"]
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts)
    assert spec["terminationGracePeriodSeconds"] > 60
