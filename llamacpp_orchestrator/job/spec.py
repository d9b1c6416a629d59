"""Records of a job, as its file is read into them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.job.fields import folder as folder
from llamacpp_orchestrator.job.fields import is_folder as is_folder
from llamacpp_orchestrator.util import tag

BACKENDS = ("auto", "cuda", "vulkan", "rocm", "sycl", "openvino", "metal", "cpu", "none", "source")
VERIFY = (check_levels.AUTO, *check_levels.LEVELS)
# What is of no use where nothing is quantized.
OF_QUANTIZE = ("imatrix", "quantize_args", "quantize_threads")
UNQUANTIZED = ("f32", "bf16", "f16")
BETWEEN = "bf16"  # what is quantized where no unquantized file is wanted
DEFAULT_TAG = "b11434"
CARDS = ("en", "zh", "none")
ADAPTERS = ("apart", "together")

Type = Annotated[str, Meta(extra=fields.matching(r"\w{1,40}", "a type such as bf16"))]
Types = Annotated[tuple[Type, ...], Meta(description="One type or a list of the tag's own types")]
Revision = Annotated[
    str,
    Meta(
        description="Branch, tag or commit on the hub",
        extra=fields.matching(r"(?!.*\.\.)\w[\w./+-]{0,199}", "a branch, tag or commit", fields.PLAIN_REVISION),
    ),
]
Name = Annotated[
    str, Meta(description="Used in file names and as general.name", extra={"check": fields.file_name, "way": fields.PLAIN_NAME})
]
Source = Annotated[
    str, Meta(description="Hub id org/name[@revision], or a folder: ./x, ../x, ~/x", extra={"check": fields.source})
]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all parts of a job have in common."""


class Lora(Record, frozen=True, kw_only=True):
    """An adapter to convert beside its base."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("f16",)
    args: Annotated[
        tuple[Annotated[str, Meta(extra=fields.not_ours(fields.OURS_ADAPTER))], ...],
        Meta(description="Passed to convert_lora_to_gguf.py", extra={"short": str.split}),
    ] = ()


class Merge(Record, frozen=True, kw_only=True):
    """An adapter to merge into its base."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    weight: Annotated[
        float,
        Meta(
            description="How much of its update is added: 1 for all of it",
            extra=fields.matching(
                r"-?(?!0+(\.0*)?$)\d{1,3}(\.\d{1,6})?", "a number other than 0, such as 0.5", fields.PLAIN_WEIGHT
            ),
        ),
    ] = 1.0


Chunks = Annotated[
    int,
    Meta(
        description="How many pieces of the text; 0 = all",
        extra=fields.matching(r"0|[1-9]\d{0,6}", "a number", fields.PLAIN_NUMBER),
    ),
]


class Imatrix(Record, frozen=True, kw_only=True):
    """An importance matrix: a file, or a text to make one from."""

    file: Annotated[str | None, Meta(description="A file that llama-imatrix made", extra={"check": fields.some_file})] = None
    text: Annotated[str | None, Meta(description="A text to make one from", extra={"check": fields.some_file})] = None
    chunks: Chunks = 0
    minutes: Annotated[
        int,
        Meta(
            description="How long it may take", extra=fields.matching(r"[1-9]\d{0,4}", "a number of minutes", fields.PLAIN_NUMBER)
        ),
    ] = 120
    args: Annotated[tuple[str, ...], Meta(description="Passed to llama-imatrix", extra={"short": str.split})] = ()


class Quality(Record, frozen=True, kw_only=True):
    """How much the quantized files differ from the unquantized one, measured on a text."""

    text: Annotated[str, Meta(description="A text to measure on", extra={"check": fields.some_file})]
    chunks: Chunks = 0
    minutes: Annotated[
        int,
        Meta(
            description="How long each file may take",
            extra=fields.matching(r"[1-9]\d{0,4}", "a number of minutes", fields.PLAIN_NUMBER),
        ),
    ] = 60
    args: Annotated[
        tuple[Annotated[str, Meta(extra={"check": fields.perplexity_word})], ...],
        Meta(description="Passed to llama-perplexity", extra={"short": str.split}),
    ] = ()


