"""Compare a GGUF in a real llama.cpp with transformers (and PEFT): the worst difference, and whether the top five agree."""

import json
import sys

import torch
import transformers
import xllamacpp

PROMPT = [1, 450, 7483, 310, 3444]
ASKED = 40


def reference(base, adapter):
    """Log-probabilities of the next token, by the library that made the weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([PROMPT])).logits[0, -1].double(), -1)


def ours(gguf, lora):
    """The likeliest next tokens with their log-probabilities, by llama.cpp."""
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 64, 1, 0, False
    if lora:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    asked = {"prompt": PROMPT, "n_predict": 1, "n_probs": ASKED, "logprobs": ASKED, "temperature": 0.0}
    answer = xllamacpp.Server(params).handle_completions(asked)
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    return {each["id"]: each["logprob"] for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}


base, adapter, gguf, lora = (word if word != "-" else "" for word in sys.argv[1:5])
wanted, found = reference(base, adapter), ours(gguf, lora)
top = [int(token) for token in wanted.topk(5).indices]
worst = max(abs(float(wanted[token]) - value) for token, value in found.items())
print(json.dumps({"tokens": len(found), "top": sorted(top) == sorted(sorted(found, key=found.get)[-5:]), "worst": worst}))
