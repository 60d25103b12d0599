"""Distillation: the losses by their definition, and that they pull the student to the teacher."""

from __future__ import annotations

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
