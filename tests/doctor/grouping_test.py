"""What fails for one cause is told once, and what that means for a job is counted once."""

from __future__ import annotations

from llamacpp_orchestrator.commands.doctor import lacking
from llamacpp_orchestrator.doctor.grouping import grouped
from llamacpp_orchestrator.doctor.records import Line
from llamacpp_orchestrator.doctor.records import problem

HOSTS = {"github": "https://github.com", "hub": "https://huggingface.co", "packages": "https://pypi.org/simple"}


def failing(cause: str, *names: str) -> list[Line]:
    return [
        problem(name, cause, f"{place}: {cause}", "do this", place=place)
        if name in names
        else Line(name=name, ok=True, said="fine", place=place)
        for name, place in HOSTS.items()
    ]


def shown(lines: list[Line]) -> list[str]:
    return [line.name for line in lines if not line.within and not line.ok]


def direct(url: str) -> str:
    return ""


def test_where_nothing_answers_there_is_no_network() -> None:
    lines = grouped(failing("dns", *HOSTS), direct)
    assert shown(lines) == ["network"] and lacking(lines) == ["github", "hub", "packages", "network"]
    assert "none of github.com, huggingface.co, pypi.org answers" in lines[-1].said and "orchestrate bundle" in lines[-1].remedy
    assert "do this" not in lines[-1].said and "mirror" not in lines[-1].said


def test_names_that_are_not_found_while_others_are() -> None:
    lines = grouped(failing("dns", "github", "hub"), direct)
    assert shown(lines) == ["dns"] and "name service" in lines[-1].said
    assert shown(grouped(failing("dns", "hub"), direct)) == ["hub"], "one alone speaks for itself"
    assert shown(grouped(failing("refused", "github", "hub"), direct)) == ["github", "hub"], "each has a setting of its own"


def test_one_certificate_problem_of_many_hosts() -> None:
    lines = grouped(failing("certificate", *HOSTS), direct)
    assert shown(lines) == ["certificates"] and "SSL_CERT_FILE" in lines[-1].said
    clock = problem("clock", "clock", "an hour ahead", "set it", needed=False)
    assert shown(grouped([*failing("expired", *HOSTS), clock], direct)) == ["clock"]


def test_a_proxy_that_is_gone_is_told_once_for_all_behind_it() -> None:
    proxy = problem("proxy", "proxy", "does not answer", "correct it", needed=False, place="http://proxy:1")
    lines = grouped([proxy, *failing("refused", *HOSTS)], lambda url: "" if "hugging" in url else "http://proxy:1")
    assert shown(lines) == ["proxy", "hub"]
    answering = Line(name="proxy", ok=True, said="http://proxy:1", place="http://proxy:1")
    lines = grouped([answering, *failing("proxy", *HOSTS)], lambda url: "http://proxy:1")
    assert shown(lines) == ["proxy"] and "does not let through" in lines[-1].said


def test_what_another_place_gives_is_not_lacking() -> None:
    more = [*failing("certificate", "github", "hub"), *(Line(name=name, ok=True, said="fine") for name in ("github", "hub"))]
    lines = grouped(more, direct)
    assert shown(lines) == ["certificates"] and lacking(lines) == []
