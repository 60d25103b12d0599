"""Other people's training loops: Hugging Face's Trainer on a tiny Llama, Lightning on a small CNN."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fewbit

from .samples import net, pictures

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
lightning = pytest.importorskip("lightning")

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


X, Y = pictures(32, seed=9)


def lit(**settings: Any) -> Any:
    """A LightningModule around a prepared CNN."""

    class Lit(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.net = network

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 1e-2)

    return Lit(fewbit.prepare_qat(net(), "W4A4", [X], **settings))


def lightning_trainer(epochs: int, folder: Path, **settings: Any) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=folder, **quiet,
        **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), 8)


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|training batches|tree_util|LeafSpec).*")
@pytest.mark.parametrize("estimator", ["lsq", "lsq_plus", "pact", "ste"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_trains_and_validates(estimator: str, precision: str, tmp_path: Path) -> None:
    module = lit(estimator=estimator, freeze_ranges_after=6, freeze_norms_after=6)
    averaging = lightning.pytorch.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    trainer = lightning_trainer(3, tmp_path, precision=precision, gradient_clip_val=1.0, callbacks=[averaging])
    trainer.fit(module, batches(), batches())
    converted, inside = fewbit.convert(module.net), fewbit.convert(module)
    with torch.no_grad():
        assert torch.equal(converted(X), module.net.eval()(X))
        assert torch.equal(inside.net(X), converted(X))


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|training batches|tree_util|LeafSpec).*")
def test_lightning_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    whole, half, rest = (lit(freeze_ranges_after=10) for _ in range(3))
    lightning_trainer(4, tmp_path).fit(whole, batches())
    first = lightning_trainer(2, tmp_path, enable_checkpointing=True)
    first.fit(half, batches())
    first.save_checkpoint(tmp_path / "half.ckpt")
    lightning_trainer(4, tmp_path).fit(rest, batches(), ckpt_path=tmp_path / "half.ckpt")
    wanted, found = whole.state_dict(), rest.state_dict()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
