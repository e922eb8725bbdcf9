"""The workflows parse, may do little, end some day, and call what a person would; `make lint` runs actionlint."""

from __future__ import annotations

import re

import build
import pytest
import yaml

WORKFLOWS = sorted((build.ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^(\w+):", (build.ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
MAKE = re.compile(r"(?:^|&& |; )make (\w+)|--entrypoint make \S+ (\w+)", re.MULTILINE)


def read(path) -> dict:
    return yaml.safe_load(path.read_text("utf-8"))


def jobs(path) -> dict[str, dict]:
    """The jobs with steps of their own; the others are whole workflows of this folder."""
    return {name: job for name, job in read(path)["jobs"].items() if "uses" not in job}


def steps(path) -> list[dict]:
    return [step for job in jobs(path).values() for step in job["steps"]]


def called(path) -> list[str]:
    return ["".join(found) for step in steps(path) for found in MAKE.findall(step.get("run", ""))]


def test_there_is_one_for_changes_one_for_every_week_and_one_for_the_site():
    assert {path.stem: called(path) for path in WORKFLOWS} == {
        "publish": ["book"],
        "tests": ["lint", "test"],
        "weekly": ["notebooks", "book"],
    }


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_it_makes_is_in_the_makefile(path):
    assert set(called(path)) <= TARGETS


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_it_reads_only_and_every_job_ends(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["group"]
    assert all(0 < job["timeout-minutes"] <= 120 for job in jobs(path).values())
    more = {name: job["permissions"] for name, job in jobs(path).items() if "permissions" in job}
    assert more == ({"deploy": {"pages": "write", "id-token": "write"}} if path.stem == "publish" else {})


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_official_and_of_a_fixed_major_version(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


def test_nothing_is_published_that_fails_its_tests():
    (path,) = (path for path in WORKFLOWS if path.stem == "publish")
    published = read(path)["jobs"]
    (tests,) = (name for name, job in published.items() if job.get("uses") == "./.github/workflows/tests.yml")
    assert tests in published["deploy"]["needs"]
    called_by_others = read(path.with_name("tests.yml"))[True]  # YAML reads the key `on` as true
    assert "workflow_call" in called_by_others


def test_the_site_that_is_published_is_that_of_the_network_that_was_asked_for():
    (path,) = (path for path in WORKFLOWS if path.stem == "publish")
    job = read(path)["jobs"]["build"]
    assert job["env"]["SMOOTHSAL_MODEL"] in build.NETWORKS[1:]
    (folder,) = (step["with"]["path"] for step in job["steps"] if "upload-pages" in step.get("uses", ""))
    assert folder == "_build/${{ env.SMOOTHSAL_MODEL }}/_build/html"
    assert "$(if $(SMOOTHSAL_MODEL),--model $(SMOOTHSAL_MODEL))" in (build.ROOT / "Makefile").read_text("utf-8")
