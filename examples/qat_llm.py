"""Quantization-aware training of a tiny language model at 4 and 2 bits, against post-training quantization.

    python examples/qat_llm.py --train TEXT --test TEXT --out runs/llm

A Llama of bytes is trained from scratch on one text and measured on another. Then it is quantized after training, and
by training on with fake-quantized weights, distilled from the float model, and once more by adapters on the frozen
codes. With ``--out`` the same command goes on where it was killed, and more schemes can be added. Needs fewbit[llm];
some minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _command import command, existing, folder, make_folder, whole
from _journal import Journal, Settings, fingerprint
from _training import Job, check_state, train
from torch import Tensor, nn

import fewbit
from fewbit.atomic import write_text
from fewbit.errors import FewbitError, require
from fewbit.recipe import as_recipe
from fewbit.train import Distillation, add_lora

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WINDOW, BATCH = 64, 8
HEADS, KV_HEADS = 4, 2
RATES = {"float": 3e-3, "trained": 1e-3, "adapters": 3e-3}


@dataclass(frozen=True)
class Run:
    """What one command works on. Every result is tied to ``common``, and to more of its own."""

    options: argparse.Namespace
    text: Tensor
    test: Tensor
    journal: Journal
    common: Settings

    def measured_on(self, settings: Settings) -> Settings:
        """What a perplexity is tied to, of something made with ``settings``."""
        return {**settings, "the test text": fingerprint({"text": self.test})}

    def path(self, name: str) -> Path | None:
        """Where something of this name is kept, if anything is."""
        out = self.options.out
        return None if out is None else out / re.sub(r"[^\w.]+", "-", name)


@dataclass(frozen=True)
class OneCycle:
    """Learning rate and first momentum as in torch's OneCycleLR, up for a fifth of the steps; also for few steps."""

    steps: int
    rate: float

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set both."""
        top = max(0.2 * self.steps - 1, 0.0)
        if step < top:
            rate, momentum = _cosine(self.rate / 25, self.rate, step / top), _cosine(0.95, 0.85, step / top)
        else:
            progress = (step - top) / max(self.steps - 1 - top, 1.0)
            rate, momentum = _cosine(self.rate, self.rate / 25e4, progress), _cosine(0.85, 0.95, progress)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = rate, (momentum, 0.99)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def tiny_llama(width: int, layers: int) -> nn.Module:
    transformers = require("transformers", "llm")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=width * 3, num_hidden_layers=layers,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=WINDOW,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def read(path: Path) -> Tensor:
    """The bytes of a text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror}; name a text with --train and --test") from error
    if len(data) < 20 * WINDOW:
        raise FewbitError(f"{path} is too short: {len(data)} bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train_on_text(run: Run, job: Job, model: nn.Module, seed: int, teacher: nn.Module | None = None) -> None:
    """AdamW, one cycle; learned steps have no weight decay."""
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    decayed = [p for key, p in trained.items() if p.dim() > 1 and not key.endswith("scale")]
    others = [p for key, p in trained.items() if p.dim() <= 1 or key.endswith("scale")]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(run.text) - WINDOW - 1, (job.schedule.steps, BATCH), generator=generator)
    distill = None if teacher is None else Distillation(model, teacher)

    def loss_at(step: int) -> Tensor:
        ids = run.text[starts[step][:, None] + torch.arange(WINDOW + 1)]
        with torch.autocast("cpu", torch.bfloat16):
            output = model(ids[:, :-1])
            loss = loss_of(output.logits, ids)
            return loss if distill is None else loss + distill(output, ids[:, :-1])

    try:
        train(job, model, torch.optim.AdamW(groups), loss_at)
    finally:
        if distill is not None:
            distill.close()


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor, windows: int = 64) -> float:
    """Per byte, over evenly spread windows."""
    model.eval()
    starts = torch.linspace(0, len(text) - WINDOW - 1, windows).long()
    ids = text[starts[:, None] + torch.arange(WINDOW + 1)]
    losses = [float(loss_of(model(part[:, :-1]).logits, part)) for part in ids.split(BATCH)]
    mean = sum(losses) / len(losses)
    return math.exp(mean) if mean < 700 else math.inf


# --- the runs -----------------------------------------------------------------------------------


def job_of(run: Run, name: str, way: str, steps: int, settings: Settings) -> Job:
    own = {"--float-steps" if way == "float" else "--steps": steps}
    path = run.path(f"{name}.pt")
    return Job(name, OneCycle(steps, RATES[way]), path, {**settings, **own}, "its rate in RATES", clip=1.0)


def float_model(run: Run) -> nn.Module:
    options = run.options
    model = tiny_llama(options.width, options.layers)
    train_on_text(run, job_of(run, "float", "float", options.float_steps, run.common), model, seed=1)
    return model.eval()


def trained_on(run: Run, model: nn.Module, job: Job) -> float:
    """What the same steps bring without quantization."""
    control = copy.deepcopy(model)
    train_on_text(run, job, control, seed=2, teacher=model)
    return perplexity(control, run.test)


