"""What upstream's conversion scripts say when they fail: what it likely means, and what to do; {0} is the part in brackets."""

from __future__ import annotations

AGAIN = "download or copy it again"
TAG_OR_FILES = "pin a tag from the model's own time or later; if its files were edited, use the original's"
UNQUANTIZED = "name the model that it was made from; if it was merged to plain weights since, take `quantization_config` out"
MERGE = "merge the adapter into its base (PEFT's merge_and_unload), save the result and convert that as a model"
TOKENIZER = "take the tokenizer files of the original model, or pin a newer tag"
PAIRED = "use config and weights of one model, and the adapter's own base"
SAVED_AGAIN = "save it again with PEFT's save_pretrained"

# Upstream's own words → what they likely mean, and what to do. First match wins: what is told exactly comes before what is not.
WORDS = (
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
    (
        r"Tokenizer class (\S+) does not exist|AttributeError: 'list' object has no attribute 'keys'",
        "the tokenizer was saved by a newer transformers than this tag's ({0} is new to it)",
        TOKENIZER,
    ),
    (
        r"opt_num_mtp_layers != 0",
        "the tag expects layers for multi-token prediction (MTP), and the weights have none",
        "for a model `args: [--no-mtp]`; for an adapter: " + MERGE,
    ),
    # Weights that are quantized already.
    (
        r"Quant method is not yet supported: '([^']*)'|Quant format ('[^']*' for method '[^']*') is not yet supported"
        r"|(multiple config groups for compressed-tensors)|(3-bit gptq) dequantization",
        "the weights are quantized already, in a way that this tag cannot read ({0})",
        UNQUANTIZED,
    ),
    (
        r"_dtype_str_map\[.*\n(?:[ ~^]*\n)?KeyError: '(\w+)'|unknown variant `(\w+)`"
        r"|invalid (shape, data type, or offset) for tensor",
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
        r"|Can't load tokenizer|Couldn't instantiate the backend tokenizer|Cannot find (?:tokenizer\.model|\S+ BPE tokenizer)",
        "the model has no tokenizer that this tag can read",
        "add the tokenizer files of the original model (tokenizer.json or tokenizer.model)",
    ),
    (
        r"(?:File not found:|Error: Missing) .*?([\w.-]+\.model)\b",
        "this tag reads its kind of vocabulary from {0} alone, and there is none",
        "add that file of the original model; a tokenizer.json of another kind cannot be made into one",
    ),
    (
        r"Exception: (?:Missing vocab/merges|invalid type|data did not match|missing field).*line \d+ column \d+"
        r"|unknown tokenizer: (\w+)|Unknown tokenizer merges format",
        "tokenizer.json is damaged, or not of a kind that this tag's transformers reads ({0})",
        TOKENIZER,
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
        r"Mismatch between weight map and model parts|Can't load 'weight_map'|Missing or incomplete model files",
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
        "was it saved whole? " + SAVED_AGAIN,
    ),
    (r"KeyError: '(lora_alpha)'", "adapter_config.json has no {0}", "was it saved with PEFT? " + SAVED_AGAIN),
    (r"float\(lora_alpha\)", "lora_alpha in adapter_config.json is no number", "write it as one; or " + SAVED_AGAIN),
    (
        r"shape '\[[^]]*\]' is invalid for input of size|size of tensor a \(\d+\) must match|invalid shape dimension",
        "config.json does not fit the weights, or the adapter another base than this one",
        PAIRED,
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
    (
        r"in load_model_card\n(?s:.*)\nUnicodeDecodeError",
        "README.md of the model or adapter is not UTF-8 text",
        "save it as UTF-8, or leave README.md out of the folder",
    ),
    (r"UnicodeDecodeError", "a file of the model or adapter is not UTF-8 text", AGAIN),
)

WITHOUT = "save the model without it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
# The name of a tensor that no architecture has → how the model was saved, and the way out. First match wins.
WRAPPED = (
    (
        r"\b_orig_mod\.",
        "the model was saved while it was compiled by torch.compile",
        "save the model itself (`model._orig_mod.save_pretrained`), or take `_orig_mod.` out of the names of its tensors",
    ),
    (
        r"\b(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_flat_param|_forward_module)\b",
        "the weights are as FSDP or DeepSpeed trained them",
        "gather them into a model first: `accelerate merge-weights`, or DeepSpeed's zero_to_fp32.py",
    ),
    (
        r"^module\.",
        "the model was saved inside of DataParallel",
        "save the model itself (`model.module.save_pretrained`), or take `module.` out of the names of its tensors",
    ),
    (
        r"\b(?:exp_avg(?:_sq)?|momentum_buffer|fp32_master|master_weights?|grad)\b|^(?:optimizer|optim|scheduler)\.|^state\.\d",
        "these are the states of an optimizer, or a checkpoint of a training with them in it",
        "export the model out of that checkpoint with the program that trained it, and convert that",
    ),
    (
        r"(?:^|[._])ema(?:[._]|$)|\bshadow_params\b",
        "the weights hold an averaged copy of the model (EMA) besides",
        "copy the average into the model, and save one of the two: model.save_pretrained(...)",
    ),
    (
        r"^(?:teacher|student|ref_model|reference_model|actor|critic|policy)(?:_model|_module)?\.",
        "the weights are those of a training with several models, or of a wrapper around one",
        "save the one model itself: `model.save_pretrained(...)` of the one that was trained",
    ),
    (
        r"\.(?:absmax|nested_absmax|SCB|(?:nested_)?quant_map|quant_state\.\w+|weight_format)$",
        "saved by bitsandbytes, the weights are quantized already",
        "name the model that it was made from, or undo it: `model.dequantize()` of transformers, then save_pretrained",
    ),
    (
        r"\.(?:qweight|qzeros|g_idx)$",
        "by GPTQ or AWQ, the weights are quantized already",
        UNQUANTIZED,
    ),
    (
        r"\.(?:weight_(?:packed|shape|g_idx|zero_point|scale(?:_\w+)?)|[kqv]_scale|(?:input|output)_(?:global_)?(?:scale|zero_point))$",
        "by compressed-tensors, ModelOpt or as fp8, the weights are quantized already",
        f"{UNQUANTIZED}; what compressed-tensors packed, transformers unpacks with CompressedTensorsConfig(run_compressed=False)",
    ),
    (
        r"\.(?:scales|biases)$",
        "the weights are quantized by MLX",
        "name the model that it was made from, or undo it (mlx_lm.convert --dequantize; after training mlx_lm.fuse --dequantize)",
    ),
    (
        r"\.(?:W_q|weight_qdata|weight\._data|weight\._scale|weight_quantizer\.\w+|quant_scale)$",
        "by HQQ, torchao or Quanto, the weights are quantized already",
        UNQUANTIZED,
    ),
    (
        r"(?:^|\.)(?:base_layer|modules_to_save|(?:lora|vera|loha|lokr|hada|oft)_\w+)(?:\.|$)|(?:^|\.)base_model\.",
        "the model was saved with PEFT's adapter in it, not merged",
        "load it with PEFT, `model = model.merge_and_unload()`, and save that; or convert the base and the adapter apart",
    ),
    (
        r"\bparametrizations\.",
        "the model was saved with torch's parametrizations in it",
        "take them out (torch.nn.utils.parametrize.remove_parametrizations) and save it again",
    ),
    (
        r"^(?:v_head|value_head|reward_head|score|classifier)\.",
        "the weights hold more than a language model",
        WITHOUT,
    ),
    (
        r"\blinear_(?:qkv|proj|fc[12])\b|\bword_embeddings_for_head\b|^decoder\.layers\.\d+\.self_attention\b",
        "the weights are laid out as Megatron or NeMo keeps them",
        "export the model in the layout of Transformers first (NeMo's export, Megatron-Bridge)",
    ),
    (
        r"\b(?:mtp|eh_proj|enorm|hnorm|shared_head|nextn)\b",
        "the weights hold a layer for multi-token prediction (MTP) that this tag does not expect",
        "pin a newer tag, or use the original's config.json (num_nextn_predict_layers, mtp_num_hidden_layers)",
    ),
    (
        r"\b(?:vision_\w+|visual|audio_\w+|multi_modal_projector|mm_projector)\b",
        "parts for images or sound have other names than this tag knows",
        "load a copy as its author published it with from_pretrained, and save that; or pin a newer tag",
    ),
)
