"""Dropout probabilities of models, against setting them by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, Trainer
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from tests.support.scripted_link import LinkScript, delivery
from tests.support.tiny_runs import AtStep, Outcome, outcome, run
from tests.trainer_agent.parameters.steered import (
    all_applied,
    change,
    refusal,
    rejection,
    release,
    scripted,
    steer,
)
from trainer_agent import attach
from trainer_agent.parameters import Boundary, Multiply, Release, Set
from trainer_agent.parameters.dropout import Dropout, find, find_places
from trainer_agent.run import Run

NAME = "dropout"
HERE = Boundary(4, 10)


class Dropping(nn.Module):
    """Fits a line, with a dropout module, a number that a function uses and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(3, 8)
        self.resid_dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 1)
        self.attention_dropout = 0.2
        self.forgotten_dropout = 0.3

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.resid_dropout(self.linear(x))
        hidden = nn.functional.dropout(hidden, self.attention_dropout, self.training)
        predicted = self.head(hidden)
        return {"loss": nn.functional.mse_loss(predicted, labels), "logits": predicted}


def parameter_of(model: nn.Module) -> Dropout:
    (parameter,) = find(Run(model=model))
    return parameter


def test_a_trainer_is_steered_as_a_plain_callback_would_and_resumes(tmp_path: Path) -> None:
    args: dict[str, Any] = {"save_strategy": "steps", "save_steps": 6}

    def write(step: int, trainer: Trainer) -> None:
        model: Any = trainer.model
        if step == 4:
            model.resid_dropout.p = 0.5
            model.attention_dropout = 0.0
        if step == 8:
            model.attention_dropout = 0.2

    script = {
        4: [change(NAME, 0.5, "resid_dropout"), change(NAME, 0.0, "attention_dropout")],
        8: [back := release(NAME)],
    }
    back.group = "attention_dropout"
    live, link = steer(tmp_path / "live", script, model=Dropping(), **args)
    assert all_applied(link)
    _, plain = scripted(tmp_path / "plain", write, model=Dropping(), **args)
    outcome(live).assert_same(plain)
    _, untouched = scripted(tmp_path / "none", lambda *_: None, model=Dropping(), **args)
    assert plain.differs(untouched)

    checkpoint = str(tmp_path / "live" / "checkpoint-6")
    again, _ = steer(tmp_path / "again", {8: [back]}, resume=checkpoint, model=Dropping(), **args)
    model: Any = again.model
    assert (model.resid_dropout.p, model.attention_dropout) == (0.5, 0.2)
    outcome(again).assert_same(plain)


def test_what_nothing_reads_is_not_offered() -> None:
    assert set(find_places(Dropping())) == {"resid_dropout", "attention_dropout"}


def test_hugging_face_models() -> None:
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.1,
        )
    )
    assert parameter_of(llama).get() == {"attention_dropout": 0.1}
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=8, n_embd=8, n_layer=2, n_head=2, n_positions=8, resid_pdrop=0.3)
    )
    assert parameter_of(gpt2).get() == {
        "drop": 0.1,
        "attn_dropout": 0.1,
        "resid_dropout": 0.3,
        "dropout": 0.3,
    }
    bert = BertModel(
        BertConfig(
            vocab_size=8,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            attention_probs_dropout_prob=0.4,
        )
    )
    # Layers of the one name differ, and so does what they are called.
    assert parameter_of(bert).get() == {"dropout=0.1": 0.1, "dropout=0.4": 0.4}


def test_names_of_modules() -> None:
    adapter = nn.ModuleDict({"lora_dropout": nn.ModuleDict({"default": nn.Dropout(0.05)})})
    assert set(find_places(adapter)) == {"lora_dropout"}
    assert set(find_places(nn.ModuleDict({"classifier": nn.Sequential(nn.Dropout(0.1))}))) == {
        "classifier"
    }
    assert set(find_places(nn.Sequential(nn.Dropout(0.1)))) == {"0"}
    assert set(find_places(nn.MultiheadAttention(4, 2, dropout=0.2))) == {"dropout"}
    assert find_places(nn.Linear(2, 2)) == {}
    assert list(find(Run(model=nn.Linear(2, 2)))) == list(find(Run())) == []