def trained(run: Run, model: nn.Module, scheme: str, way: str, job: Job) -> float:
    """Train in one of the two ways, convert, save."""
    torch.manual_seed(0)  # adapters start at random
    if way == "trained":
        prepared = fewbit.prepare_qat(model, scheme)
    else:
        prepared = add_lora(fewbit.quantize(model, scheme), rank=8)
    train_on_text(run, job, prepared, seed=2, teacher=model)
    converted = fewbit.convert(prepared)
    path = run.path(job.name)
    if path is not None:
        fewbit.save(converted, path, overwrite=True)
    return perplexity(converted, run.test)


def measure(run: Run, scheme: str, model: nn.Module, settings: Settings, float_value: float) -> None:
    """One scheme: after training, trained, and by adapters."""
    own = {**settings, "the recipe": repr(as_recipe(scheme))}
    after = run.journal.measured(
        f"{scheme} post-training",
        run.measured_on(own),
        lambda: perplexity(fewbit.quantize(model, scheme), run.test),
    )
    print(f"{scheme}: post-training {after:.3f}", flush=True)
    for way in ("trained", "adapters"):
        found = _way(run, scheme, way, model, own)
        lost = after - float_value
        recovered = f", {(after - found) / lost:.0%} of the loss recovered" if lost else ""
        print(f"{scheme} {way}: {found:.3f}{recovered}", flush=True)


def _way(run: Run, scheme: str, way: str, model: nn.Module, settings: Settings) -> float:
    job = job_of(run, f"{scheme} {way}", way, run.options.steps, settings)
    found: float = run.journal.measured(
        job.name, run.measured_on(job.settings), lambda: trained(run, model, scheme, way, job)
    )
    return found


def check_schemes(run: Run, model: nn.Module) -> None:
    """Try each scheme on the untrained model, so that one that does not work is told before minutes of training."""
    for scheme in run.options.schemes:
        fewbit.prepare_qat(model, scheme)
        add_lora(fewbit.quantize(model, scheme), rank=8)


def check_kept(run: Run, settings: Settings) -> None:
    """Refuse what is kept if it was made with other settings."""
    for scheme in run.options.schemes:
        own = {**settings, "the recipe": repr(as_recipe(scheme))}
        run.journal.known(f"{scheme} post-training", run.measured_on(own))
        for way in ("trained", "adapters"):
            job = job_of(run, f"{scheme} {way}", way, run.options.steps, own)
            check_state(job)
            run.journal.known(job.name, run.measured_on(job.settings))


def write_results(run: Run) -> None:
    path = run.path("results.json")
    if path is not None:
        found = {name: entry["value"] for name, entry in run.journal.entries.items()}
        write_text(path, json.dumps(found, indent=2) + "\n")


# --- the command line ---------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    train_default, test_default = str(SHARED / "wikitext2-valid.txt"), str(SHARED / "wikitext2-test.txt")
    parser.add_argument("--train", type=existing, default=train_default, help="text to train on")
    parser.add_argument("--test", type=existing, default=test_default, help="text to measure on")
    parser.add_argument("--out", type=folder, help="folder for states, results.json and the quantized models")
    parser.add_argument("--width", type=whole(8), default=128)
    parser.add_argument("--layers", type=whole(1), default=2)
    parser.add_argument("--float-steps", type=whole(1), default=2000)
    parser.add_argument("--steps", type=whole(1), default=200, help="steps of quantized training")
    parser.add_argument("--schemes", nargs="+", default=["W4A16-g64", "W2A16-g64"])
    options = parser.parse_args()
    if options.width % (2 * HEADS):
        parser.error(f"--width {options.width} is not a multiple of {2 * HEADS}: {HEADS} heads of an even width")
    options.schemes = list(dict.fromkeys(options.schemes))
    return options


def main() -> None:
    options = arguments()
    text, test = read(options.train), read(options.test)
    if options.out is not None:
        make_folder(options.out)
    common = {
        "--width": options.width,
        "--layers": options.layers,
        "the training text": fingerprint({"text": text}),
    }
    path = None if options.out is None else options.out / "measured.json"
    run = Run(options, text, test, Journal(path), common)
    check_schemes(run, tiny_llama(options.width, options.layers))
    model = float_model(run)
    settings = {**common, "the float model": fingerprint(model.state_dict())}
    check_kept(run, settings)
    value = run.journal.measured("float", run.measured_on(settings), lambda: perplexity(model, test))
    print(f"float: perplexity {value:.3f} a byte", flush=True)
    job = job_of(run, "float, trained on", "trained", options.steps, settings)
    further = run.journal.measured(job.name, run.measured_on(job.settings), lambda: trained_on(run, model, job))
    print(f"float, trained on for as many steps: {further:.3f}", flush=True)
    for scheme in options.schemes:
        measure(run, scheme, model, settings, value)
        write_results(run)


if __name__ == "__main__":
    command(main)