class Publish(Record, frozen=True, kw_only=True):
    """What of a model's outputs goes to a repository of the hub, and how it is shown there."""

    repo: Annotated[
        str,
        Meta(
            description="Repository on the hub, such as you/name; {name} is filled in",
            extra={"check": fields.repository, "way": fields.PLAIN_REPOSITORY},
        ),
    ]
    private: Annotated[bool, Meta(description="Only you may see the repository; nothing is sent to one that others may see")] = (
        False
    )
    revision: Annotated[
        str,
        Meta(
            description="Branch of the repository",
            extra=fields.matching(r"(?!.*\.\.)(?![0-9a-f]{40}$)\w[\w./+-]{0,199}", "a branch", fields.PLAIN_BRANCH),
        ),
    ] = "main"
    files: Annotated[
        tuple[Annotated[str, Meta(extra={"check": fields.some_file})], ...],
        Meta(description="Which outputs, by type or file name (`*` stands for any letters); all of them by default"),
    ] = ()
    card: Annotated[
        str,
        fields.one_of(CARDS, "Language of the model card, or none"),
    ] = "en"
    adapters: Annotated[
        str,
        fields.one_of(ADAPTERS, "Adapters go to repositories of their own (apart), or beside their model (together)"),
    ] = "apart"
    system: Annotated[
        str | None, Meta(description="A text file: the system prompt for Ollama", extra={"check": fields.some_file})
    ] = None
    template: Annotated[
        str | None, Meta(description="A text file: the prompt template for Ollama", extra={"check": fields.some_file})
    ] = None


class Model(Record, frozen=True, kw_only=True):
    """A model to convert, the types to quantize it to, and its adapters."""

    source: Source
    revision: Revision = "main"
    name: Name = ""
    outtype: Types = ("bf16",)
    outfile: Annotated[
        str,
        Meta(
            description="File name, relative to output; {name} and {type} are filled in",
            extra={"check": fields.template, "way": fields.PLAIN_TEMPLATE},
        ),
    ] = "{name}-{type}.gguf"
    quantize: Annotated[tuple[Type, ...], Meta(description="Types of llama-quantize, such as Q4_K_M")] = ()
    quantize_args: Annotated[
        tuple[Annotated[str, Meta(extra={"check": fields.quantize_word})], ...],
        Meta(description="Passed to llama-quantize", extra={"short": str.split}),
    ] = ()
    quantize_threads: Annotated[
        int,
        Meta(
            description="How many processors llama-quantize takes for one file; 0 for all",
            extra=fields.matching(r"\d{1,4}", "a number of processors", fields.PLAIN_NUMBER),
        ),
    ] = 0
    imatrix: Annotated[
        Imatrix | None,
        Meta(description="Which weights matter, for llama-quantize", extra={"short": lambda text: {"file": text}}),
    ] = None
    quality: Annotated[
        Quality | None,
        Meta(
            description="Measure what quantizing costs, on this text: perplexity and KL divergence",
            extra={"short": lambda text: {"text": text}},
        ),
    ] = None
    args: Annotated[
        tuple[Annotated[str, Meta(extra=fields.not_ours(fields.OURS))], ...],
        Meta(description="Passed to convert_hf_to_gguf.py", extra={"short": str.split}),
    ] = ()
    mmproj: Annotated[
        Types, Meta(description="Types of the projector file of a vision or audio model, made beside the model")
    ] = ()
    ollama: Annotated[bool, Meta(description="Write a Modelfile for Ollama beside each file")] = False
    merge: Annotated[
        tuple[Merge, ...],
        Meta(description="Adapters that are merged into the model first; what comes out is a model like any other"),
    ] = ()
    keep_merged: Annotated[bool, Meta(description="Keep the merged model in safetensors, too, as a folder beside the files")] = (
        False
    )
    trust_remote_code: Annotated[bool, Meta(description="Let the model's own Python code run")] = False
    verify: Annotated[
        str,
        fields.one_of(VERIFY, "How deep its outputs are checked; auto: content, and load where the programs are there anyway"),
    ] = check_levels.AUTO
    loras: Annotated[tuple[Lora, ...], Meta(description="Adapters of this model")] = ()
    publish: Annotated[
        Publish | None,
        Meta(description="Where `orchestrate publish` sends its outputs", extra={"short": lambda text: {"repo": text}}),
    ] = None


