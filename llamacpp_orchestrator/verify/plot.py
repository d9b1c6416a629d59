"""What quantizing has cost as a picture, where matplotlib is installed (the extra `plots`)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from llamacpp_orchestrator.util.background import load

MARK = "<!-- made by llamacpp-orchestrator -->\n"
LEAST = 1e-6  # a mean below this is rounding
ABSENT = "no plot is drawn without matplotlib; it comes with the extra `plots`, or by python -m pip install matplotlib"


def svg(title: str, points: Sequence[tuple[str, float, float]]) -> str:
    """Points (type, bits per weight, mean KL divergence) as SVG, equal bytes for equal points; "" without the library."""
    try:
        load("matplotlib.figure")
    except ImportError:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks; a viewer has its own
        matplotlib.rcdefaults()  # the user's own settings have no say
        matplotlib.rcParams.update({"svg.hashsalt": MARK, "svg.fonttype": "none"})
        figure = Figure(layout="constrained")
        axes = figure.subplots()
        for label, bits, divergence in points:
            axes.plot(bits, max(divergence, LEAST), "o", label=label)
        axes.set(xlabel="bits per weight", ylabel="mean KL divergence", yscale="log")
        axes.set_title("".join(filter(str.isprintable, title)), parse_math=False)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center")
        figure.savefig(text, format="svg", metadata={"Creator": None, "Date": None})
    return MARK + text.getvalue().partition("?>")[2].lstrip()
