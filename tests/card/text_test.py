"""What a card says of files of each kind, in both languages, and that none of other people's words becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from llamacpp_orchestrator.card import markup as card_markup
from llamacpp_orchestrator.card import merge as card_merge
from llamacpp_orchestrator.card import text as card_text
from llamacpp_orchestrator.card.facts import CardCommand
from llamacpp_orchestrator.card.facts import CardFile
from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.card.facts import Origin
from tests.support import cards

HUB = "https://huggingface.co"
RANKING = Origin(source="a/b", role="base", commit="1", front={"pipeline_tag": "text-ranking"})
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
# Each would be markup of some kind: of tables, code, links, pictures, HTML, headings, lists, formulas, our own marks.
HOSTILE = (
    "a|b", "`x`", "```", "[x](https://evil.example)", "![x](https://evil.example/x.png)", "<b>x</b>", "<!-- x", "</details>",
    "<script>alert(1)</script>", "# x", "\n# x\n", "- x", "1. x", "* x", "> x", "**x**", "_x_", "~~x~~", "&lt;b&gt;", "$$x$$",
    "\\`x\\`", "a\\|b", "<!-- orchestrate:end -->", "\n---\n", "https://evil.example", "www.evil.example", "@evil", "x\u202ey",
    "| a |\n|---|\n| b |", "```\n<b>x</b>", "]: https://evil.example", "{{ facts }}", "{% raw %}",
)  # fmt: skip


def body(facts: Facts, language: str = "en") -> str:
    return card_text.text(facts, language).split("---\n", 2)[2]


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of the table that begins with a heading, as their cells."""
    table = text[text.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def flat(tokens: Sequence[Token]) -> list[Token]:
    return [token for each in tokens for token in (each, *flat(each.children or ()))]


@pytest.mark.parametrize("language", card_text.LANGUAGES)
@pytest.mark.parametrize("kind", cards.KINDS)
def test_every_card_is_the_same_each_time_and_has_no_gap(kind: str, language: str) -> None:
    text = card_text.text(cards.KINDS[kind], language)
    assert text == card_text.text(cards.KINDS[kind], language)
    assert "\n\n\n" not in text and not re.search(r"[ \t]$|[ ]{2}|\bNone\b|\(\)", text, re.MULTILINE)
    assert text.count("<!-- orchestrate:begin -->") == text.count("<!-- orchestrate:end -->") == 1


@pytest.mark.parametrize("kind", cards.KINDS)
def test_both_languages_have_the_same_facts(kind: str) -> None:
    english, chinese = (body(cards.KINDS[kind], language) for language in card_text.LANGUAGES)
    assert blocks(english) == blocks(chinese)
    facts = [sorted(re.findall(r"`[^`\n]+`|\]\([^)]+\)|\d[\d.]*&nbsp;\w+|\d+\.\d+", text)) for text in (english, chinese)]
    assert facts[0] == facts[1] and len(facts[0]) > 10
    assert re.findall("^#+ ", english, re.MULTILINE) == re.findall("^#+ ", chinese, re.MULTILINE)
    assert not re.search("[\u4e00-\u9fff]", english)


@pytest.mark.parametrize("language", card_text.LANGUAGES)
@pytest.mark.parametrize("kind", cards.KINDS)
def test_no_heading_is_empty(kind: str, language: str) -> None:
    assert not re.search(r"^(#+) .*\n\n\1 ", body(cards.KINDS[kind], language), re.MULTILINE)


def test_what_is_no_gguf_is_not_called_so() -> None:
    text = card_text.text(cards.KINDS["merged alone"], "en")
    assert "merged in, as safetensors for transformers." in text and "GGUF" not in text.replace("me/m-GGUF", "")
    assert "\n- gguf" not in text and "\n- gguf" in card_text.text(cards.KINDS["merge"], "en")


def test_the_table_of_files() -> None:
    rows = cells(body(cards.KINDS["quantized, measured"]), "File")
    assert rows[0] == ["File", "Type", "Size", "Bits per weight", "PPL", "KLD", "Same top token"]
    assert rows[2] == ["[`m-bf16.gguf`](m-bf16.gguf)", "`bf16`", "2.48&nbsp;GB", "16.00", "13.1586", "—", "—"]
    assert rows[3] == ["[`m-Q8_0.gguf`](m-Q8_0.gguf)", "`Q8_0`", "1.32&nbsp;GB", "8.50", "13.1651", "0.000512", "98.41 %"]
    assert [row[1] for row in rows[2:]] == ["`bf16`", "`Q8_0`", "`Q6_K`", "`Q4_K_M`", "`Q4_0`", "`IQ4_XS`"]


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        ("unmeasured", ["File", "Type", "Size"]),
        ("vision", ["File", "Kind", "Type", "Size"]),
        ("adapter", ["File", "Kind", "Type", "Size"]),
    ],
)
def test_columns_that_are_empty_are_left_out(kind: str, heads: list[str]) -> None:
    assert cells(body(cards.KINDS[kind]), "File")[0] == heads
    assert "PPL" not in body(cards.KINDS[kind]) and "Which file" not in body(cards.KINDS[kind])


