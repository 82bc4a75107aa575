"""A batch as groups of datapoints, which are routed each by itself, whoever holds them."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.distributions.keyed_draws import KeyedDraws
from prob_moe.experts.validation import check_positive_int
from prob_moe.parallel.mesh import Layout, agree


class Groups:
    """
    A global batch cut into G groups of equal shape, of which every process holds G / P that follow one another.

    G belongs to a run, and the number of processes P does not: capacity, assignment and balancing are the affair of a
    group, so that the same groups give the same numbers on any P that divides G. All processes hold the global batch,
    in one order, and :meth:`cut` takes what is theirs. A mean over the batch is then the sum of what a process has,
    divided by the number of *global* datapoints, and summed over processes.

    :param num_groups: G.
    :param mesh: of the processes; None for one.
    :raises ValueError: in all processes, if G is not a positive int, not the same in all of them, or no multiple of P.

    >>> x, mask = Groups(2).cut(torch.arange(5.0).unsqueeze(-1))
    >>> x.squeeze(-1)
    tensor([[0., 1., 2.],
            [3., 4., 0.]])
    >>> mask.sum(-1)
    tensor([3, 2])
    """

    def __init__(self, num_groups: int, mesh: DeviceMesh | None = None) -> None:
        self.num_groups = num_groups
        self._layout = None if mesh is None else Layout(mesh)
        problem = self._problem()
        if self._layout is not None:
            agree(problem, num_groups=num_groups)
        elif problem is not None:
            raise ValueError(problem)

    def _problem(self) -> str | None:
        try:
            check_positive_int("num_groups", self.num_groups)
        except ValueError as error:
            return str(error)
        if self.num_groups % self.num_processes:
            return f"num_groups={self.num_groups} is no multiple of the number of processes, {self.num_processes}"
        return None

    @property
    def num_processes(self) -> int:
        """P"""
        return 1 if self._layout is None else self._layout.num_processes

    @property
    def num_local(self) -> int:
        """Groups of this process."""
        return self.num_groups // self.num_processes

    @property
    def first(self) -> int:
        """The first group of this process."""
        return 0 if self._layout is None else self._layout.position * self.num_local

    def places(self, num_datapoints: int) -> Tensor:
        """
        :param num_datapoints: of the global batch.
        :returns: the datapoint in every place of every group, of all processes, long (G, n) with n = ceil of their
            number over G, at least 1; -1 for padding. Groups differ by one datapoint at most, and may be empty.
        """
        least, more = divmod(num_datapoints, self.num_groups)
        sizes = torch.full((self.num_groups,), least)
        sizes[:more] += 1
        place = torch.arange(max(1, least + (more > 0)))
        return torch.where(place < sizes.unsqueeze(-1), (sizes.cumsum(0) - sizes).unsqueeze(-1) + place, -1)

    def cut(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """
        :param tensors: of the global batch, (datapoints, ...) each, the same in all processes.
        :returns: their parts in the groups of this process, (G / P, n, ...) with zeros in padding, and behind them the
            mask, bool (G / P, n).
        :raises ValueError: if there are no tensors, or they differ in their number of datapoints.
        """
        counts = [len(tensor) for tensor in tensors]
        if len(set(counts)) != 1:
            raise ValueError(f"tensors must have one number of datapoints, got {counts}")
        places = self.places(counts[0])[self.first : self.first + self.num_local]
        parts = []
        for tensor in tensors:
            part = tensor.new_zeros(*places.shape, *tensor.shape[1:])
            present = (places >= 0).to(tensor.device)
            part[present] = tensor[places[places >= 0].to(tensor.device)]
            parts.append(part)
        return (*parts, (places >= 0).to(tensors[0].device))

    def join(self, part: Tensor, num_datapoints: int) -> Tensor:
        """
        Collect what all processes have said of their datapoints. Without gradient; every process has to call it.

        :param part: (G / P, n, ...).
        :param num_datapoints: of the global batch.
        :returns: (datapoints, ...) in their order.
        """
        parts = self.gather(part)
        places = self.places(num_datapoints).to(part.device)
        out = part.new_empty(num_datapoints, *part.shape[2:])
        out[places[places >= 0]] = parts[places >= 0]
        return out

    @torch.no_grad()
    def gather(self, part: Tensor) -> Tensor:
        """
        :param part: (G / P, ...).
        :returns: (G, ...), without gradient. Every process has to call it.
        """
        if self.num_processes == 1:
            return part.detach()
        parts = [torch.empty_like(part) for _ in range(self.num_processes)]
        dist.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts)

    def keyed_draws(self, seed: int) -> KeyedDraws:
        """
        :returns: draws that are the same on any number of processes.
        :raises ValueError: in all processes, if they give different seeds.
        """
        if self._layout is None:
            return KeyedDraws(seed)
        agree(seed=seed)
        return KeyedDraws(seed, process=self._layout.position)
