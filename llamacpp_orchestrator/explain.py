"""Upstream's failures in its own words, what each likely means, and what to do about it."""

from __future__ import annotations

import re

LONGEST = 300
# What a line says that tells of a failure; the traceback of one, and a summary of options, do so less.
TELLING = re.compile(r"(?i)\b(?:\w*error|\w*exception|fail\w*|fatal|abort\w*|cannot|could not|invalid|unknown|no such)\b")
KILLED = (-9, -15)
PROGRESS = re.compile(r"\d+%\||^\[ *\d+/ *\d+\]|^\$ ")
AGAIN = "download or copy it again"
TAG_OR_FILES = "pin a tag from the model's own time or later; if its files were edited, use the original's"
UNQUANTIZED = "name the model that it was made from; if it was merged to plain weights since, take `quantization_config` out"
MERGE = "merge the adapter into its base and convert that"

# Upstream's own words → what they likely mean, and what to do. First match wins: what is told exactly comes before what is not.
KNOWN = (
    (
        r"vision_config / audio_config not found|This model does not support multimodal",
        "the model has no vision or audio part",
        "leave `mmproj` out for this model",
    ),
    # The model and the tag do not fit.
    (
        r"Model (\S+) is not supported",
        "this tag's converter does not know the architecture {0}",
        "pin a newer tag, or see which it knows: orchestrate exec JOB -- convert_hf_to_gguf.py --print-supported-models",
    ),
    (
        r"Failed to detect model architecture|KeyError: 'architectures'",
        "config.json names no `architectures`",
        "use the config.json of the original model; other layouts than that of Transformers cannot be converted",
    ),
    (
        r"BPE pre-tokenizer was not recognized",
        "this tag does not know the model's tokenizer",
        "pin a newer tag; if the tokenizer was changed while fine-tuning, use the original's tokenizer files",
    ),
    (
        r"assert max\(tokenizer\.vocab\.values\(\)\) < vocab_size|Vocabulary size exceeds expected maximum size",
        "the tokenizer has more tokens than the model has a vocabulary for",
        "tokens were added without resizing the model: use the original's tokenizer files, or resize and save both again",
    ),
    (
        r"custom code which must be executed|requires you to execute the .* file|pass the (?:argument|option) `trust_remote_code",
        "the model wants to run its own Python code",
        "read that code, then set `trust_remote_code: true` for this model",
    ),
    # Weights that are quantized already.
    (
        r"Quant method is not yet supported: '([^']*)'|Quant format ('[^']*' for method '[^']*') is not yet supported"
        r"|(multiple config groups for compressed-tensors)|(3-bit gptq) dequantization",
        "the weights are quantized already, in a way that this tag cannot read ({0})",
        UNQUANTIZED,
    ),
    (
        r"Can not map tensor '([^']+\.(?:absmax|SCB|quant_map|quant_state\.\w+|qweight|qzeros|weight_packed|weight_scale_inv))'",
        "the weights are quantized already ({0})",
        UNQUANTIZED,
    ),
    (
        r"_dtype_str_map\[.*\n(?:[ ~^]*\n)?KeyError: '(\w+)'",
        "the weights are of a type that this tag cannot read ({0})",
        "pin a newer tag, or name the model that it was made from",
    ),
    # Files that are damaged, missing, or contradict each other.
    (
        r"could not parse ModelProto",
        "tokenizer.model is damaged, or only a Git LFS pointer",
        AGAIN + "; in a clone, `git lfs pull` gets the real file",
    ),
    (
        r"stat: path should be string.*NoneType|Either model_file or model_proto must be specified"
        r"|File not found: .*tokenizer\.model|Can't load tokenizer|Couldn't instantiate the backend tokenizer"
        r"|Error: Missing .*tokenizer\.model",
        "the model has no tokenizer that this tag can read",
        "add the tokenizer files of the original model (tokenizer.json or tokenizer.model)",
    ),
    (
        r"mmap length is greater than file size|incomplete metadata|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer"
        r"|[Cc]ould not read complete metadata|Failed to parse safetensors? metadata|Error while deserializing header",
        "a safetensors file is cut, damaged, or only a Git LFS pointer",
        AGAIN + "; in a clone, `git lfs pull` gets the real file",
    ),
    (
        r"Missing tensors: \[(.+)\]",
        "tensors that the index names are in no file: {0}",
        "get all shards of the model",
    ),
    (
        r"Mismatch between weight map and model parts|Can't load 'weight_map'",
        "the index of the weight files is damaged, or not the one of these files",
        "get index and weights from one place; a single file needs no index",
    ),
    (
        r"Duplicated tensor name '([^']+)'",
        "a tensor is in the weights twice ({0})",
        "keep one set of weight files: either model*.safetensors or another, not both",
    ),
    (
        r"mmap can only be used with files saved with|Weights only load failed|UnpicklingError",
        "the weights are a pickle that is damaged, too old, or more than weights",
        "use a repository with safetensors, or save the model again with safe_serialization=True",
    ),
    # Adapters.
    (
        r"Embeddings is present in the adapter|lm_head is present in adapter",
        "the adapter also trains the vocabulary, which a GGUF adapter cannot hold",
        MERGE,
    ),
    (
        r"Unexpected name '([^']+lora_magnitude_vector[^']*)'",
        "the adapter is a DoRA ({0}), which a GGUF adapter cannot hold",
        MERGE,
    ),
    (
        r"Unexpected name '([^']+)': Not a lora_A or lora_B tensor",
        "the adapter holds more than pairs of matrices ({0}), which a GGUF adapter cannot hold",
        MERGE,
    ),
    (
        r"assert tensor\.[AB] is not None|assert A\.shape\[-2\] == B\.shape\[-1\]",
        "the adapter's matrices do not make pairs",
        "was it saved whole? save it again with PEFT's save_pretrained",
    ),
    (
        r"KeyError: '(lora_alpha)'",
        "adapter_config.json has no {0}",
        "was it saved with PEFT? save it again with save_pretrained",
    ),
    (
        r"Can not map tensor '([^']+)'|Unable to map tensor",
        "this architecture has no place for a tensor ({0})",
        "pin a newer tag, see that config.json is that of these weights, or " + MERGE,
    ),
    (
        r"shape '\[[^]]*\]' is invalid for input of size|size of tensor a \(\d+\) must match",
        "config.json does not fit the weights, or the adapter another base than this one",
        "use config and weights of one model, and the adapter's own base",
    ),
    # What the job passes on.
    (
        r"unrecognized arguments: (.*)",
        "this tag's script does not have the option {0}",
        "correct `args`, or pin a tag that has it",
    ),
    (
        r"error: argument (.*)|error: (ambiguous option: .*)|Error: (Invalid split size: .*), must",
        "this tag's script does not take an option so: {0}",
        "correct `args`",
    ),
    (
        r"Error: (Cannot use temp file when splitting)|ERROR:\S+?:(--\S.* (?:supported|exclusive).*)",
        "these options do not go together, or not with this model: {0}",
        "correct `args`",
    ),
    (
        r"Mistral format requires `?mistral-common|No module named 'mistral_common'",
        "the script needs the package mistral-common, which the tag's own requirements do not name",
        "list it in the job: `overrides: [mistral-common]` under `environment`",
    ),
    # The environment and the machine.
    (
        r"No module named '([^']+)'",
        "the environment lacks the module {0}",
        "add it under `environment.overrides` or choose another tag",
    ),
    (
        r"cannot import name '([^']+)'|(compiled using NumPy 1\.x)|module '([\w.]+)' has no attribute",
        "the packages of the environment do not fit this tag ({0})",
        "take out `environment.overrides` or `environment.path`, or name versions from the tag's own time",
    ),
    (
        r"No space left on device|Errno 28|OSError: \d+ requested and \d+ written",  # the last is numpy's way to say it
        "the disk is full",
        "free some space and run again",
    ),
    (
        r"MemoryError|Unable to allocate|not enough memory|can't allocate memory|failed to map segment",
        "the machine ran out of memory",
        "close other programs, or use --jobs 1",
    ),
    (
        r"Permission denied: '([^']+)'",
        "{0} may not be read or written",
        "check its rights; a converter sees no more than its model, and writes no more than its output",
    ),
    (
        r"OSError: \[Errno \d+\] Landlock: (.+)",
        "the kernel refused to fence the converter in ({0})",
        "run it outside of other sandboxes; `orchestrate doctor` says what the kernel has",
    ),
    (
        r"PermissionError: \[Errno 13\]",
        "it asked for the network, which no converter is given",
        "get what it wants beforehand, and name it in the job",
    ),
    # What is told least exactly.
    (
        r"No such file or directory: '([^']+)'|Error: (.+) is not a directory",
        "a file that the script wants is not there: {0}",
        "get all files of the model or adapter",
    ),
    (
        r"yaml\.\w+\.\w+Error|while parsing a (?:flow|block)",
        "the front matter of README.md (between its lines of ---) is not YAML",
        "correct it, or leave README.md out of the folder",
    ),
    (r"JSONDecodeError", "a JSON file of the model or adapter is damaged", AGAIN),
    (r"UnicodeDecodeError", "a file of the model or adapter is not UTF-8 text", AGAIN),
    (r"could not find any of: \[(.*)\]", "config.json has none of {0}", TAG_OR_FILES),
    (r"KeyError: '([^']+)'", "the script looks for `{0}` in the model's files, and it is not there", TAG_OR_FILES),
    (
        r"NotImplementedError: (.+)|ValueError: (Unsupported .+|Unexpected .+|Unprocessed .+)",
        "this tag cannot convert such a model: {0}",
        "pin a newer tag",
    ),
)


