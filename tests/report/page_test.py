"""The page as HTML: well formed, escaped, self-contained and legible, whatever is put into it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from llamacpp_orchestrator.report import page as report_page
from llamacpp_orchestrator.report.records import Page
from llamacpp_orchestrator.verify import plot
from tests.support import pages

VOID = {"meta", "br", "link"}
OWN = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "article", "h1", "h2", "h3", "p", "dl", "div",
    "dt", "dd", "span", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "ol", "ul", "li", "i", "details", "summary",
    "a",
}  # fmt: skip
DRAWN = {"svg", "defs", "g", "path", "use", "text", "clippath", "rect", "tspan"}
ATTRIBUTES = {"class", "style", "title", "href", "data-label", "lang", "charset", "name", "content", "type"}
HOSTILE = (
    "<b>",
    '"><script>alert(1)</script>',
    "' onmouseover='x",
    "{{ 7*7 }}",
    "{% raw %}",
    "&lt;i&gt;",
    "]]>--><!--",
    "</style></pre>",
    "x" * 500,
    "模型 — ñ",
)


class Reading(HTMLParser):
    """A page as a browser takes it apart: its elements with their attributes, its text, and what is closed at another place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.opened or self.opened.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.opened[-1:] != ["style"]:
            self.texts.append(data)


def html(page: Page) -> str:
    return report_page.html(page, lambda text: text)


def shape(text: str) -> list[tuple[str, frozenset[str]]]:
    return [(tag, frozenset(attributes)) for tag, attributes in Reading(text).elements]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text_and_never_markup(name: str) -> None:
    text, plain = html(pages.page(name, drawn=False)), html(pages.page("plain", drawn=False))
    read = Reading(text)
    assert not read.wrong and not read.opened
    assert shape(text) == shape(plain), "a name adds no element and no attribute"
    assert name in "".join(read.texts), "it is shown as it is"


def test_every_text_is_cleaned() -> None:
    text = report_page.html(pages.page("secret", drawn=False), lambda text: text.replace("secret", "public"))
    assert "public" in text and "secret" not in text


@pytest.mark.parametrize("page", [pages.page(), pages.page(drawn=False), pages.bare()], ids=["whole", "undrawn", "bare"])
def test_a_page_stands_by_itself(page: Page) -> None:
    text = html(page)
    read = Reading(text)
    assert text.startswith(report_page.BEGIN) and not read.wrong and not read.opened
    assert {tag for tag, _ in read.elements} <= OWN | DRAWN
    assert {name for tag, attributes in read.elements if tag in OWN for name in attributes} <= ATTRIBUTES
    assert all(str(attributes["href"]).startswith("https://huggingface.co/") for tag, attributes in read.elements if tag == "a")
    assert not re.search(r"@import|url\((?!#)|(?:src|srcset|action)=", text), "nothing is loaded"


def sections(page: Page) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html(page))


def test_the_parts_of_a_page_and_their_order() -> None:
    whole = ["Failures of the last run", "Files", "Quality", "Time", "Memory", "How each file came to be", "Inputs"]
    assert sections(pages.page()) == whole
    assert sections(pages.bare()) == ["Files"]
    said = html(pages.bare())
    assert "This job has never been run on this machine." in said
    assert "There is no record of a run" in html(pages.bare(sources=pages.page().sources))


def test_what_is_said_of_files_and_quality() -> None:
    text = html(pages.page())
    rows = dict(re.findall(r'<td class="name">([^<]+\.gguf)</td>\n<td data-label="status"><span class="status (\w+)">', text))
    assert {rows["base-0.gguf"], rows["base-s.gguf"], rows["base.gguf"]} == {"current", "stale", "missing"}
    assert f'<span title="{pages.DIGEST}">{pages.DIGEST[:12]}</span>' in text and "structure, content, load" in text
    assert "merged into its model: base × 0.5" in text and "note on base" in text
    assert "<svg" in text and plot.ABSENT.split(";")[0] not in text.lower()
    undrawn = html(pages.page(drawn=False))
    assert "<svg" not in undrawn and "No plot is drawn without matplotlib" in undrawn
    assert text.count('data-label="status"><span class="status stale">') == 1 + len(pages.TYPES) - 2


def test_many_files() -> None:
    text = html(pages.page(count=300, drawn=False))
    assert text.count('<td class="mono" data-label="sha256"><span') == 302 and not Reading(text).wrong


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10.0, "10 s"),
        (59.6, "1 min 0 s"),
        (185.2, "3 min 5 s"),
        (3599.6, "1 h 0 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_times_for_people(count: float, expected: str) -> None:
    assert report_page.seconds(count) == expected


def luminance(colour: str) -> float:
    """The relative luminance of a colour such as #1c2128 (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_what_the_rule_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_letters_stand_out_from_their_ground_light_and_dark() -> None:
    palettes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", html(pages.bare()), re.DOTALL)
    ]
    light, dark = palettes
    assert light.keys() == dark.keys() and luminance(light["ground"]) > 0.8 and luminance(dark["ground"]) < 0.05
    for palette in palettes:
        for letters in palette.keys() - {"ground", "raised", "line"}:
            for ground in ("ground", "raised"):
                assert contrast(palette[letters], palette[ground]) >= 4.5, (letters, ground)