def test_shards_are_one_row_with_each_digest_listed() -> None:
    text = body(cards.KINDS["split"])
    (row,) = cells(text, "File")[2:]
    assert row == ["[`m-Q4_K_M.gguf`](m-Q4_K_M-00001-of-00003.gguf) (3 parts)", "`Q4_K_M`", "15&nbsp;GB"]
    for shard in cards.SHARDS:
        assert f"| `{shard.path}` | 5&nbsp;GB | `{shard.sha256}` |" in text
    assert "hf download me/m-GGUF " + " ".join(shard.path for shard in cards.SHARDS) in text
    assert "ollama" not in text and "m-Q4_K_M.gguf.receipt.json" in text


def test_a_merged_model_is_one_row_and_no_example() -> None:
    weights = [
        cards.file(f"m/{name}", "merged", "safetensors", levels=("structure",)) for name in ("config.json", "x.safetensors")
    ]
    text = body(cards.facts(*weights, cards.file("m-Q4_0.gguf", type_="Q4_0")))
    assert cells(text, "File")[3] == ["`m` (2 parts)", "merged model", "`safetensors`", "2&nbsp;GB"]
    assert "(`content`, of `m-Q4_0.gguf`)" in text and "**Whole** (`structure`):" in text
    assert "reproduce m-Q4_0.gguf.receipt.json" in text
    assert "orchestrate verify" not in body(cards.facts(*weights)) and "How to make it again" not in body(cards.facts(*weights))


def test_which_file_to_take_is_what_was_measured() -> None:
    text = body(cards.KINDS["quantized, measured"])
    assert "closest to the unquantized file: `Q8_0` (KLD 0.000512, 1.32&nbsp;GB);" in text
    assert "95 % of the positions or more: `Q6_K` (96.90 %, 1.02&nbsp;GB);" in text
    assert re.findall("rather `(.*?)` than `(.*?)`", text) == [("IQ4_XS", "Q4_0")]
    assert "![" in text and "(m-quality.svg)" in text and "`wiki.test.raw`" in text


def measured(type_: str, size: int, kld: float | None, same: float | None) -> CardFile:
    return cards.file(f"{type_}.gguf", type_=type_, size=size, ppl=9.0, kld=kld, same_top=same)


@pytest.mark.parametrize(
    ("rows", "closest", "smallest", "beaten"),
    [
        ((("A", 9, 0.1, 96.0), ("B", 5, 0.2, 95.0)), "A", "B", ()),
        ((("A", 9, 0.1, 94.9), ("B", 5, 0.2, None)), "A", None, ()),
        ((("A", 9, 0.1, 96.0), ("B", 5, 0.1, 95.0)), "B", "B", ()),
        ((("A", 9, 0.3, 96.0), ("B", 9, 0.2, 99.0), ("C", 5, 0.1, 97.0)), "C", "C", (("A", "C"), ("B", "C"))),
        ((("A", 9, 0.1, 96.0), ("U", 20, None, None)), "", None, ()),
        ((("A", 9, 0.1, 96.0), ("B", 5, 0.2, 95.0), ("U", 20, None, None), ("V", 20, None, None)), "", None, ()),
    ],
)
def test_choices(
    rows: Sequence[tuple[str, int, float | None, float | None]], closest: str, smallest: str | None, beaten: tuple[object, ...]
) -> None:
    choice = card_text.choice(card_text.rows([measured(*row) for row in rows]))
    assert (choice.closest.type if choice else "") == closest
    if choice:
        assert (choice.smallest.type if choice.smallest else None) == smallest
        assert sorted((worse.type, better.type) for worse, better in choice.beaten) == list(beaten)


def test_a_plot_is_shown_with_its_numbers_alone() -> None:
    adapter = msgspec.structs.replace(cards.KINDS["adapter"], plot="m-quality.svg", measured_on="wiki.test.raw")
    assert "![" not in body(adapter) and "wiki.test.raw" not in body(adapter)


