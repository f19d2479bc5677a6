from __future__ import annotations

import random

import pytest
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, SFTTrainer  # type: ignore[attr-defined]  # loaded lazily
from trl.experimental.orpo import ORPOTrainer

from trainer_agent.identity import (
    check_control_plane,
    check_job_id,
    check_labels,
    generated_job_id,
    given_job_id,
    training_method,
)


@pytest.mark.parametrize("job_id", ["a", "7", "my-run_2.b", "a" * 63, "0-0"])
def test_good_job_ids(job_id: str) -> None:
    assert check_job_id(job_id) == job_id


@pytest.mark.parametrize(
    "job_id", ["", "A", "a b", "-a", "a-", ".a", "a/b", "a" * 64, "ä", "a\n", "jobs/x"]
)
def test_bad_job_ids(job_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 63 of a-z") as caught:
        check_job_id(job_id)
    assert repr(job_id) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("team", "nlp"), ("team", ""), ("example.org/team", "A-b_c.1"), ("a" * 63, "b" * 63)],
)
def test_good_labels(key: str, value: str) -> None:
    check_labels({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("", "a"), ("/a", "b"), ("A/a", "b"), ("-a", "b"), ("a", "my team"), ("a", "b" * 64)],
)
def test_bad_labels(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="--label: a label's"):
        check_labels({key: value}, "--label")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:50051",
        "[::1]:50051",
        "a:50051, b:50051,",
        "unix:/run/midcourse.sock",
        "dns:///name:50051",
        "ipv4:10.0.0.1,10.0.0.2",
    ],
)
def test_good_addresses(address: str) -> None:
    assert check_control_plane(address) == address


@pytest.mark.parametrize(
    "address", ["", ",", "nonsense", "a:b", "http://a:50051", "::1:5", "a:1,b"]
)
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="control_plane must be host:port") as caught:
        check_control_plane(address)
    assert repr(address) in str(caught.value)


def test_the_argument_goes_before_the_environment() -> None:
    assert given_job_id("a", {"JOB_ID": "b"}) == "a"
    assert given_job_id(None, {"JOB_ID": "b"}) == "b"
    assert given_job_id(None, {"JOB_ID": ""}) is None
    with pytest.raises(ValueError, match="job must be"):
        given_job_id("", {"JOB_ID": "b"})


def test_generated_ids_are_good_and_leave_the_run_s_randomness_alone() -> None:
    state = random.getstate()
    ids = {generated_job_id("sft") for _ in range(50)}
    assert len(ids) > 45
    assert all(check_job_id(each).startswith("sft-") for each in ids)
    assert random.getstate() == state
    assert generated_job_id("").startswith("run-")
    assert check_job_id(generated_job_id("x" * 60))


def test_the_method_is_read_from_the_class_names() -> None:
    class Mine(SFTTrainer):
        pass

    def bare(cls: type) -> object:
        return object.__new__(cls)

    assert training_method(bare(Mine)) == "sft"
    assert training_method(bare(ORPOTrainer)) == "orpo"
    assert training_method(bare(Trainer)) == "trainer"
    assert training_method(None, bare(DPOConfig)) == "dpo"
    assert training_method(None, bare(TrainingArguments)) == "trainer"
    assert training_method(None, object()) == ""
