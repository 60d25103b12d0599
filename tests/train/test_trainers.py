"""Other people's training loops: Hugging Face's Trainer on a tiny Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import fewbit

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

IDS = torch.randint(0, 64, (32, 12), generator=torch.Generator().manual_seed(0))


class Rows(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return len(IDS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": IDS[index], "labels": IDS[index]}


def llama(tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_hugging_face_s_trainer_trains_checkpoints_and_resumes(tied: bool, tmp_path: Path) -> None:
    def trainer(steps: int) -> object:
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=8, learning_rate=5e-3, save_steps=4,
            report_to=[], use_cpu=True, gradient_checkpointing=True, disable_tqdm=True, lr_scheduler_type="constant",
            logging_strategy="no",
        )  # fmt: skip
        prepared = fewbit.prepare_qat(llama(tied), "W4A16-g16", freeze_ranges_after=6)
        return transformers.Trainer(model=prepared, args=options, train_dataset=Rows())

    first = trainer(4)
    first.train()
    resumed = trainer(8)
    resumed.train(resume_from_checkpoint=True)
    whole = trainer(8)
    whole.train()
    model, other = resumed.model.eval(), whole.model.eval()
    with torch.no_grad():
        assert torch.allclose(model(IDS).logits, other(IDS).logits, atol=1e-4)
    converted = fewbit.convert(model)
    with torch.no_grad():
        assert torch.equal(converted(IDS).logits, model(IDS).logits)
