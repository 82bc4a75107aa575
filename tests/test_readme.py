"""The README's examples run as they stand."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples_run() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        names: dict = {}
        exec(compile(block, str(README), "exec"), names)
        losses = names["losses"]
        assert sum(losses[-10:]) < sum(losses[:10])


if __name__ == "__main__":  # `make wheel` runs it with nothing but the wheel and its dependencies
    test_examples_run()