def test_no_file_is_recommended_that_changes_too_many_tokens() -> None:
    text = body(cards.facts(measured("A", 9, 0.1, 90.0), measured("B", 5, 0.2, 80.0)))
    assert "none has the same top token at 95 % of the positions or more" in text


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        (
            "unmeasured",
            ["llama-cli -hf me/m-GGUF:Q4_K_M", "llama-server -hf me/m-GGUF:Q4_K_M"]
            + ["ollama run hf.co/me/m-GGUF:Q4_K_M", f"lms get {HUB}/me/m-GGUF@Q4_K_M"],
        ),
        (
            "encoder",
            ["llama-embedding -hf me/m-GGUF:Q4_K_M -p 'Hello, world'", "llama-server -hf me/m-GGUF:Q4_K_M --embeddings"],
        ),
        (
            "vision",
            ["llama-cli -hf me/m-GGUF:Q4_K_M --image photo.jpg", "llama-server -hf me/m-GGUF:Q4_K_M"]
            + ["ollama run hf.co/me/m-GGUF:Q4_K_M", f"lms get {HUB}/me/m-GGUF@Q4_K_M"],
        ),
        (
            "adapter",
            ["hf download me/m-GGUF m-bot-lora-f16.gguf --local-dir ."]
            + [f"{program} -m BASE.gguf --lora m-bot-lora-f16.gguf" for program in ("llama-cli", "llama-server")],
        ),
        (
            "together",
            ["llama-cli -hf me/m-GGUF:Q4_K_M", "llama-server -hf me/m-GGUF:Q4_K_M"]
            + ["ollama run hf.co/me/m-GGUF:Q4_K_M", f"lms get {HUB}/me/m-GGUF@Q4_K_M"]
            + ["hf download me/m-GGUF m-bot-lora-f16.gguf --local-dir ."]
            + ["llama-cli -hf me/m-GGUF:Q4_K_M --lora m-bot-lora-f16.gguf"],
        ),
    ],
)
def test_how_it_is_run(kind: str, commands: list[str]) -> None:
    text = body(cards.KINDS[kind])
    section = text[text.index("## How to use") : text.index("## What it was made from")]
    assert "".join(blocks(section)).splitlines() == commands
    assert ("projector" in section) == (kind == "vision")


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ({"chat": False}, "llama-completion -hf me/m-GGUF:Q4_K_M -p 'Once upon a time'"),
        ({"chat": False, "embedding": True, "origins": ()}, "llama-embedding -hf me/m-GGUF:Q4_K_M -p 'Hello, world'"),
        ({"origins": (RANKING,)}, "llama-server -hf me/m-GGUF:Q4_K_M --rerank"),
        ({"revision": "v2"}, "hf download me/m-GGUF m-Q4_K_M.gguf --revision v2 --local-dir ."),
    ],
)
def test_how_files_of_other_tasks_and_branches_are_run(more: dict[str, object], first: str) -> None:
    facts = cards.facts(**more)
    used = card_text.usage(facts, card_text.rows(facts.files))
    assert card_markup.shell(used.llama[0]) == first
    if facts.revision != "main":
        assert used.llama[1] == ("llama-cli", "-m", "m-Q4_K_M.gguf") and not used.ollama and not used.lm_studio
        assert "on its first start" not in body(facts) and "job.lock.yaml m-Q4_K_M.gguf.receipt.json --revision v2" in body(facts)


@pytest.mark.parametrize(
    ("paths", "path", "type_", "leads"),
    [
        (("m-bf16.gguf", "m-f16.gguf"), "m-f16.gguf", "f16", False),  # F16 is found in bf16 first
        (("m-bf16.gguf", "m-f16.gguf"), "m-bf16.gguf", "bf16", True),
        (("m-a-lora-f16.gguf", "m-f16.gguf"), "m-f16.gguf", "f16", False),
        (("m-Q4_K_M.gguf", "m-Q4_K.gguf"), "m-Q4_K.gguf", "Q4_K", True),
        (("mmproj-m-f16.gguf", "x-f16.gguf"), "x-f16.gguf", "f16", True),
        (("m-TQ1_0.gguf", "n-Q1_0.gguf"), "n-Q1_0.gguf", "Q1_0", False),
        (("m-Q4_0-00001-of-00002.gguf", "m-Q4_0-00002-of-00002.gguf"), "m-Q4_0-00001-of-00002.gguf", "Q4_0", True),
        (("m.gguf",), "m.gguf", "Q4_0", False),
    ],
)
def test_a_type_is_named_only_where_it_leads_to_the_file(paths: Sequence[str], path: str, type_: str, leads: bool) -> None:
    files = [cards.file(each, type_=type_) for each in paths]
    row = next(row for row in card_text.rows([cards.file(path, type_=type_)]))
    assert card_text.is_found_by_type(cards.facts(*files), row) == leads
    besides = cards.facts(cards.file(path, type_=type_), others=tuple(paths))
    assert card_text.is_found_by_type(besides, row) == leads, "whoever has put the others there"


