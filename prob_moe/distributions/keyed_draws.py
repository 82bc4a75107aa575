"""Draws that depend on where they are made, and on nothing else: not on the processes that share the work, nor on what
was drawn before."""

import functools
import hashlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")

#: the mark of a procedure's ``draw`` that takes generators
KEYED = "_takes_generators"
_ONE = torch.Size()


class KeyedDraws:
    """
    Random numbers of assignment distributions and rules, from a generator for each batch element (group of datapoints
    that are routed together), whose seed is a hash of

        (seed, step, micro-step, name of the site, particle, number of the batch element among all processes).

    So a draw is the same on any number of processes, other layers and other groups draw something else, and a forward
    pass that activation checkpointing repeats draws what it drew. The step is advanced by the training loop:

    >>> from prob_moe.distributions import IndependentRouting
    >>> law, draws = IndependentRouting(torch.zeros(2, 5, 3)), KeyedDraws(seed=0)
    >>> with draws.step(7), draws_at("layer", 2):
    ...     value = law.sample()
    >>> with KeyedDraws(seed=0, process=1).step(7), draws_at("layer", 1):
    ...     bool((IndependentRouting(torch.zeros(1, 5, 3)).sample() == value[1:]).all())
    True

    :class:`~prob_moe.layer.ExpertLayer` and :class:`~prob_moe.mixture.MixtureOfExperts` name their sites by themselves.
    A second call of a site in a step is the next particle. Equal devices draw equal numbers; a processor and CUDA do
    not. What torch's own generator draws, such as dropout, is not keyed.

    :param seed: of the run.
    :param process: of this process among those that share a batch, each with as many batch elements; 0 for one alone.
        :meth:`~prob_moe.parallel.Groups.keyed_draws` fills it in.
    :raises ValueError: if one is no int, or ``process`` is negative.
    """

    def __init__(self, seed: int, *, process: int = 0) -> None:
        for name, value in {"seed": seed, "process": process}.items():
            if isinstance(value, bool) or not isinstance(value, int) or (name == "process" and value < 0):
                raise ValueError(f"{name} must be an int, and process not negative, got {name}={value!r}")
        self.seed, self.process = seed, process

    @contextmanager
    def step(self, step: int, micro_step: int = 0) -> Iterator[None]:
        """
        Within, assignments are drawn by their keys. Begin it again, and the same is drawn.

        :param step: of the optimiser.
        :param micro_step: of those whose gradients are accumulated in a step.
        """
        token = _step.set(Step(self.seed, self.process, step, micro_step))
        try:
            yield
        finally:
            _step.reset(token)


class Step:
    """One step of one run, which counts the visits of each site."""

    def __init__(self, seed: int, process: int, step: int, micro_step: int) -> None:
        self.seed, self.process, self.step, self.micro_step = seed, process, step, micro_step
        self.particles: Counter[str] = Counter()


class Visit:
    """
    The generators of one visit of a site.

    :param particle: the first one of this visit.
    :param num_elements: of the batch of this process.
    """

    def __init__(self, step: Step, site: str, particle: int, num_elements: int) -> None:
        self.step, self.site, self.particle, self.num_elements = step, site, particle, num_elements
        self._generators: dict[tuple[int, torch.device], torch.Generator] = {}

    def generators(self, lead: torch.Size, device: torch.device) -> list[torch.Generator]:
        """
        :param lead: sample and batch shape: particles in front, batch elements behind.
        :returns: one for each, which goes on where it was in this visit.
        """
        count = lead.numel()
        if count % max(1, self.num_elements):
            raise ValueError(f"site {self.site!r} has {self.num_elements} batch elements, but draws {tuple(lead)}")
        particles = self.particle + count // max(1, self.num_elements)
        self.step.particles[self.site] = max(particles, self.step.particles[self.site])
        return [self._generator(index, device) for index in range(count)]

    def _generator(self, index: int, device: torch.device) -> torch.Generator:
        if (index, device) not in self._generators:
            step, (particle, element) = self.step, divmod(index, self.num_elements)
            element += step.process * self.num_elements
            seed = seed_of(step.seed, step.step, step.micro_step, self.site, self.particle + particle, element)
            self._generators[index, device] = torch.Generator(device).manual_seed(seed)
        return self._generators[index, device]


