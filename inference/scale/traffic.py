"""What a process sends to others, counted where it is sent."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

#: collectives, where the tensor stands among their arguments, and which share of its bytes leaves one of p processes
SHARES: dict[str, tuple[int, Callable[[int], float]]] = {
    "all_to_all_single": (1, lambda p: (p - 1) / p),
    "all_reduce": (0, lambda p: 2 * (p - 1) / p),  # in a ring
}


class Traffic:
    """
    As a context: counts calls, bytes that leave this process, and seconds, by collective, until the call returns. The
    seconds are those of a processor, and have the wait for slower processes in them.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._real: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> "Traffic":
        for name in SHARES:
            self._real[name] = getattr(dist, name)
            setattr(dist, name, self._counted(name))
        return self

    def __exit__(self, *exception: object) -> None:
        for name, real in self._real.items():
            setattr(dist, name, real)

    def _counted(self, name: str) -> Callable[..., Any]:
        real, (place, share) = self._real[name], SHARES[name]

        def collective(*args: Any, **options: Any) -> Any:
            tensor: Tensor = args[place]
            begun = time.perf_counter()
            done = real(*args, **options)
            self.seconds[name] += time.perf_counter() - begun  # type: ignore[assignment]
            self.calls[name] += 1
            self.bytes[name] += round(tensor.nbytes * share(dist.get_world_size(options.get("group"))))
            return done

        return collective
