"""The page as HTML: one file that needs no other, no script and no network, whatever the names in it are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator.report.records import Page
from llamacpp_orchestrator.util.units import size
from llamacpp_orchestrator.verify import plot

BEGIN = f"<!doctype html>\n{plot.MARK}"  # by which a page is known as ours


def html(page: Page, clean: Callable[[str], str]) -> str:
    """A page as HTML; each text in it goes through `clean` and is escaped, but for the plots, which are elements."""
    from jinja2 import Environment
    from jinja2 import FileSystemLoader
    from jinja2 import StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": size, "seconds": seconds, "element": Markup}
    text = environment.get_template("page.html.j2").render(page=page)
    return f"{BEGIN}{text}\n"


def seconds(count: float) -> str:
    """A time for people: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if count < 10:
        return f"{count:.1f} s"
    minutes, rest = divmod(round(count), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
