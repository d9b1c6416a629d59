"""What Ollama must be told of a model: its chat template in Go's syntax, proven on conversations, and the Modelfile around it."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence

import msgspec

MARK = "# Written by orchestrate"
Talk = tuple[tuple[str, str], ...]
Pair = tuple[str, str]

ROLES = {"s": "system", "u": "user", "a": "assistant"}
LEFT, RIGHT = " \n\t", "\t \n"
# The texts between messages are read off these; only the first two must be possible, any other may be refused by the source.
SHAPES = ("u", "uau", "su", "suau", "sua", "us", "uasu", "suasu", "uas", "suas", "au", "sau")
# Python's white space as far as people write it; one, two and three bytes long in UTF-8.
BLANKS = {1: r'" " "\n" "\t" "\r" "\f" "\v"', 2: r'"\u00a0"', 3: r'"\u3000"'}
STRIPPED = " \n\t\r\f\v\u00a0\u3000"
# The state before a message that stands for all that were not seen.
USUAL = {"user": "assistant", "assistant": "user", "end": "user"}


def _talk(shape: str, left: str = "", right: str = "") -> Talk:
    return tuple((ROLES[letter], f"{left}Word{number}of{ROLES[letter]}{right}") for number, letter in enumerate(shape))


PLAIN = {_talk(shape): shape for shape in SHAPES}
PADS = tuple(_talk(shape, LEFT, RIGHT) for shape in SHAPES if not shape.endswith("a"))
# What nothing is read off: the text that came out of that must fit these, too.
HELD = (
    (("user", "What is 2 + 2?"),),
    (("user", "hi"), ("assistant", "hi"), ("user", "hi"), ("assistant", "hi"), ("user", "hi")),
    (("system", "Answer in one word.\nBe kind."), ("user", "用中文回答。"), ("assistant", "好的 🙂"), ("user", "Why?\n\n1. b")),
    (("user", '{{ .Content }} {% x %} """ <b>&amp;</b> %s \\n'), ("assistant", "a\u3000b\u00a0c {"), ("user", "}}")),
    (("system", "\u3000 x\n"), ("user", "\n\n y \u00a0"), ("assistant", "\t z\u3000\n"), ("user", "  \u00a0w\r\n")),
    (("user", "\u3000 x\n"), ("assistant", "\n y \u3000"), ("user", "\u00a0 z\n"), ("assistant", " w"), ("user", " v ")),
    (("user", "think"), ("assistant", "<think>\nhm\n</think>\n\nyes"), ("user", "and?"), ("assistant", "no"), ("user", "so?")),
    (("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"), ("user", "f"), ("assistant", "g")),
    (("system", "a"), ("user", "b"), ("assistant", "c"), ("system", "d"), ("user", "e"), ("assistant", "f"), ("user", "g")),
)  # fmt: skip
TALKS: tuple[Talk, ...] = (*PLAIN, *PADS, *HELD)


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What a source's template makes of one conversation, or why it refuses."""

    text: str = ""
    error: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What inside/chat.py found out: one text for each of TALKS if there is a template, the tokens that end, all special ones."""

    error: str = ""
    said: tuple[Said, ...] = ()
    dated: bool = False
    ends: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    bos: str = ""
    adds_bos: bool = False


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The text between two messages, and which ends of the second one are stripped: "", left, right or both."""

    text: str
    strip: str = ""


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """All that a Modelfile says about chatting; `reason` tells why there is no template, `notes` what one should know of it."""

    template: str = ""
    system: str = ""
    stops: tuple[str, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()


def chat(answer: Answer) -> Chat:
    """What Ollama must be told, from what the source's own template says; a template only if it gives the same on all TALKS."""
    stops = tuple(filter(_plain, answer.ends))
    if answer.error:
        return Chat(reason=f"the tokenizer cannot be loaded ({' '.join(answer.error.split())[:200]})")
    if not answer.said:
        return Chat(stops=stops, reason="the source has no chat template, as base models have none")
    said = {talk: _heard(talk, each, answer) for talk, each in zip(TALKS, answer.said, strict=True)}
    links = learn(said)
    stops = tuple(dict.fromkeys([*stops, *_turn(links, answer.special)]))
    reason = "it depends on the date" if answer.dated else difference(links, said)
    if reason:
        return Chat(stops=stops, reason=f"the source's chat template cannot be expressed in Ollama's syntax: {reason}")
    notes: tuple[str, ...] = ("it speaks of no tools, so Ollama offers none",)
    if ("start", "system") not in links:
        notes += ("the source's template takes no system message; Ollama leaves one out",)
    return Chat(template=template(links), system=_default(links), stops=stops, notes=notes)


def _turn(links: Mapping[Pair, Link], special: Sequence[str]) -> tuple[str, ...]:
    # The special token that the template itself puts behind an answer.
    end = links.get(("assistant", "user"), Link(text="")).text.lstrip()
    return tuple(sorted((token for token in special if token and end.startswith(token) and _plain(token)), key=len)[-1:])


def _heard(talk: Talk, said: Said, answer: Answer) -> Said:
    # Ollama adds the first token itself, as the GGUF says; after an answer that is to be continued nothing may follow.
    text = said.text.removeprefix(answer.bos) if answer.adds_bos and answer.bos else said.text
    if talk[-1][0] == "assistant" and (at := text.rfind(talk[-1][1])) >= 0:
        text = text[: at + len(talk[-1][1])]
    return Said(text=text, error=said.error)


def states(talk: Talk) -> Iterator[tuple[str, str]]:
    """Each message with its place: a system message is another thing later than at the beginning."""
    for number, (role, content) in enumerate(talk):
        yield "late" if role == "system" and number else role, content


def learn(said: Mapping[Talk, Said]) -> dict[Pair, Link]:
    """The text between each two kinds of message, as the conversations show it first; whether it always is so, is not asked."""
    found: dict[Pair, Link] = {}
    for talk in PLAIN:
        if not said[talk].error:
            found = {**_between(talk, said[talk].text), **found}
    for talk in PADS:
        if not said[talk].error:
            found = _stripped(talk, said[talk].text, found)
    return found


def _between(talk: Talk, text: str) -> dict[Pair, Link]:
    found: dict[Pair, Link] = {}
    at, before = 0, "start"
    for state, content in states(talk):
        if (where := text.find(content, at)) < 0:
            return {}
        found.setdefault((before, state), Link(text=text[at:where]))
        at, before = where + len(content), state
    return found if before == "assistant" else {(before, "end"): Link(text=text[at:]), **found}


def _stripped(talk: Talk, text: str, links: dict[Pair, Link]) -> dict[Pair, Link]:
    found = dict(links)
    at, lead = 0, True
    pair: Pair = ("", "")
    for state, padded in [*states(talk), ("end", LEFT + RIGHT)]:
        word, now = padded.strip(), (pair[1] or "start", state)
        where = text.find(word, at) if word else len(text)
        if now not in links:
            return links
        ways = itertools.product((RIGHT, "") if pair[1] else ("",), (LEFT, "") if word else ("",))
        gap, link = text[at:where], links[now].text
        tail, head = next(((tail, head) for tail, head in ways if gap == tail + link + head), (RIGHT, LEFT))
        if pair[1]:
            mode = {(True, True): "both", (True, False): "left", (False, True): "right", (False, False): ""}[lead, not tail]
            found[pair] = Link(text=links[pair].text, strip=mode)
        at, pair, lead = where + len(word), now, not head
    return found


def difference(links: Mapping[Pair, Link], said: Mapping[Talk, Said]) -> str:
    """Where a source and its links first disagree, in words; "" when they never do."""
    for talk, each in said.items():
        shape = ", ".join(role for role, _ in talk)
        if each.error:
            if PLAIN.get(talk) in ("u", "uau"):
                return f"it refuses a conversation of {shape} ({' '.join(each.error.split())[:200]})"
            continue
        ours, theirs = render(links, talk), each.text
        if ours != theirs:
            at = len(os.path.commonprefix([ours, theirs]))
            seen, would = theirs[max(0, at - 10) : at + 30], ours[max(0, at - 10) : at + 30]
            return f"for {shape} it says {seen!r}, where plain affixes say {would!r}"
    return ""


def _incoming(links: Mapping[Pair, Link], state: str) -> tuple[dict[str, Link], Link] | None:
    cases = {before: link for (before, after), link in links.items() if after == state}
    if not cases:
        return None
    usual = USUAL.get(state, "")
    return cases, cases[usual] if usual in cases else next(iter(cases.values()))


def render(links: Mapping[Pair, Link], talk: Talk) -> str:
    """What `template` makes of a conversation in Ollama."""
    text, last = "", "start"
    for state, content in [*states(talk), ("end", "")]:
        found = _incoming(links, state)
        if found is None or (state == "end" and last == "assistant"):
            continue
        link = found[0].get(last, found[1])
        text += link.text + strip(content, link.strip)
        last = state
    return text


def strip(text: str, mode: str) -> str:
    """A message without the white space at the ends that `mode` names."""
    text = text.lstrip(STRIPPED) if mode in ("left", "both") else text
    return text.rstrip(STRIPPED) if mode in ("right", "both") else text


def template(links: Mapping[Pair, Link]) -> str:
    """The same in Go's syntax: Ollama gives .Messages, with neighbours of one role merged."""
    modes = dict.fromkeys(link.strip for link in links.values() if link.strip)
    late = _arrive(links, "late")
    system = _arrive(links, "system")
    first = f'{{{{ if eq $last "start" }}}}{system}{{{{ else }}}}{late}{{{{ end }}}}' if late else system
    if not late and system:
        first = f'{{{{ if eq $last "start" }}}}{system}{{{{ end }}}}'
    branches = [("system", first), ("user", _arrive(links, "user")), ("assistant", _arrive(links, "assistant"))]
    ifs = [f'{{{{ if eq .Role "{role}" }}}}{body}{{{{ end }}}}' for role, body in branches if body]
    end = f'{{{{ if ne $last "assistant" }}}}{_arrive(links, "end")}{{{{ end }}}}'
    return "".join([*map(_define, modes), '{{ $last := "start" }}{{ range .Messages }}', *ifs, "{{ end }}", end])


def _arrive(links: Mapping[Pair, Link], state: str) -> str:
    found = _incoming(links, state)
    if found is None:
        return ""
    cases, usual = found
    texts = [link.text for link in cases.values()]
    same = os.path.commonprefix([text[::-1] for text in texts])[::-1] if len({link.strip for link in cases.values()}) == 1 else ""
    groups: dict[Link, list[str]] = {}
    for before, link in cases.items():
        groups.setdefault(link, []).append(before)
    others = [(link, befores) for link, befores in groups.items() if link != usual]
    content = "" if state == "end" else f'{{{{ $last = "{state}" }}}}'
    if not others:
        return _piece(usual, state) + content
    if same or state == "end":
        return _choice([(befores, _literal(_short(link, same))) for link, befores in others], _literal(_short(usual, same))) + (
            _piece(Link(text=same, strip=usual.strip), state) + content
        )
    return _choice([(befores, _piece(link, state)) for link, befores in others], _piece(usual, state)) + content


def _short(link: Link, same: str) -> str:
    return link.text[: len(link.text) - len(same)]


def _choice(cases: Sequence[tuple[list[str], str]], usual: str) -> str:
    made = ""
    if len(cases) == 1 and len(cases[0][0]) == 1 and not cases[0][1]:
        return f"{{{{ if ne $last {_quoted(cases[0][0][0])} }}}}{usual}{{{{ end }}}}"
    for number, (befores, text) in enumerate(cases):
        made += f"{{{{ {'else ' if number else ''}if eq $last {' '.join(_quoted(before) for before in befores)} }}}}{text}"
    return made + (f"{{{{ else }}}}{usual}" if usual else "") + "{{ end }}"


def _piece(link: Link, state: str) -> str:
    content = f'{{{{ template "{link.strip}" .Content }}}}' if link.strip else "{{ .Content }}"
    return _literal(link.text) + ("" if state == "end" else content)


def _define(mode: str) -> str:
    # Go's templates cannot strip, but they can call themselves with a slice; `len (slice . 1)` is one less than `len .`.
    ways = []
    for size, blanks in BLANKS.items():
        enough = f"(ge (len .) {size})"
        if mode in ("left", "both"):
            ways.append(f'if and {enough} (eq (slice . 0 {size}) {blanks}) }}}}{{{{ template "{mode}" (slice . {size}) }}}}')
        if mode in ("right", "both"):
            cut = f"(len (slice . {size}))"
            ways.append(f'if and {enough} (eq (slice . {cut}) {blanks}) }}}}{{{{ template "{mode}" (slice . 0 {cut}) }}}}')
    return f'{{{{ define "{mode}" }}}}{{{{ ' + "{{ else ".join(ways) + "{{ else }}{{ . }}{{ end }}{{ end }}"


def _literal(text: str) -> str:
    # A brace before an action, three quotes (the end of a Modelfile's text) and what its parser drops must stand in an action.
    hidden = re.compile(r'\{(?=\{|$)|"(?="")|[^\n\t -~]')
    return hidden.sub(lambda found: found[0] if found[0].isprintable() and found[0] not in '{"' else _action(found[0]), text)


def _action(letter: str) -> str:
    return f"{{{{ {_quoted(letter)} }}}}"


def _quoted(text: str) -> str:
    code = ord(text) if len(text) == 1 else 0
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"\\U{code:08x}"' if code and not text.isprintable() else f'"{plain}"'


def _default(links: Mapping[Pair, Link]) -> str:
    whole = links[("start", "user")].text
    if ("start", "system") not in links or ("system", "user") not in links:
        return ""
    head, tail = links[("start", "system")].text, links[("system", "user")].text
    found = whole[len(head) : len(whole) - len(tail)]
    return found if found and whole == head + found + tail and _plain(found) and found == found.strip() else ""


def _plain(text: str) -> bool:
    """Whether a Modelfile can hold a text: its parser drops what cannot be seen, and ends a text at three quotes."""
    seen = all(letter.isprintable() or letter in "\n\t" for letter in text)
    return seen and not text.startswith('"') and not re.search(r'"""|"$', text, re.MULTILINE)


def modelfile(files: Sequence[str], adapter: str, found: Chat, name: str, file: str) -> str:
    """The text of a Modelfile; all paths relative to it, with slashes."""
    lines = [MARK, f'#   ollama create {name} -f "{file}"', f"#   ollama run {name}"]
    if adapter:
        lines.append(
            "# Ollama 0.34.1 and later take no ADAPTER: merge it into its base and convert that, or use an older Ollama."
        )
    if found.reason:
        lines += [f"# No TEMPLATE: {found.reason}.", "# Ollama then chooses one of its own that resembles the source's, or none."]
    lines += [f"# TEMPLATE: {note}." for note in found.notes]
    lines += [f"FROM ./{path}" for path in files]
    lines += [f"ADAPTER ./{adapter}"] if adapter else []
    lines += [f'TEMPLATE """{found.template}"""'] if found.template else []
    lines += [f'SYSTEM """{found.system}"""'] if found.system else []
    return "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in found.stops), ""])


def model_name(stem: str) -> str:
    """A file's name as the name of a model in Ollama: lower case ASCII, at most 80 letters."""
    lower = stem.lower()
    kept = re.sub(r"[^a-z0-9._-]+", "-", lower).strip("-._")
    if kept == lower and len(kept) <= 80:
        return kept
    return f"{kept[:60] or 'model'}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
