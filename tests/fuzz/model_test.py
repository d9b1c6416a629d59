"""A model's small files, before its weights are fetched and after it was converted."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert.preflight import Subject
from llamacpp_orchestrator.models import remote_code
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.verify import tokenizer
from tests.fuzz.common import folder
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.fuzz.common import spoilt
from tests.support.adapters import BASE

CONFIG: dict[str, Any] = {
    **BASE,
    "_name_or_path": "org/base",
    "quantization_config": {"quant_method": "gptq", "format": "x", "quant_algo": "NVFP4"},
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "vision_config": {"architectures": ["CLIPVisionModel"]},
}
TOKENIZER: dict[str, Any] = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "ids": [3]},
}
SAID: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>"},
    "chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "x"}],
}
README = b"---\nlicense: mit\nbase_model: org/base\nbase_model_relation: quantized\n---\n# Hello\n"
METADATA: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 9,
    "tokenizer.chat_template": "{{ messages }}",
}
SCRIPT = """
import argparse

class ModelBase:
    def get_vocab_base_pre(self, tokenizer):
        res = None
        if chkhsh == "{}":
            res = "gpt-2"

@ModelBase.register("LlamaForCausalLM")
class LlamaModel(ModelBase):
    model_arch = gguf.MODEL_ARCH.LLAMA

    def set_vocab(self):
        self._set_vocab_gpt2()

parser = argparse.ArgumentParser()
parser.add_argument("--outtype", choices=["f16", "bf16"], default="f16")
"""
EACH = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "README.md",
)


@functools.cache
def tree() -> Path:
    """A tree with the least of a converter that can be looked into."""
    made = Path(tempfile.mkdtemp())
    (made / "convert_hf_to_gguf.py").write_text(SCRIPT.format("1" * 64), encoding="utf-8")
    (made / "convert_lora_to_gguf.py").write_text(SCRIPT.format("1" * 64), encoding="utf-8")
    return made


models = st.fixed_dictionaries(
    {"config.json": json_text(CONFIG), "tokenizer.json": json_text(TOKENIZER)},
    optional={
        "tokenizer_config.json": json_text(SAID, {"auto_map": {"AutoTokenizer": "org/other--x.Y"}}),
        "generation_config.json": json_text({"eos_token_id": [2]}),
        "special_tokens_map.json": json_text({"bos_token": {"content": "<s>"}}),
        "chat_template.json": json_text({"chat_template": "x"}),
        "chat_template.jinja": spoilt(st.just(b"{{ messages }}")),
        "README.md": spoilt(st.just(README)),
        weight_files.INDEX: json_text({"weight_map": {"a.qweight": "model.safetensors"}}),
    },
)


@fuzzed(models)
def test_models(files: dict[str, bytes]) -> None:
    with folder() as here:
        for name, content in files.items():
            (here / name).write_bytes(content)
        subject = Subject(tree=tree(), tag="b11434", folder=here, source="org/name")
        reading(lambda: preflight.check_model(subject))
        config = reading(lambda: safetensors.read_json(here / "config.json"))
        if config is not None:
            reading(lambda: remote_code.check_remote_code(config, "org/name"))
        speech = reading(lambda: tokenizer.read(here))
        assert speech
        found = reading(lambda: tokenizer.compare(speech, METADATA, 4))
        assert found and all(len(said) < 1000 for said in (*found.failures, *found.notes))
