"""The README's example runs as it stands, and learns, whatever the seed."""

import re
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
SEED = "set_rng_seed(0)"


def run(seed: int) -> dict[str, Any]:
    """The names that the examples leave behind."""
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert SEED in blocks[0]
    # Else the next run would go on with the parameters of this one.
    assert "pyro.clear_param_store()" in blocks[0]
    for block in blocks:
        exec(compile(block.replace(SEED, f"set_rng_seed({seed})"), str(README), "exec"), names)
    return names


def test_the_example_learns_at_seeds_that_it_does_not_use() -> None:
    """The true process has 0.88 nats per datapoint; one line for everything, -3."""
    for seed in range(1, 6):
        names = run(seed)
        x, y = names["two_lines"](2000)
        assert names["mixture"].predict(x).log_prob(y).mean() > 0, f"seed {seed}"
        assert names["mixture"].marginal_log_likelihood(x, y).mean() > 0


def test_the_example_prints_its_result(capsys: Any) -> None:
    run(0)
    printed = re.fullmatch(r"log-likelihood of new data: (.*) nats per datapoint \(.*\)\n", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) > 0


if __name__ == "__main__":  # `make wheel` runs it with nothing but the wheel and its dependencies
    if len(sys.argv) == 3:  # the first seed, and the one after the last
        for seed in range(int(sys.argv[1]), int(sys.argv[2])):
            run(seed)
    else:
        test_the_example_learns_at_seeds_that_it_does_not_use()
