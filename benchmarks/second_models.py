"""Do the algorithms keep their order on other models? MiniLM-L6 (word similarities) and Whisper tiny.en (word errors).

    python benchmarks/second_models.py [minilm] [whisper]

Linears of the blocks only, weights in int4 and int3 with groups of 64, activations float. MiniLM is calibrated on the
even texts of the Lee corpus and on their words one by one, mixed, as it is judged on both; Whisper on four recordings
of numbers and commands that are not among those judged, and on each two of them joined (alone they are 19 positions of
the decoder). The word error rate is coarse (92 words), so the divergence of
its predictions from the float model's is told as well: each model is given the float model's own transcript and
predicts the next token.
"""

from __future__ import annotations

import itertools
import random
import re
import sys
import time
from typing import Any

import _whisper
import numpy as np
import torch
from _results import markdown_table, write
from torch import Tensor, nn

import fewbit
from fewbit.demo import minilm
from fewbit.evaluate.error import sqnr
from fewbit.models import layout
from fewbit.recipe import Recipe, Rule

SCHEMES = ("W4A16-g64", "W3A16-g64")
_RESAMPLED = 1000
ALGORITHMS = ("rtn", "gptq", "awq", "best", "hqq")


def blocks_only(model: nn.Module, scheme: str) -> Recipe:
    names = sorted({name for b in layout(model).blocks for group in b.groups for name in group.linears})
    rules = [Rule(match=name, scheme=scheme) for name in names]
    return Recipe(scheme, rules=(*rules, Rule(match="*", skip=True)))


class Words:
    """MiniLM, judged by Spearman correlations with people and the SQNR of embeddings of texts it did not see."""

    columns = ("WordSim-353", "SimLex-999", "SQNR, dB")
    more = ("WordSim beside rtn", "SimLex beside rtn")

    def __init__(self) -> None:
        self.encoder, texts = minilm.Encoder(), minilm.news_texts()
        self.model, self.judged = minilm.minilm(), texts[1::2]
        news = [self.encoder.batch([text]) for text in texts[::2]]
        words = sorted({word for text in texts[::2] for word in re.findall("[a-z]{3,}", text.lower())})
        single = [batch for batch in map(self.encoder.batch, zip(words)) if batch["input_ids"].shape[1] == 3]
        groups = [single[i :: len(news)] for i in range(len(news))]
        alone = [{key: torch.cat([batch[key] for batch in group]) for key in group[0]} for group in groups]
        self.batches = [*news, *alone]
        random.Random(0).shuffle(self.batches)  # what ``best`` holds back, every eighth batch, is of both kinds
        self.exact = self.encoder.embed(self.model, self.judged)
        self.pairs = (minilm.wordsim353(), minilm.simlex999())
        self.found: tuple[Tensor, ...] = ()

    def judge(self, model: nn.Module) -> tuple[float, ...]:
        """The columns."""
        self.found = tuple(self._cosines(model, pairs) for pairs in self.pairs)
        correlations = [minilm.spearman(own, pairs.scores) for own, pairs in zip(self.found, self.pairs)]
        return (*correlations, min(sqnr(self.exact, self.encoder.embed(model, self.judged)), 200.0))

    def _cosines(self, model: nn.Module, pairs: minilm.Similarities) -> Tensor:
        vectors = dict(
            zip(pairs.words, nn.functional.normalize(self.encoder.embed(model, pairs.words).double(), dim=1))
        )
        return torch.stack([vectors[a] @ vectors[b] for a, b in pairs.pairs])

    def beside(self, nearest: tuple[Tensor, ...]) -> list[str]:
        """The two correlations less those of rounding to nearest, and the standard errors of that difference (bootstrap
        over the pairs of words)."""
        told = []
        for own, other, pairs in zip(self.found, nearest, self.pairs):
            generator = torch.Generator().manual_seed(0)
            differences = torch.tensor(
                [
                    minilm.spearman(own[some], pairs.scores[some]) - minilm.spearman(other[some], pairs.scores[some])
                    for some in torch.randint(0, len(own), (_RESAMPLED, len(own)), generator=generator)
                ]
            )
            exact = minilm.spearman(own, pairs.scores) - minilm.spearman(other, pairs.scores)
            told.append(f"{exact:+.4f} ± {float(differences.std()):.4f}")
        return told