def test_without_a_group_only_where_all_are_alike() -> None:
    model = Dropping()
    parameter = parameter_of(model)
    refused = refusal(parameter, Set(NAME, 0.3), HERE)
    assert refused.reason == "GROUP_NEEDED"
    assert "attention_dropout (0.2), resid_dropout (0.1)" in refused.message
    parameter.apply(Multiply(NAME, 2.0), HERE)
    assert (model.resid_dropout.p, model.attention_dropout) == (0.2, 0.4)
    parameter.apply(Release(NAME), HERE)
    assert (model.resid_dropout.p, model.attention_dropout) == (0.1, 0.2)


def test_bounds_undo_and_disagreement() -> None:
    model = Dropping()
    parameter = parameter_of(model)
    refused = refusal(parameter, Set(NAME, 1.0, group="resid_dropout"), HERE)
    assert "at least 0 and below 1" in refused.message
    unknown = refusal(parameter, Set(NAME, 0.1, group="x"), HERE)
    assert "there are: attention_dropout, resid_dropout" in unknown.message
    parameter.undo(parameter.apply(Set(NAME, 0.4, group="resid_dropout"), HERE))
    assert (model.resid_dropout.p, model.forgotten_dropout) == (0.1, 0.3)
    twins = nn.ModuleList(nn.ModuleDict({"dropout": nn.Dropout(0.1)}) for _ in range(2))
    parameter = parameter_of(twins)
    first: Any = twins[0]
    first["dropout"].p = 0.7
    assert parameter.get() == {"dropout": None}
    assert refusal(parameter, Set(NAME, 0.2), HERE).reason == "VALUES_DISAGREE"
    assert first["dropout"].p == 0.7


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["resid_dropout", "attention_dropout"]),
            st.one_of(st.none(), st.floats(0, 1, exclude_max=True)),
        ),
        max_size=8,
    )
)
def test_random_sequences(asked: list[tuple[str, float | None]]) -> None:
    model = Dropping()
    parameter, wanted = parameter_of(model), {"resid_dropout": 0.1, "attention_dropout": 0.2}
    began = dict(wanted)
    for group, value in asked:
        made = Release(NAME, group) if value is None else Set(NAME, value, group=group)
        parameter.apply(made, HERE)
        wanted[group] = began[group] if value is None else value
        assert {
            "resid_dropout": model.resid_dropout.p,
            "attention_dropout": model.attention_dropout,
        } == wanted


def test_a_refusal_reaches_the_caller(tmp_path: Path) -> None:
    _, link = steer(tmp_path, {4: [change(NAME, 0.5)]}, model=Dropping())
    assert (rejection(link).reason, rejection(link).parameter) == ("GROUP_NEEDED", NAME)


@pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.long), "sdpa"])
def test_with_trl(tmp_path: Path, attention: str) -> None:
    script = LinkScript({2: [delivery(1, change(NAME, 0.4))]})

    def train(name: str, prepare: Any = lambda _: None) -> Outcome:
        def with_attention(trainer: Trainer) -> None:
            model: Any = trainer.model
            model.set_attn_implementation(attention)
            prepare(trainer)

        return run("sft", tmp_path / name, with_attention, max_steps=4)

    def by_hand(trainer: Trainer) -> None:
        def write(step: int, *_: Any) -> None:
            model: Any = trainer.model
            if step == 2:
                for layer in model.model.layers:
                    layer.self_attn.attention_dropout = 0.4

        trainer.add_callback(AtStep(write))

    live = train("live", lambda trainer: attach(trainer, "job", link_factory=script))
    assert all_applied(script.link)
    live.assert_same(train("plain", by_hand))
    assert live.differs(train("none"))