def test_a_file_that_no_type_leads_to_is_named_itself() -> None:
    text = body(cards.facts(cards.file("m.gguf")))
    assert "llama-cli -hf me/m-GGUF -hff m.gguf" in text and "ollama run hf.co/me/m-GGUF:m.gguf" in text
    assert f"lms get {HUB}/me/m-GGUF\n" in text


def test_what_it_was_made_from() -> None:
    text = body(cards.KINDS["merge"])
    listed = text[text.index("## What it was made from") : text.index("## How it was made")]
    assert f"- model [meta/Llama-3.2-1B]({HUB}/meta/Llama-3.2-1B/tree/{cards.COMMIT}) at commit `{cards.COMMIT}`" in listed
    assert "weight 0.5, licence apache-2.0\n" in listed
    assert "- merged adapter `two`, a folder that is not on the hub, weight 1\n" in listed
    assert "It also needs `two`, which is not on the hub" in text
    assert "not on the hub" not in body(cards.KINDS["unmeasured"])
    assert "- importance matrix `m.imatrix`" in body(cards.KINDS["quantized, measured"])


def test_how_it_was_made_and_checked() -> None:
    command = CardCommand(path="m.gguf", command=("{python}", "a b", "--x"), notes=("1 tensor_name is f32",))
    facts = cards.facts(cards.file("m.gguf", levels=("structure", "logits")), cards.LORA, commands=(command,), commit="")
    text = body(facts)
    assert "{python} 'a b' --x\n" in text and "- `m.gguf`: 1 tensor\\_name is f32\n" in text
    assert "llama.cpp `b11434`, by its own" in text
    lines = [line for line in text.splitlines() if line.startswith("- **")]
    assert [re.findall(r"\(`.*?`\)", line)[0] for line in lines] == [
        "(`structure`)",
        "(`content`, of `m-bot-lora-f16.gguf`)",
        "(`load`, of `m-bot-lora-f16.gguf`)",
        "(`logits`, of `m.gguf`)",
    ]
    assert "The receipts name no checks" in body(cards.facts(cards.file("m.gguf", levels=())))


def test_nothing_is_said_of_what_is_not_there() -> None:
    text = body(cards.facts(job="", lock="", commands=(), environment="unpinned"))
    assert "How to make it again" not in text and "commands, with names" not in text and "Notes:" not in text


@pytest.mark.parametrize("language", card_text.LANGUAGES)
@pytest.mark.parametrize("words", HOSTILE)
def test_no_markup_of_others_gets_through(words: str, language: str) -> None:
    def made(filler: str) -> Facts:
        row = cards.file(f"m-{filler}-Q4_0.gguf", type_=filler, levels=("structure",), ppl=1.0)
        lora = msgspec.structs.replace(cards.LORA, path=filler, levels=())
        origins = tuple(
            Origin(
                source=filler, role=role, commit=commit, front={"license": filler, "license_name": filler, "license_link": filler}
            )
            for role, commit in (("base", filler), ("adapter", ""), ("merged", ""), (filler, ""))
        )
        command = CardCommand(path=filler, command=("{python}", filler, f"--{filler}"), notes=(filler, f"note {filler}"))
        plain = ("title", "tag", "commit", "tree", "environment", "tool", "job", "lock", "plot", "measured_on", "matrix")
        return cards.facts(row, lora, relation="merge", origins=origins, commands=(command,), **dict.fromkeys(plain, filler))

    ours, theirs = (flat(MARKDOWN.parse(body(made(filler), language))) for filler in ("x", words))
    kinds = [[token.type for token in tokens if token.type not in ("text", "softbreak")] for tokens in (ours, theirs)]
    # `<code>` stands for backticks where those would not do.
    plain = [[kind for kind in listed if kind not in ("code_inline", "html_inline")] for listed in kinds]
    assert plain[0] == plain[1]
    html = "\n".join(token.content for token in theirs if token.type in ("html_inline", "html_block"))
    own = {line.strip() for line in body(made("x"), language).splitlines() if line.startswith("<")}
    assert {line.strip() for line in html.splitlines()} <= {"<code>", "</code>", "", *own}
    targets = [token.attrs["href"] for token in theirs if token.type == "link_open"]
    assert not [target for target in targets if "evil" in str(target) and not re.match(f"{HUB}/|[^:/]*$|[^:]*%3A", str(target))]
    assert "\u202e" not in body(made(words), language)
    text = card_text.text(made(words), language)
    assert card_merge.merged(text, text) == text
