"""Write the table of schedulers in ``docs/parameters.md`` from what the tests' cases come to.

Every scheduler of torch and of transformers is run with every operation of the learning rate and
with another warm-up, and what it does is compared with its own rates and a line of arithmetic. A
case that comes out otherwise than the tests expect ends this with an error rather than with a row.

Run as ``python tools/parameter_table.py`` to write, or with ``--check`` to write nothing and exit 1
if the table is not what the cases give.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.trainer_agent.parameters.runs import (  # noqa: E402 - found from the root only
    HUGGING_FACE,
    OTHERS,
    TORCH,
    Run,
)
from tests.trainer_agent.parameters.scheduler_cases import (  # noqa: E402 - likewise
    OPERATIONS,
    assert_as_expected,
    assert_peak_as_expected,
    late_peak_refused,
)
from trainer_agent.parameters import Refused  # noqa: E402 - likewise
from trainer_agent.parameters.schedulers import sinks_scales  # noqa: E402 - likewise

DOCUMENT = ROOT / "docs" / "parameters.md"
BEGIN = "<!-- Written by tools/parameter_table.py; do not edit. -->"
END = "<!-- End of what tools/parameter_table.py writes. -->"

_WHOSE = {
    **dict.fromkeys(TORCH, "torch"),
    **dict.fromkeys(HUGGING_FACE, "Hugging Face"),
    **dict.fromkeys(OTHERS, ""),
}
_CALLED = {"none": "no scheduler", "home-made": "one of your own with a `step` method"}


def table() -> str:
    """Run every case and return the table.

    Raises:
        AssertionError: A case did not come out as the tests expect.
    """
    operations = list(OPERATIONS)
    head = ["scheduler", "of", *operations, "peak", "peak, seen late", "steered by", "warm-up"]
    rows = [head, ["---"] * len(head)]
    for name, whose in _WHOSE.items():
        cells = [_outcome(assert_as_expected, name, operation) for operation in operations]
        cells.append(_outcome(assert_peak_as_expected, name))
        cells.append("refused" if late_peak_refused(name) else "right")
        called = _CALLED.get(name, f"`{name}`")
        rows.append([called, whose, *cells, _steered_by(name), _warmup(name)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _outcome(case: Callable[..., None], *arguments: str) -> str:
    try:
        case(*arguments)
    except Refused as refused:
        return f"refused: {refused.reason}"
    return "right"


def _steered_by(name: str) -> str:
    scheduler = Run({**TORCH, **HUGGING_FACE, **OTHERS}[name], learns=False).torch_scheduler
    if scheduler is None:
        return "writing the rate"
    return "sinking the scale" if sinks_scales(scheduler) else "following"


def _warmup(name: str) -> str:
    if name not in HUGGING_FACE:
        return "none"
    from tests.trainer_agent.parameters.warmup_plan import Plan

    plan = Plan(name, done=3)
    return "none" if plan.found["warmup_steps"].spec().unavailable else "re-planned"


def document(text: str, written: str) -> str:
    """Return the document with this table in it.

    Raises:
        ValueError: It does not say where the table goes.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT} does not say where the table goes: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{written}\n\n{END}{after}"


def main() -> int:
    """Write the table or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    check: bool = parser.parse_args().check
    text = DOCUMENT.read_text(encoding="utf-8")
    wanted = document(text, table())
    if text == wanted:
        return 0
    if check:
        print(f"{DOCUMENT} is not what the cases give: run python tools/parameter_table.py")
        return 1
    DOCUMENT.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