class LlamaCpp(Record, frozen=True, kw_only=True):
    """Which llama.cpp."""

    tag: Annotated[
        str,
        Meta(
            description="A build (bNNNN), a release (vX.Y.Z), latest, or a 40-hex commit",
            extra=fields.matching(
                tag.PATTERN,
                "a release tag such as b11434, or a 40-digit commit",
                fields.PLAIN_TAG,
            ),
        ),
    ]
    repo: Annotated[str, Meta(description="URL of the git repository", extra={"check": fields.url, "way": fields.PLAIN_URL})] = (
        "https://github.com/ggml-org/llama.cpp"
    )


class Binaries(Record, frozen=True, kw_only=True):
    """Which of the release's programs."""

    backend: Annotated[
        str,
        fields.one_of(BACKENDS, "What the programs run on"),
    ] = "auto"
    cuda: Annotated[
        str,
        Meta(
            description="With cuda: the toolkit version wanted, such as 12.4",
            extra=fields.matching(r"auto|\d+(\.\d+){0,2}", "auto or a version such as 12.4"),
        ),
    ] = "auto"


class Environment(Record, frozen=True, kw_only=True):
    """The Python that the scripts run in."""

    python: Annotated[
        str,
        Meta(
            description="auto, or a version such as 3.11",
            extra=fields.matching(r"auto|3\.\d{1,2}", "auto or a version such as 3.11"),
        ),
    ] = "auto"
    torch: Annotated[
        str,
        Meta(
            description="Which build of PyTorch: cpu, cu128, rocm6.4, upstream",
            extra=fields.matching(r"cpu|cu\d{2,3}|rocm\d+\.\d+(\.\d+)?|upstream", "cpu, cu128, rocm6.4 or upstream"),
        ),
    ] = "cpu"
    overrides: Annotated[
        tuple[Annotated[str, Meta(extra={"check": fields.requirement})], ...],
        Meta(description="PEP 508 lines that replace upstream's pins"),
    ] = ()
    path: Annotated[
        str | None, Meta(description="An environment of one's own, used as it is", extra={"check": fields.nonempty})
    ] = None


class Job(Record, frozen=True, kw_only=True):
    """All that a job file says."""

    version: Annotated[
        int,
        Meta(
            description="Of this format",
            extra=fields.matching("1", "1", "write `version: 1`; newer versions of this format need a newer orchestrate"),
            extra_json_schema={"const": 1},
        ),
    ]
    llama_cpp: Annotated[LlamaCpp, Meta(description="Which llama.cpp converts")]
    models: Annotated[tuple[Model, ...], Meta(description="What is converted", min_length=1)]
    binaries: Annotated[Binaries, Meta(description="Which programs of the release")] = Binaries()
    environment: Annotated[Environment, Meta(description="The Python that the scripts run in")] = Environment()
    output: Annotated[
        str,
        Meta(
            description="Folder of the results, relative to the job file, or an address such as s3://bucket/prefix",
            extra={"check": fields.output},
        ),
    ] = "dist"
    publish: Annotated[
        Publish | None,
        Meta(description="The same for all models that do not say it themselves", extra={"short": lambda text: {"repo": text}}),
    ] = None
