"""Render a chat template with transformers, in every form that llama.cpp may give it: templates.py QUESTION ANSWER, with the
environment's python.

Both are JSON files. Question: {"view": folder, "template", "talks": [{"messages", "tools" or null, "template" where it
is another, or ""}, ...], "when": seconds since 1970 at which llama.cpp rendered them}. Answer: {"unable": why nothing could be
rendered, or "", "begin", "end": the tokenizer's own tokens, "talks": [[{"form", "text"} or {"form", "error"}, ...], ...]}; the
first form is what transformers' users get, the second the same a second later.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from rendering import load
from rendering import render

# It may strike midnight in between; a template that tells the second cannot be compared.
SECOND, DAY = 1, 86400


def variables(moment: float) -> dict[str, dict[str, Any]]:
    """Variables that llama.cpp gives to each template besides, by the name of a form (common/chat.cpp, common/jinja/caps.cpp)."""
    day = time.localtime(moment)
    dates = {"date_string": time.strftime("%d %b %Y", day), "datetime": time.strftime("%b %d %Y", day)}
    thinking = {"enable_thinking": True}
    kept = {"preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False, "drop_thinking": False}
    return {
        "": {},
        "thinking": thinking,
        "kept thinking": thinking | kept,
        "dated": thinking | dates,
        "all": thinking | kept | dates,
    }


def typed(messages: list[Any]) -> list[Any]:
    """Contents as lists of parts, for a template that knows no other."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]} if isinstance(turn.get("content"), str) else turn
        for turn in messages
    ]


def merged(messages: list[Any]) -> list[Any]:
    """The system's message at the beginning of the user's, for a template that has no place for it."""
    if messages[0]["role"] != "system" or len(messages) < 2:
        return messages
    second = {**messages[1], "content": messages[0]["content"] + "\n" + messages[1]["content"]}
    return [second, *messages[2:]]


def forms(tokenizer: Any, talk: dict[str, Any], template: str, when: float) -> list[dict[str, str]]:
    results = []
    for shape, change in (("", list), ("parts", typed), ("merged", merged), ("merged parts", lambda talk: typed(merged(talk)))):
        for given in variables(when):
            for moment in (when, when + SECOND, when + DAY):
                outcome = render(
                    tokenizer,
                    change(talk["messages"]),
                    lambda form, moment=moment: time.strftime(form, time.localtime(moment)),
                    talk["tools"],
                    chat_template=talk["template"] or template,
                    **variables(moment)[given],
                )
                results.append({"form": " ".join(filter(None, (shape, given))), **outcome})
    return results


def answer(question: dict[str, Any]) -> dict[str, Any]:
    try:
        tokenizer = load(Path(question["view"]))
    except Exception as error:
        return {"unable": f"{error}".strip().split("\n")[0] or type(error).__name__}
    talks = [forms(tokenizer, talk, question["template"], question["when"]) for talk in question["talks"]]
    return {"unable": "", "begin": str(tokenizer.bos_token or ""), "end": str(tokenizer.eos_token or ""), "talks": talks}


result = answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