class Speech:
    """Whisper, judged by word errors and by the divergence of its predictions."""

    columns = ("word errors of 92", "KL, nats")
    more: tuple[str, ...] = ()
    found: tuple[Tensor, ...] = ()

    def __init__(self) -> None:
        self.model, self.spoken = _whisper.model(), _whisper.sentences()
        self.heard = _whisper.features(self.spoken)
        sounds = _whisper.other_sounds()
        joined = [np.concatenate(pair) for pair in itertools.permutations(sounds, 2)]
        self.batches = [self._batch(sound) for sound in (*sounds, *joined)]
        self.teacher = [self._transcript(self.heard[i : i + 1]) for i in range(len(self.heard))]
        self.exact = [self._predictions(self.model, i) for i in range(len(self.heard))]

    def judge(self, model: nn.Module) -> tuple[float, ...]:
        """The columns."""
        texts = _whisper.transcribe(model, self.heard)
        errors = sum(_whisper.word_errors(each.said, text)[0] for each, text in zip(self.spoken, texts))
        kl = tokens = 0.0
        for i, exact in enumerate(self.exact):
            ours = self._predictions(model, i)
            kl += float((exact.exp() * (exact - ours)).sum())
            tokens += len(ours)
        return float(errors), kl / tokens

    def beside(self, nearest: tuple[Tensor, ...]) -> list[str]:
        """Nothing more."""
        return []

    def _batch(self, sound: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        heard = _whisper.features([_whisper.Spoken("", sound, "")])
        return {"input_features": heard, "decoder_input_ids": self._transcript(heard)}

    def _transcript(self, heard: Tensor) -> Tensor:
        tokens: Tensor = _whisper.written(self.model, heard)
        return tokens

    @torch.no_grad()
    def _predictions(self, model: Any, i: int) -> Tensor:
        logits = model(input_features=self.heard[i : i + 1], decoder_input_ids=self.teacher[i]).logits[0, 1:]
        return torch.log_softmax(logits.double(), -1)


def study(name: str, subject: Any) -> None:
    """All schemes and algorithms on one model; what there is is written after each."""
    rows: list[dict[str, Any]] = [
        {"scheme": "float", "algorithm": "", "values": subject.judge(subject.model), "seconds": 0.0}
    ]
    for scheme in SCHEMES:
        nearest: tuple[Tensor, ...] = ()
        for algorithm in ALGORITHMS:
            start = time.process_time()
            recipe = blocks_only(subject.model, scheme)
            q = fewbit.quantize(subject.model, recipe, subject.batches, algorithm=algorithm)
            seconds = time.process_time() - start
            values = subject.judge(q)
            nearest = subject.found if algorithm == "rtn" else nearest
            beside = [] if algorithm == "rtn" else subject.beside(nearest)
            row = {"scheme": scheme, "algorithm": algorithm, "values": values, "beside rtn": beside}
            rows.append({**row, "seconds": round(seconds, 1)})
            print(name, rows[-1], flush=True)
            report(name, subject, rows)


def report(name: str, subject: Any, rows: list[dict[str, Any]]) -> None:
    """Write what there is."""
    cells = [
        [
            *(r["scheme"], r["algorithm"]),
            *(f"{v:.4g}" for v in r["values"]),
            *(r.get("beside rtn") or [""] * len(subject.more)),
            f"{r['seconds']:.0f}",
        ]
        for r in rows
    ]
    columns = [name, "algorithm", *subject.columns, *subject.more, "s of processor"]
    table = markdown_table(columns, cells, left=2)
    write(f"second_model_{name}", table, {"rows": rows})


def main(*wanted: str) -> None:
    torch.manual_seed(0)
    subjects = {"minilm": Words, "whisper": Speech}
    for name in wanted or tuple(subjects):
        study(name, subjects[name]())


if __name__ == "__main__":
    main(*sys.argv[1:])
