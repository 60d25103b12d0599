"""Distillation: the losses by their definition, and that they pull the student to the teacher."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.train import Distillation
from fewbit.train.distillation import block_loss, logit_loss

from .samples import fit, net, pictures

X, _ = pictures(32, seed=9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logit_loss_is_the_divergence_by_definition(temperature: float) -> None:
    student, teacher = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    p, q = (torch.softmax(t / temperature, -1) for t in (teacher, student))
    wanted = (p * (p.log() - q.log())).sum(-1).mean() * temperature**2
    assert logit_loss(student, teacher, temperature).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert logit_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_block_loss_is_relative() -> None:
    t = torch.randn(4, 6)
    assert block_loss(t * 1.1, t).item() == pytest.approx(0.01, rel=1e-4)
    assert block_loss(torch.zeros(4, 6), t).item() == pytest.approx(1.0)
    assert block_loss(t, torch.zeros(4, 6)).isfinite()


def test_a_student_without_labels_comes_closer_to_its_teacher() -> None:
    teacher = net()
    fit(teacher.train(), 60, 0.2)
    teacher.zero_grad()
    student = fewbit.prepare_qat(teacher.eval(), "W2A4", [X], freeze_norms_after=0)
    with Distillation(student, teacher, blocks=["hidden"], temperature=2.0) as distill:
        before = distill(student.eval()(X), X).item()
        optimizer = torch.optim.Adam(student.parameters(), 3e-3)
        for seed in range(30):
            x, _ = pictures(32, seed)
            loss = distill(student.train()(x), x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = distill(student.eval()(X), X).item()
    assert after < before / 2
    assert not teacher.hidden._forward_hooks
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_outputs_with_logits_and_without_a_tensor() -> None:
    teacher, student = nn.Linear(3, 3), nn.Linear(3, 3)
    distill = Distillation(student, teacher)
    x = torch.randn(2, 3)
    assert distill(SimpleNamespace(logits=student(x)), x) == distill(student(x), x)
    with pytest.raises(FewbitError, match="holds no tensor"):
        distill("text", x)
    with pytest.raises(FewbitError, match="the student has no block 'body'"):
        Distillation(student, teacher, blocks=["body"])


def test_copies_and_converted_models_are_not_watched() -> None:
    teacher = net()
    student = fewbit.prepare_qat(teacher, "W4A4", [X], freeze_norms_after=0)
    with Distillation(student, teacher, blocks=["hidden"], logits=0.0) as distill:
        wanted = distill(student(X), X)
        output = student(X)
        for other in (copy.deepcopy(student), fewbit.convert(student)):
            other(X * 3)
        assert torch.equal(distill(output, X), wanted)
        assert b"Watch" not in pickle.dumps(student)


def test_a_block_that_ends_before_its_folded_norm_is_refused() -> None:
    teacher = net()
    student = fewbit.prepare_qat(teacher, "W4A4", [X], freeze_norms_after=0)
    with pytest.raises(FewbitError, match="name the batch norm 'norm' instead"):
        Distillation(student, teacher, blocks=["conv"])
    exact = fewbit.prepare_qat(teacher, "W16A16", [X], freeze_norms_after=0)
    with Distillation(exact, teacher, blocks=["norm"], logits=0.0) as distill:
        assert distill(exact(X), X).item() < 1e-6


def test_a_loss_needs_a_forward_before_it() -> None:
    teacher = net()
    student = fewbit.prepare_qat(teacher, "W4A4", [X])
    distill = Distillation(student, teacher, blocks=["hidden"])
    output = student(X)
    distill(output, X)
    with pytest.raises(FewbitError, match="run the student first"):
        distill(output, X)
    distill.close()
    with pytest.raises(FewbitError, match="closed"):
        distill(student(X), X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "positive number"),
        ({"temperature": float("nan")}, "positive number"),
        ({"logits": -1.0}, "logits is a weight of 0 or more"),
        ({"logits": 0.0}, "nothing is distilled"),
        ({"logits": 0.0, "blocks": ["0"], "block_weight": 0.0}, "nothing is distilled"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(FewbitError, match=message):
        Distillation(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)), **settings)
