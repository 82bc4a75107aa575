"""What fitted language models write."""

import pyro

from inference.runs.run_folder import RunFolder
from inference.tasks import Task
from inference.training.run import FitResult
from models.language import LanguageModel

#: bytes of the test part that are given
PROMPT_LENGTH = 32


def write_sampled_text(task: Task, results: dict[int, FitResult], length: int, sample: bool, run: RunFolder) -> str:
    """
    The beginning of the test part, as every seed's model goes on with it; written by the causal model that serves.

    :param length: bytes to write.
    :param sample: whether experts are drawn, see :meth:`~models.language.LanguageModel.generate`.
    :returns: the name of the file.
    """
    prompt = task.test[0][0, :PROMPT_LENGTH]
    parts = []
    for seed, result in results.items():
        assert isinstance(result.model, LanguageModel)
        pyro.set_rng_seed(seed)
        written = bytes(result.model.generate(prompt, length, sample=sample)[PROMPT_LENGTH:].tolist())
        # A byte-level model need not write valid UTF-8.
        parts.append(f"seed {seed}\n{'=' * 80}\n{written.decode(errors='replace')}\n")
    name = f"fit_{task.name}_text.txt"
    given = bytes(prompt.tolist()).decode(errors="replace")
    (run.path / name).write_text(f"given: {given!r}\n\n" + "\n".join(parts), encoding="utf-8")
    return name
