"""Score matrices that break assignment solvers, each with its capacity."""

import torch


def _gumbel(*shape: int) -> torch.Tensor:
    uniform = torch.rand(*shape, dtype=torch.float64).clamp(min=1e-12)
    return torch.randn(*shape, dtype=torch.float64) - uniform.log().neg().log()


def _forbidden(n: int, k: int) -> torch.Tensor:
    scores = _gumbel(n, k)
    forbidden = torch.rand(n, k) < 0.4
    forbidden[torch.arange(n), torch.arange(n) % k] = False
    return scores.masked_fill(forbidden, -torch.inf)


def cases() -> dict[str, tuple[torch.Tensor, int]]:
    """Name -> (scores (n, k), capacity); the same ones on every call."""
    torch.manual_seed(0)
    hot = torch.tensor([300.0, 100.0] + [0.0] * 6, dtype=torch.float64)
    return {
        "tight": (_gumbel(96, 8), 12),
        "slack": (_gumbel(96, 8), 14),
        "loose": (_gumbel(96, 8), 96),
        "n not divisible by k": (_gumbel(101, 7), 15),
        "n < k": (_gumbel(5, 9), 1),
        "one datapoint": (_gumbel(1, 4), 3),
        "one expert": (_gumbel(6, 1), 6),
        "square": (_gumbel(40, 40), 1),
        "two experts": (_gumbel(60, 2), 30),
        "all equal": (torch.full((64, 8), 3.5, dtype=torch.float64), 8),
        "integer ties": (_gumbel(90, 6).round(), 15),
        "identical rows": (_gumbel(1, 8).expand(64, 8), 8),
        "clusters": (_gumbel(5, 8)[torch.arange(80) % 5], 10),
        "clusters, slack": (_gumbel(5, 8)[torch.arange(80) % 5], 11),
        "skew of hundreds": (_gumbel(96, 8) + hot, 12),
        "skew, slack": (_gumbel(96, 8) + hot, 13),
        "graded skew": (_gumbel(96, 8) + 50.0 * torch.arange(8), 12),
        "scale 300": (_gumbel(96, 8) * 300, 12),
        "scale 1e-6": (_gumbel(96, 8) * 1e-6, 12),
        "offset 1e6": (_gumbel(96, 8) + 1e6, 12),
        "row offsets": (_gumbel(96, 8) + 1e4 * torch.randn(96, 1, dtype=torch.float64), 12),
        "rank one": (torch.randn(96, 1, dtype=torch.float64) * torch.randn(8, dtype=torch.float64), 12),
        "forbidden pairs": (_forbidden(96, 8), 12),
        "forbidden pairs, slack": (_forbidden(96, 8), 14),
        "one allowed expert each": (torch.zeros(12, 4).double().masked_fill(_one_of(12, 4), -torch.inf), 3),
        "large": (_gumbel(512, 16), 32),
        "large, skewed": (10 * _gumbel(512, 16) + 30 * torch.randn(16, dtype=torch.float64), 32),
    }


def _one_of(n: int, k: int) -> torch.Tensor:
    return torch.arange(n).unsqueeze(-1) % k != torch.arange(k)