class Unkeyed:
    """
    Refuses to draw.

    :param reason: the error.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def generators(self, lead: torch.Size, device: torch.device) -> list[torch.Generator]:
        """:raises ValueError: always."""
        raise ValueError(self.reason)


def seed_of(seed: int, step: int, micro_step: int, site: str, particle: int, element: int) -> int:
    """:returns: 63 bits."""
    key = repr((seed, step, micro_step, site, particle, element)).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


_step: ContextVar[Step | None] = ContextVar("step", default=None)
_visit: ContextVar[Visit | Unkeyed | None] = ContextVar("visit", default=None)
# For passes that activation checkpointing repeats, in which there is no step any more: the number that a pass drew from
# torch's generator, as its repetition does, to its visit. The graph keeps it alive.
_visits: "weakref.WeakValueDictionary[int, Visit]" = weakref.WeakValueDictionary()


def keyed() -> bool:
    """:returns: whether a step of keyed draws is on."""
    return _step.get() is not None


@contextmanager
def draws_at(
    site: str, num_elements: int, *, number: int | None = None, repeated: bool = False, required: bool = False
) -> Iterator[Visit | None]:
    """
    Draw what is drawn within at a site of the running step; a site of one's own in a Pyro model names itself so.
    Without a step torch's own generator draws.

    :param site: its name, unique in the network.
    :param num_elements: batch elements of this process.
    :param number: by which a repeated pass finds its visit, where there may be one.
    :param repeated: whether this is one.
    :param required: whether it is an error to draw without a step.
    """
    step, visit = _step.get(), None
    if repeated and number is not None:
        old = _visits.get(number)
        # Anew, from the beginning of its streams.
        visit = None if old is None else Visit(old.step, old.site, old.particle, old.num_elements)
    elif step is not None:
        visit = Visit(step, site, step.particles[site], num_elements)
        if number is not None:
            _visits[number] = visit
    elif number is not None:
        _visits.pop(number, None)  # of a pass with the same seed
    if visit is None and required:
        reason = "processes that share a batch need keyed draws: use `with draws.step(step):`, see KeyedDraws"
        token = _visit.set(Unkeyed(f"site {site!r}: {reason}"))
    else:
        token = _visit.set(visit)
    try:
        yield visit
    finally:
        _visit.reset(token)


@contextmanager
def particles_kept() -> Iterator[None]:
    """What is visited within has not been visited afterwards."""
    step = _step.get()
    kept = None if step is None else step.particles.copy()
    try:
        yield
    finally:
        if step is not None and kept is not None:
            step.particles = kept


def keyed_generators(lead: torch.Size, device: torch.device) -> list[torch.Generator] | None:
    """
    :param lead: sample and batch shape.
    :returns: the generators of the site that is being visited; None for torch's own.
    """
    visit = _visit.get()
    return None if visit is None else visit.generators(lead, device)


def keyed_draw(draw: Callable[..., T]) -> Callable[..., T]:
    """The ``draw`` of a procedure, from the generators of the site that is being visited unless it is given others."""

    @functools.wraps(draw)
    def drawn(self: Any, sample_shape: torch.Size = _ONE, *, generator: Any = None, **options: Any) -> T:
        if generator is None:
            generator = keyed_generators(torch.Size(sample_shape) + self.batch_shape, self.logits.device)
        return draw(self, sample_shape, generator=generator, **options)

    setattr(drawn, KEYED, True)
    return drawn


def unkeyed_sample(sample: Callable[..., T]) -> Callable[..., T]:
    """The ``sample`` of a procedure that may define it alone, and so draw from torch's own generator."""

    @functools.wraps(sample)
    def sampled(self: Any, *args: Any, **kwargs: Any) -> T:
        if _visit.get() is not None and not hasattr(type(self).draw, KEYED):
            raise NotImplementedError(
                f"{type(self).__name__} defines sample alone, which knows no keys: define draw instead"
            )
        return sample(self, *args, **kwargs)

    return sampled
