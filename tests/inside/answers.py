"""What a GGUF says in a real llama.cpp beside a reference: the worst difference, and where its ids are others.

answers.py GGUF REFERENCE: one line of JSON. `worst` is in log-probability, or 1 - cosine for embeddings.
"""

import json
import pathlib
import sys
import urllib.request

import xllamacpp

SHORT = "Hello world"


def ask(server, route, **body):
    request = urllib.request.Request(
        server.listening_address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def start(gguf, encoder):
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 512, 1, 0, False
    params.cpuparams.n_threads = 2
    params.embedding = encoder
    # What attention sees again is kept in 32 bits, so that numbers differ by what a file says alone.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def worst_logit(server, prompts):
    worst, compared = 0.0, 0
    for prompt in prompts:
        asked = {"prompt": prompt["prompt"], "n_predict": 1, "n_probs": 200, "temperature": 0.0, "cache_prompt": False}
        answer = ask(server, "/completion", **asked)
        if "completion_probabilities" not in answer:  # the likeliest token is a part of a letter, or an end
            continue
        said = {each["id"]: each["logprob"] for each in answer["completion_probabilities"][0]["top_logprobs"]}
        compared += 1
        expected = {int(token): value for token, value in prompt["next"].items()}
        worst = max([worst, *(abs(value - said.get(token, -99.0)) for token, value in expected.items())])
    return worst if compared > 1 else 99.0


def worst_embedding(server, texts):
    worst = 0.0
    for text in texts:
        vector = ask(server, "/embedding", content=text["text"])[0]["embedding"]
        vector = vector[0] if isinstance(vector[0], list) else vector
        size = sum(number * number for number in vector) ** 0.5
        cosine = sum(a * b for a, b in zip(vector, text["vector"], strict=True)) / size
        worst = max(worst, 1 - cosine)
    return worst


gguf, reference = sys.argv[1:3]
expected = json.loads(pathlib.Path(reference).read_text(encoding="utf-8"))
server = start(gguf, "embeddings" in expected)
other = []
for cut in expected["cuts"]:
    ids = ask(server, "/tokenize", content=cut["text"], add_special=False, parse_special=False)["tokens"]
    if ids != cut["ids"]:
        other.append(cut["text"])
around = ask(server, "/tokenize", content=SHORT, add_special=True, parse_special=False)["tokens"]
worst = worst_embedding(server, expected["embeddings"]) if "embeddings" in expected else worst_logit(server, expected["logits"])
print(json.dumps({"worst": worst, "other": len(other), "first": other[:1], "around": around}))