# The same for llama-quantize.
QUANTIZER = (
    (
        r"invalid ftype '([^']*)'|invalid ftype",
        "this tag's llama-quantize does not know the type ({0})",
        "see the list: orchestrate exec JOB -- llama-quantize",
    ),
    (
        r"failed to load imatrix|missing imatrix metadata|no data in file",
        "this tag cannot read the importance matrix",
        "is it one? the tag makes its own from a text: `imatrix: {text: FILE}`",
    ),
    (
        r"imatrix size \d+ is different",
        "the importance matrix belongs to another model",
        "make one of this model: `imatrix: {text: FILE}`",
    ),
    (
        r"(?i)missing importance matrix for tensor (\S+)|importance matrix|missing importance"
        r"|imatrix.*(?:required|missing)|requires.*imatrix",
        "this type needs an importance matrix ({0})",
        "set `imatrix`, or choose a type that needs none, for example Q4_K_M",
    ),
    (
        r"(?i)usage: |allowed quantization types|invalid (?:ggml_|quantization )?type|malformed",
        "this tag's llama-quantize does not take these arguments",
        "correct `quantize_args`; the tool's help: orchestrate exec JOB -- llama-quantize",
    ),
    (
        r"requantizing from type (\w+) is disabled|cannot dequantize/convert tensor type (\w+)",
        "the model is quantized already ({0})",
        "quantize from f32, bf16 or f16: list one of them under `outtype`",
    ),
    (
        r"quantized data validation failed|found (nan|inf)|non-finite value",
        "the weights hold values that are no numbers (NaN or infinite)",
        "the model was damaged in training or by f16's range: try `outtype: [bf16]`, or another checkpoint",
    ),
    (
        r"unknown model architecture: '([^']+)'|unsupported model architecture: '([^']+)'",
        "these programs do not know the architecture {0}",
        "binaries and converter must be of one tag; `orchestrate doctor JOB` says which are used",
    ),
    (
        r"No space left|basic_ios::clear: iostream error",
        "the file could not be written, perhaps because the disk is full",
        "free some space, and check the rights of the output folder",
    ),
    (
        r"not within the file bounds|failed to read (?:key-value pairs|tensor)|invalid magic|failed to load model from",
        "the file that it was to read is no whole GGUF file",
        "run again with --force to make it anew",
    ),
)


def point(said: str) -> str:
    """The one line of a program's last words that says most: the last that tells of a failure, or else the last at all."""
    lines = [" ".join(line.split()) for line in said.splitlines()]
    # torch advises to load pickles unsafely.
    lines = [line for line in lines if line and not PROGRESS.search(line) and "weights_only" not in line]
    told = [line for line in lines if TELLING.search(line)]
    line = (told or lines or [""])[-1]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def pointed(message: str, said: str, code: int = 1) -> str:
    """What happened, with the point of a program's last words behind it; one that was ended from outside had none to say."""
    words = point(said) if code not in KILLED else ""
    return f"{message}: {words}" if words else message


def explain(tail: str, known: tuple[tuple[str, str, str], ...] = KNOWN) -> tuple[str, str]:
    """The likely cause and the remedy for upstream's last lines; two empty texts when nobody knows."""
    for pattern, cause, remedy in known:
        if match := re.search(pattern, tail):
            found = next((group for group in match.groups() if group), "")
            # Without the detail its brackets go too; and a list of all tensors is no detail.
            shown = cause.format(found[:LONGEST]) if found else cause.replace(" ({0})", "")
            return shown.removesuffix(": {0}"), remedy
    return "", ""
