"""What newer libraries save is shown to a tag in the form that it reads, and what it reads already is left alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import translation
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.translation import Reader
from llamacpp_orchestrator.translation.reader import MARKS
from llamacpp_orchestrator.translation.reader import reader
from llamacpp_orchestrator.translation.rules import RULES
from llamacpp_orchestrator.translation.tokenizer import framed

# A tag, and the package that carries its tree, as in eras_test.
TAGS = {"b3878": "0.3.1", "b9821": "b9821", "b10605": "b10605", "b11434": "b11434"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
OF_OLD = {"outer context", "prefix by key"}
OLD = Reader(transformers=(4, 57, 6), knows=frozenset(OF_OLD))
NEW = Reader(transformers=(4, 57, 6), knows=frozenset(MARKS) - OF_OLD)
NEWEST = Reader(transformers=(5, 23, 0), knows=NEW.knows)
PAIRS = {"model": {"type": "BPE", "merges": [["a", "b"], ["ab", " c"]]}}


def translated(files: dict[str, Any], by: Reader) -> dict[str, Any]:
    shown = translation.translate(files.get, by, RULES).files
    return {name: json.loads(content) if name.endswith(".json") else content.decode() for name, content in shown.items()}


CONFIGS = [
    # rope: flat, with a scaling, one for each type of layers, under a family's own names, and within a part.
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
    (
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192}},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}},
    ),
    (
        {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 512}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 512},
            "original_max_position_embeddings": 512,
        },
    ),
    (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0, "type": "linear"},
        },
    ),
    (
        {
            "model_type": "gemma3_text",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {"model_type": "gemma3_text", "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    ),
    (
        {"model_type": "gpt_neox", "rope_parameters": {"rope_theta": 2e4, "partial_rotary_factor": 0.25}},
        {"model_type": "gpt_neox", "rotary_emb_base": 2e4, "rotary_pct": 0.25},
    ),
    ({"text_config": {"rope_parameters": {"rope_theta": 3e4}}}, {"text_config": {"rope_theta": 3e4}}),
    # What transformers 4 saved, and a script of 2024 passes over.
    ({"rope_scaling": {"rope_type": "yarn"}}, {"rope_scaling": {"rope_type": "yarn", "type": "yarn"}}),
    ({"rope_scaling": {**LLAMA3}, "head_dim": None}, {"rope_scaling": {**LLAMA3}}),
]


@pytest.mark.parametrize(("config", "shown"), CONFIGS)
def test_a_config_as_scripts_of_2024_read_it(config: dict[str, Any], shown: dict[str, Any]) -> None:
    before = json.dumps(config)
    assert translated({"config.json": config}, OLD) == {"config.json": shown}
    assert json.dumps(config) == before, "the user's own stays as it is"
    assert translated({"config.json": shown}, OLD) == {}, "and what is in that form is left alone"
    assert translated({"config.json": config}, NEWEST) == {}
    assert "model_type" in config or translated({"config.json": config}, NEW) == {}, "its script reads what is new"


KEPT = [
    {},
    {"rope_theta": 1e4, "rope_scaling": None, "head_dim": None},
    {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192}},
    {"rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}},
    {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}},  # written for both
    {"rope_parameters": "odd"},
    {"model_type": "qwen3_moe", "num_local_experts": 8, "num_experts": 8},
    {"model_type": "mixtral", "num_local_experts": 8},
    {"eos_token_id": 2},
    {"eos_token_id": []},
]


@pytest.mark.parametrize("config", KEPT)
@pytest.mark.parametrize("by", [OLD, NEW, NEWEST])
def test_a_config_that_every_reader_takes_is_left_alone(config: dict[str, Any], by: Reader) -> None:
    assert translated({"config.json": config}, by) == {}


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "model_type": "llama"}, {"rope_theta": 5e5}),
        (
            {
                "model_type": "phi3",
                "original_max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]},
            },
            {
                "original_max_position_embeddings": 4096,
                "rope_theta": 1e4,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
            },
        ),
        (
            {"model_type": "gpt_neox", "rope_theta": 2e4, "partial_rotary_factor": 0.5, "rope_parameters": {"rope_theta": 2e4}},
            {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
        ),
        (
            {
                "model_type": "olmo3",
                "rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}},
            },
            {"rope_theta": 1e4},
        ),
        ({"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False}, {"tie_word_embeddings": False}),
        ({"model_type": "granitemoehybrid", "layer_types": ["linear_attention"]}, {"layer_types": ["mamba"]}),
        ({"model_type": "bamba", "time_step_limit": [0.0, {"__float__": "Infinity"}]}, {"time_step_limit": [0.0, float("inf")]}),
        ({"model_type": "gemma4_text", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, None),
    ],
)
def test_a_config_as_transformers_4_reads_it(config: dict[str, Any], shown: dict[str, Any] | None) -> None:
    made = translated({"config.json": config}, NEW).get("config.json")
    assert (made and {key: value for key, value in made.items() if key not in ("model_type", "scale_decoder_outputs")}) == shown
    assert translated({"config.json": config}, NEWEST) == {}


@pytest.mark.parametrize("by", [OLD, NEW, NEWEST])
def test_how_experts_are_scored_is_said_where_only_the_class_knows(by: Reader) -> None:
    config = {"model_type": "deepseek_v3"}
    assert translated({"config.json": config}, by) == {"config.json": {**config, "scoring_func": "sigmoid"}}
    assert translated({"config.json": {**config, "scoring_func": "softmax"}}, by) == {}
    assert translated({"config.json": {"model_type": "deepseek_v2"}}, by) == {}


def test_the_number_of_experts_bears_the_name_that_the_family_had() -> None:
    config = {"model_type": "qwen3_moe", "num_local_experts": 8}
    assert translated({"config.json": config}, NEW) == {"config.json": {"model_type": "qwen3_moe", "num_experts": 8}}
    assert translated({"config.json": config}, NEWEST) == {}


@pytest.mark.parametrize(
    ("tokenizer", "end"),
    [
        ({"eos_token": "</s>", "added_tokens_decoder": {"7": {"content": "</s>"}, "9": {"content": "<|im_end|>"}}}, 7),
        ({"eos_token": {"content": "<|im_end|>"}, "added_tokens_decoder": {"9": {"content": "<|im_end|>"}}}, 9),
        ({"eos_token": "</s>"}, 9),
        (None, 9),
    ],
)
def test_of_several_ends_the_tokenizers_own_is_shown(tokenizer: dict[str, Any] | None, end: int) -> None:
    files = {"config.json": {"eos_token_id": [9, 7]}, "tokenizer_config.json": tokenizer}
    assert translated(files, NEW) == {"config.json": {"eos_token_id": end}}
    assert translated({**files, "tokenizer.json": {}}, NEW) == {}, "there its tokens have numbers"


@pytest.mark.parametrize("name", ["TokenizersBackend", "SentencePieceBackend", "PythonBackend"])
def test_a_class_that_is_new_becomes_the_plain_one(name: str) -> None:
    files = {"tokenizer_config.json": {"tokenizer_class": name, "eos_token": "</s>"}, "tokenizer.json": {}}
    assert translated(files, NEW)["tokenizer_config.json"] == {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    assert translated(files, NEWEST) == {}
    assert translated({"tokenizer_config.json": files["tokenizer_config.json"]}, NEW) == {}, "there is nothing that it could read"


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "LlamaTokenizerFast", "GPTNeoXTokenizer", "HerOwnTokenizer", None])
def test_other_classes_stay(name: str | None) -> None:
    assert translated({"tokenizer_config.json": {"tokenizer_class": name}, "tokenizer.json": {}}, NEW) == {}


def test_a_list_of_special_tokens_bears_its_older_name() -> None:
    config = {"extra_special_tokens": ["<a>"], "eos_token": "</s>"}
    shown = translated({"tokenizer_config.json": config}, NEW)["tokenizer_config.json"]
    assert shown == {"eos_token": "</s>", "additional_special_tokens": ["<a>"]}
    assert translated({"tokenizer_config.json": config}, NEWEST) == {}
    assert translated({"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<i>"}}}, NEW) == {}


def test_pairs_of_merges_become_lines_for_who_reads_no_pairs() -> None:
    assert translated({"tokenizer.json": PAIRS}, OLD) == {"merges.txt": "#version: 0.2\na b\nab Ġc\n"}
    assert translated({"tokenizer.json": PAIRS}, NEW) == {}
    assert translated({"tokenizer.json": PAIRS, "merges.txt": "a b\n"}, OLD) == {}
    assert translated({"tokenizer.json": {"model": {"merges": ["a b"]}}}, OLD) == {}
    assert translated({"tokenizer.json": {"model": {"merges": [["a\n", "b"]]}}}, OLD) == {}, "no line can hold it"


BEFORE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
BEHIND = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "</s>"}}]}


@pytest.mark.parametrize(
    ("processor", "around"),
    [
        (BEFORE, (True, False)),
        (BEHIND, (False, True)),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BEFORE]}, (True, False)),
        ({"type": "RobertaProcessing"}, (True, True)),
        ({"type": "ByteLevel"}, (False, False)),
        ({"type": "TemplateProcessing", "single": []}, (False, False)),
        (None, (False, False)),
    ],
)
def test_what_a_post_processor_puts_around_a_text(processor: Any, around: tuple[bool, bool]) -> None:
    assert framed(processor) == around


@pytest.mark.parametrize(("processor", "begin"), [(BEFORE, True), (None, False)])
def test_what_is_put_around_a_text_is_said_for_who_reads_no_post_processor(processor: Any, begin: bool) -> None:
    files = {"tokenizer_config.json": {"backend": "tokenizers"}, "tokenizer.json": {"post_processor": processor}}
    shown = {"backend": "tokenizers", "add_bos_token": begin, **({"add_eos_token": False} if begin else {})}
    assert translated(files, OLD) == {"tokenizer_config.json": shown}
    assert translated(files, NEW) == {}
    between = Reader(transformers=NEW.transformers, knows=NEW.knows - {"post-processor of bytes"})
    assert translated(files, between) == ({} if begin else {"tokenizer_config.json": shown})
    assert translated({**files, "tokenizer_config.json": {}}, OLD) == {}, "what transformers 4 saved says so itself, or never did"


def test_what_is_put_around_a_text_is_left_to_a_class_that_writes_it_itself(tree: Callable[[str], Path]) -> None:
    processor = {"post_processor": {"type": "RobertaProcessing"}}
    files = {"tokenizer_config.json": {"backend": "tokenizers"}, "tokenizer.json": processor}
    for name in ("XLMRobertaModel", "T5ForConditionalGeneration"):
        by = reader(tree(TAGS["b3878"]), "4.57.6", name)
        assert by.knows == OLD.knows | {"ends by itself"} and translated(files, by) == {}, "b3878 ends at a second word on it"
    assert translated(files, reader(tree(TAGS["b3878"]), "4.57.6", "BertModel")) != {}


def test_what_is_put_around_a_text_is_said_for_a_class_that_would_make_it_anew() -> None:
    config = {"backend": "tokenizers", "tokenizer_class": "LlamaTokenizer"}
    files = {"tokenizer_config.json": config, "tokenizer.json": {"post_processor": BEHIND}}
    assert translated(files, NEW)["tokenizer_config.json"] == {**config, "add_bos_token": False, "add_eos_token": True}
    assert translated(files, NEWEST) == {}
    assert translated({**files, "tokenizer_config.json": {**config, "add_bos_token": True}}, NEW) == {}


def test_a_prefix_that_is_null_is_left_unsaid_for_who_takes_it_for_false() -> None:
    files = {"tokenizer_config.json": {"add_prefix_space": None, "eos_token": "</s>"}}
    assert translated(files, OLD) == {"tokenizer_config.json": {"eos_token": "</s>"}}
    assert translated(files, NEW) == {}
    assert translated({"tokenizer_config.json": {"add_prefix_space": False}}, OLD) == {}


def test_special_tokens_of_a_model_of_its_own_bear_their_older_name() -> None:
    tokens = {"image_token": "<image>"}
    shown = translated({"tokenizer_config.json": {"model_specific_special_tokens": tokens}}, NEW)
    assert shown == {"tokenizer_config.json": {"extra_special_tokens": tokens}}
    assert translated({"tokenizer_config.json": {"model_specific_special_tokens": tokens}}, NEWEST) == {}


def test_a_chat_template_of_its_own_file_is_shown_where_the_tag_looks() -> None:
    files = {"tokenizer_config.json": {"eos_token": "</s>"}, "chat_template.jinja": "{{ x }}"}
    assert translated(files, OLD) == {"tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ x }}"}}
    assert translated(files, NEW) == {}
    assert translated({**files, "tokenizer_config.json": {"chat_template": "{{ y }}"}}, OLD) == {}


def test_how_tokens_are_pooled_is_said_in_older_words() -> None:
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "sentence_transformers.new.Pooling"}]
    files = {"modules.json": modules, "1_Pooling/config.json": {"pooling_mode": "mean"}}
    shown = translated(files, OLD)
    assert shown["modules.json"][1]["type"] == "sentence_transformers.models.Pooling"
    assert shown["1_Pooling/config.json"]["pooling_mode_mean_tokens"] is True
    assert shown["1_Pooling/config.json"]["pooling_mode_cls_token"] is False
    assert translated(files, NEW) == {}


@pytest.mark.parametrize("version", ["6.0.0", "7.1.0.dev0", "10.0"])
def test_what_a_library_of_tomorrow_saved_is_noted_and_not_guessed(version: str) -> None:
    files = {"config.json": {"transformers_version": version, "rope_of_tomorrow": {"base": 1}}}
    found = translation.translate(files.get, NEW, RULES)
    assert found.files == {}
    assert [note.split(",")[0] for note in found.notes] == [f"saved by transformers {version}"]


@pytest.mark.parametrize("version", ["5.23.0", "4.57.6", "", None, "odd"])
def test_what_is_of_today_is_not(version: str | None) -> None:
    assert translation.translate({"config.json": {"transformers_version": version}}.get, NEW, RULES).notes == ()


def test_what_was_translated_is_told_with_who_began_it() -> None:
    found = translation.translate({"config.json": {"rope_parameters": {"rope_theta": 1e4}}}.get, OLD, RULES)
    assert found.notes == (
        "translated for this tag: rope_parameters as rope_theta and rope_scaling (config.json; new since transformers 5.0)",
    )
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.since and rule.source for rule in RULES)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("model", ["tiny-llama", "all-MiniLM-L6-v2"])
def test_what_every_tag_reads_is_not_touched(tag: str, model: str, tree: Callable[[str], Path], data: Path) -> None:
    def read(name: str) -> Any:
        path = data / model / name
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        return json.loads(text) if text and name.endswith(".json") else text

    assert translation.translate(read, reader(tree(TAGS[tag]), "4.57.6"), RULES) == translation.Translation()


def test_what_a_tag_knows_is_read_from_its_source(tree: Callable[[str], Path]) -> None:
    assert reader(tree(TAGS["b3878"]), "4.57.6") == OLD
    for tag in ("b9821", "b10605"):
        assert reader(tree(TAGS[tag]), "4.57.6").knows == NEW.knows - {"post-processor of bytes"}
    assert reader(tree(TAGS["b11434"]), "4.57.6") == NEW
    assert reader(tree(TAGS["b11434"]), "5.23.0") == NEWEST
    assert Reader().before(5), "who does not say what it is counts as old"


@pytest.mark.parametrize(
    ("tag", "architecture", "rope", "refused"),
    [
        ("b3878", "LlamaForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, True),
        ("b3878", "LlamaForCausalLM", {"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, True),
        ("b3878", "Qwen2ForCausalLM", {"text_config": {"rope_scaling": {"type": "linear", "factor": 2.0}}}, True),
        ("b11434", "Qwen2ForCausalLM", {"rope_scaling": LLAMA3}, True),
        ("b3878", "LlamaForCausalLM", {"rope_scaling": LLAMA3}, False),
        ("b3878", "LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 1.0}}, False),
        ("b3878", "LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, False),
        ("b3878", "LlamaForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, False),
        ("b3878", "Phi3ForCausalLM", {"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, False),
        ("b11434", "LlamaForCausalLM", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, False),
        # The base of all classes would write it, and these do not ask it to.
        ("b11434", "Gemma2ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, True),
        ("b11434", "FalconForCausalLM", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, True),
        ("b11434", "Gemma3ForCausalLM", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, False),
        ("b11434", "NobodyKnowsIt", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, False),
    ],
)
def test_a_scaling_that_a_tag_passes_over_is_refused(
    tag: str, architecture: str, rope: dict[str, Any], refused: bool, tree: Callable[[str], Path]
) -> None:
    subject = preflight.Subject(tree=tree(TAGS[tag]), tag=tag, folder=Path(), source="org/m")
    config = {"architectures": [architecture], **rope}
    if refused:
        with pytest.raises(OrchestrateError, match=rf"{tag} does not know the rope scaling \w+ of {architecture}"):
            preflight.check_scaling(subject, config)
    else:
        preflight.check_scaling(subject, config)


@pytest.mark.parametrize(
    ("tag", "architecture", "text", "refused"),
    [
        ("b3878", "Gemma2ForCausalLM", {"rope_theta": 2e4}, True),
        ("b11434", "Gemma2ForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}, True),
        ("b9821", "FalconForCausalLM", {"rope_theta": 500042.0}, True),
        ("b11434", "StableLmForCausalLM", {"rope_theta": 1e6}, True),
        ("b10605", "GPTNeoXForCausalLM", {"rotary_emb_base": 25000}, True),
        ("b11434", "Gemma2ForCausalLM", {"rope_theta": 1e4}, False),
        ("b11434", "Gemma2ForCausalLM", {}, False),
        ("b3878", "Qwen2ForCausalLM", {"rope_theta": 1e6}, False),
        ("b3878", "Phi3ForCausalLM", {"rope_theta": 1e6}, False),
        ("b11434", "Gemma3ForCausalLM", {"rope_theta": 1e6, "rope_local_base_freq": 1e4}, False),
        ("b11434", "DeepseekV3ForCausalLM", {"rope_theta": 1e6}, False),
        ("b11434", "GPT2LMHeadModel", {"rope_theta": 2e4}, False),
        ("b11434", "NobodyKnowsIt", {"rope_theta": 2e4}, False),
    ],
)
def test_a_base_of_rope_that_a_tag_passes_over_is_refused(
    tag: str, architecture: str, text: dict[str, Any], refused: bool, tree: Callable[[str], Path]
) -> None:
    found = preflight.impossible(tree(TAGS[tag]), {"architectures": [architecture], **text})
    assert [said.split(",")[0].split()[2] for said in found] == (["rope_theta"] if refused else [])


BYTES = {f"<0x{number:02X}>": number + 3 for number in range(256)}
WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, **BYTES, "\u2581": 259, "a": 260, "b": 261, "ab": 262, "\u2581ab": 263}
SPACED = {
    "model": {"type": "BPE", "byte_fallback": True, "vocab": WORDS, "merges": [["a", "b"], ["\u2581", "ab"]]},
    "added_tokens": [
        {"id": 0, "content": "<unk>", "special": True},
        {"id": 1, "content": "<s>", "special": True},
        {"id": 2, "content": "</s>", "special": True},
        {"id": 265, "content": "<mine>", "special": False},
    ],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
}
SCORED = {
    "model": {"type": "Unigram", "unk_id": 3, "vocab": [["<s>", 0], ["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["\u2581a", -1.5]]},
    "added_tokens": [{"id": 5, "content": "<mask>", "special": True}],
    "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAEC"},
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "prepend_scheme": "always"}],
    },
}


def fields(message: bytes) -> list[tuple[int, Any]]:
    """A protobuf message taken apart by its wire format: numbers, bytes and 32-bit floats."""
    found, at = [], 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if not byte & 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found.append((key >> 3, varint()))
        else:
            length = varint() if key & 7 == 2 else 4
            content, at = message[at : at + length], at + length
            found.append((key >> 3, content if key & 7 == 2 else struct.unpack("<f", content)[0]))
    return found


def made(files: dict[str, Any], name: str) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """Pieces, training and normalizer of the sentencepiece model that a class which reads `name` is shown."""
    model = fields(translation.translate(files.get, Reader(pieces=name), RULES).files[name])
    parts = [dict(fields(content)) for field, content in model if field == 1]
    pieces = [(part[1].decode(), part[2], part[3]) for part in parts]
    trainer, normalizer = (dict(fields(next(content for field, content in model if field == number))) for number in (2, 3))
    return pieces, trainer, normalizer


def test_a_vocabulary_in_tokenizer_json_alone_becomes_a_sentencepiece_model() -> None:
    pieces, trainer, normalizer = made({"tokenizer.json": SPACED}, "tokenizer.model")
    assert [text for text, *_ in pieces] == [*WORDS, "[PAD264]", "<mine>"]
    kinds = {text: kind for text, _, kind in pieces}
    assert [kinds[text] for text in ("<unk>", "<s>", "<0x00>", "ab", "[PAD264]", "<mine>")] == [2, 3, 6, 1, 5, 4]
    scores = {text: score for text, score, _ in pieces}
    assert scores["ab"] == 0 > scores["\u2581ab"] == -1 > scores["\u2581"] > scores["a"] > scores["b"]
    assert trainer == {3: 2, 4: 266, 35: 1} and normalizer == {1: b"identity", 3: 1, 4: 0, 5: 1}


def test_a_vocabulary_of_gemmas_kind_puts_nothing_before_a_text() -> None:
    blank = {"String": " "}
    idle = {"type": "Split", "pattern": blank, "behavior": "MergedWithPrevious", "invert": False}
    gemma = {**SPACED, "normalizer": {"type": "Replace", "pattern": blank, "content": "\u2581"}, "pre_tokenizer": idle}
    pieces, _, normalizer = made({"tokenizer.json": gemma}, "tokenizer.model")
    assert pieces == made({"tokenizer.json": SPACED}, "tokenizer.model")[0] and normalizer[3] == 0
    cutting = {**gemma, "normalizer": None}
    assert "tokenizer.model" not in translated({"tokenizer.json": cutting}, Reader(pieces="tokenizer.model"))


def test_a_tab_that_stands_for_its_byte_is_that_byte() -> None:
    words = {("\t" if text == "<0x09>" else text): number for text, number in WORDS.items()}
    written = {**SPACED, "model": {**SPACED["model"], "vocab": words}}
    assert made({"tokenizer.json": written}, "tokenizer.model") == made({"tokenizer.json": SPACED}, "tokenizer.model")
    both = {**SPACED, "model": {**SPACED["model"], "vocab": {**WORDS, "\t": 264}}}
    assert {text: kind for text, _, kind in made({"tokenizer.json": both}, "tokenizer.model")[0]}["\t"] == 1


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"vocab_size": 265}, 265),
        ({"vocab_size": 1000}, 266),
        ({"text_config": {"vocab_size": 265}}, 265),
        ({"vocab_size": 100}, 266),
        ({"vocab_size": None}, 266),
    ],
)
def test_tokens_beyond_the_rows_of_a_model_are_no_pieces(config: dict[str, Any], kept: int) -> None:
    pieces, *_ = made({"tokenizer.json": SPACED, "config.json": config}, "tokenizer.model")
    assert len(pieces) == kept and pieces[:263] == made({"tokenizer.json": SPACED}, "tokenizer.model")[0][:263]


def test_a_vocabulary_with_scores_keeps_them() -> None:
    pieces, trainer, normalizer = made({"tokenizer.json": SCORED}, "spiece.model")
    assert [text for text, *_ in pieces] == ["<s>", "<pad>", "</s>", "<unk>", "\u2581a", "<mask>"]
    assert pieces[4] == ("\u2581a", -1.5, 1) and pieces[3][2] == 2 and pieces[5][2] == 3
    assert trainer[3] == 1 and normalizer == {1: b"identity", 2: b"\x00\x01\x02", 3: 1, 4: 1, 5: 1}
    pieces, *_ = made({"tokenizer.json": SCORED}, "sentencepiece.bpe.model")
    assert [text for text, *_ in pieces] == ["<unk>", "<s>", "</s>", "\u2581a", "<mask>"], "in sentencepiece's own order"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"tokenizer.json": SPACED}, ""),
        ({"tokenizer.json": SPACED, "tokenizer.model": b"there"}, "tokenizer.model"),
        ({"tokenizer.json": SPACED, "spiece.model": b"there"}, "tokenizer.model"),
        ({"tokenizer.json": SCORED}, "tokenizer.model"),
        ({"tokenizer.json": SPACED}, "spiece.model"),
        ({"tokenizer.json": PAIRS}, "tokenizer.model"),
        ({"tokenizer.json": {**SPACED, "pre_tokenizer": {"type": "Split"}}}, "tokenizer.model"),
        ({"tokenizer.json": {**SPACED, "model": {**SPACED["model"], "vocab": {"<unk>": 0}}}}, "tokenizer.model"),
        ({"tokenizer.json": {"model": {"type": "BPE", "byte_fallback": True}}}, "tokenizer.model"),
        ({"tokenizer.json": {**SCORED, "model": {**SCORED["model"], "vocab": [["<unk>", 0]] * 4}}}, "spiece.model"),
        ({}, "tokenizer.model"),
    ],
)
def test_no_sentencepiece_model_is_made_of_anything_else(files: dict[str, Any], name: str) -> None:
    by = Reader(transformers=NEW.transformers, knows=NEW.knows, pieces=name)
    assert translation.translate(files.get, by, RULES).files == {}


@pytest.mark.parametrize(
    ("tag", "architecture", "name"),
    [
        ("b3878", "LlamaForCausalLM", "tokenizer.model"),
        ("b3878", "XLMRobertaModel", "sentencepiece.bpe.model"),
        ("b3878", "T5ForConditionalGeneration", "spiece.model"),
        ("b3878", "Gemma2ForCausalLM", "tokenizer.model"),
        ("b11434", "LlamaForCausalLM", "tokenizer.model"),
        ("b11434", "Phi3ForCausalLM", "tokenizer.model"),
        ("b11434", "XLMRobertaModel", "sentencepiece.bpe.model"),
        ("b11434", "T5ForConditionalGeneration", "spiece.model"),
        ("b11434", "Gemma3ForCausalLM", ""),
        ("b11434", "GptOssForCausalLM", ""),
        ("b11434", "BertModel", ""),
        ("b11434", "NobodyKnowsIt", ""),
    ],
)
def test_which_file_of_pieces_a_class_reads(tag: str, architecture: str, name: str, tree: Callable[[str], Path]) -> None:
    assert reader(tree(TAGS[tag]), "4.57.6", architecture).pieces == name
