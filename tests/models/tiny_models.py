"""A tiny random model of every family that has a table, as `transformers` builds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

VOCABULARY = 96
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DENSE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    **_TOKENS,
}
_GROUPED = {**_DENSE, "num_key_value_heads": 2}
_WIDE_HEADS = {**_GROUPED, "head_dim": 16}
_EXPERTS = {**_GROUPED, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
_WHISPER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    **_TOKENS,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_TOKENS}
_OPT = {**_DENSE, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}

# model_type: (config class, model class or the automatic one, settings)
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_GROUPED, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _GROUPED),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _WIDE_HEADS),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _WIDE_HEADS),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_WIDE_HEADS, "sliding_window": 6}),
    "gemma3_text": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_WIDE_HEADS, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _GPT2),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT),
    "bert": ("BertConfig", "BertModel", _DENSE),
    "roberta": ("RobertaConfig", "RobertaModel", _DENSE),
    "xlm_roberta": ("XLMRobertaConfig", "XLMRobertaModel", _DENSE),
    "electra": ("ElectraConfig", "ElectraModel", {**_DENSE, "embedding_size": 32}),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "pad_token_id": 0},
    ),
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", _WHISPER),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**_EXPERTS, "head_dim": 16}),
}
CAUSAL = [name for name, (_, cls, _) in FAMILIES.items() if cls.endswith(("CausalLM", "LMHeadModel"))]
MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe"]
DENSE = [name for name in FAMILIES if name not in MIXTURES]


def tiny(family: str, **settings: Any) -> nn.Module:
    """A random model in evaluation mode; norms and biases are random too, so that nothing is folded by luck."""
    config_class, model_class, defaults = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**defaults, **settings})
    state = torch.get_rng_state()
    torch.manual_seed(0)
    make: Callable[[Any], nn.Module] = getattr(transformers, model_class)
    model = make(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embed" not in name:
                parameter.mul_(3)
    torch.set_rng_state(state)
    return model


def inputs(family: str, seed: int = 0, batch: int = 2, length: int = 12) -> dict[str, Tensor]:
    """Named arguments for a forward of that family's model."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    if family == "whisper":
        return {"input_features": torch.randn(batch, 8, 40, generator=generator), "decoder_input_ids": ids}
    return {"input_ids": ids}


def output(model: nn.Module, family: str, seed: int = 0) -> Tensor:
    """Logits, or the last hidden states where the model has no head."""
    with torch.no_grad():
        result = model(**inputs(family, seed))
    found: Tensor = result.logits if "logits" in result else result.last_hidden_state
    return found


def tokenizer(bos: bool = True) -> Any:
    """One token a character of ``a`` … ``z``, space, digits and a few signs; everything else is unknown."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'-()\n"
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *letters])}
    assert len(vocabulary) <= VOCABULARY
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def tiny_folder(path: Path, family: str, **settings: Any) -> Path:
    """A Hugging Face folder of a tiny model, with a tokenizer of characters."""
    tiny(family, **settings).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
