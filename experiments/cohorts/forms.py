"""Which form of a batch effect mixes batches best? A small dense copy of the model, in variants.

    TOPICELL_DATA=FOLDER python experiments/cohorts/forms.py [--seeds 3]   # forms.csv

Start, schedule and sizes are those of topicell with one replicate. Effects have sum 0 over batches
and are point estimates. Cells are those of the part `two_studies` of batches.py.

Shapes: N cells, B cells of a mini-batch, S batches, K topics, G genes, H hidden units.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from batches import mixing, two_studies
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from topicell.evaluation.perplexity import thin
from topicell.model.batches import batch_shifts
from topicell.model.mixture import MIXTURE
from topicell.model.search import search_topics

H, BATCH, RATE, EPOCHS = 128, 128, 0.1, 8
Start = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Form:
    """A variant: `topic` is the prior's scale of the topic-specific share; 0 has none."""

    effect: bool = True
    prior: str = "normal"
    scale: float = 0.3
    topic: float = 0.0
    encoder: str = "corrected"
    estimated: bool = True
    """Effects start at a first estimate, and topics at a search without these effects."""


FORMS = {
    "no effect": Form(effect=False, encoder="counts", estimated=False),
    "shared": Form(),
    "shared, scale 1": Form(scale=1.0),
    "shared + topic 0.05": Form(topic=0.05),
    "shared + topic 0.1": Form(topic=0.1),
    "shared + topic 0.3": Form(topic=0.3),
    "Student t": Form(prior="student", scale=0.2),
    "horseshoe": Form(prior="horseshoe", scale=0.1),
    "horseshoe + topic 0.05": Form(prior="horseshoe", scale=0.1, topic=0.05),
    "encoder: counts": Form(encoder="counts"),
    "encoder: counts, one-hot": Form(encoder="counts, one-hot"),
    "encoder: counts, norm of each batch": Form(encoder="counts, norm"),
    "encoder: one-hot, no first estimate": Form(encoder="counts, one-hot", estimated=False),
}


def penalty(effect: Tensor, prior: str, scale: float) -> Tensor:
    """Return minus the log-density of an effect.

    The horseshoe's has no closed form: it is log(1 + 2 / z²) but for constants (Carvalho, Polson &
    Scott 2010), here without its pole at 0.
    """
    z = effect / scale
    if prior == "student":  # 3 degrees of freedom
        return 2 * torch.log1p(z.square() / 3).sum()
    if prior == "horseshoe":
        return -torch.log(torch.log1p(2 / (z.square() + 0.01))).sum()
    return z.square().sum() / 2


def kl(mean: Tensor, scale: Tensor, prior: float) -> Tensor:
    """Return the divergence of Normal(mean, scale) from Normal(0, prior)."""
    return (np.log(prior) - scale.log() + (scale**2 + mean**2) / (2 * prior**2) - 0.5).sum()


def standard(x_BH: Tensor, group_B: Tensor) -> Tensor:
    """Return values less the mean of their group, divided by its standard deviation."""
    member_BS = one_hot(group_B).float()
    n_S1 = member_BS.sum(0)[:, None].clamp_min(1)
    centred_BH = x_BH - (member_BS.T @ x_BH / n_S1)[group_B]
    return centred_BH / (member_BS.T @ centred_BH.square() / n_S1 + 1e-5).sqrt()[group_B]


class Encoder(nn.Module):
    """Normal posterior of a cell's topic logits, from its counts.

    Statistics of batch norm are those of the cells that it is given.
    """

    def __init__(self, kind: str, shift_SG: Tensor, K: int, size: float) -> None:
        super().__init__()
        (S, G), self.kind, self.factor_SG, self.size = shift_SG.shape, kind, shift_SG.exp(), size
        self.prior = (K - 1) ** 0.5
        self.w_GH = nn.Parameter(torch.empty(G, H).uniform_(-(G**-0.5), G**-0.5))
        self.w_SH, self.bias_SH = (nn.Parameter(torch.zeros(S, H)) for _ in range(2))
        self.scale_SH, self.spread = nn.Parameter(torch.ones(S, H)), nn.Parameter(torch.zeros(1))
        self.mean, self.rho = nn.Linear(H, K, bias=False), nn.Linear(H, K)

    def forward(self, x_BG: Tensor, batch_B: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "corrected":
            x_BG = x_BG / self.factor_SG[batch_B]
        h_BH = torch.log1p(x_BG * (self.size / x_BG.sum(1, keepdim=True).clamp_min(1))) @ self.w_GH
        if "one-hot" in self.kind:
            h_BH = h_BH + self.w_SH[batch_B]
        one_B = torch.zeros_like(batch_B)
        own_B = batch_B if "norm" in self.kind else one_B
        h_BH = (standard(h_BH, own_B) * self.scale_SH[own_B] + self.bias_SH[own_B]).relu()
        mean_BK = standard(self.mean(h_BH), one_B)
        return self.prior * self.spread.exp() * mean_BK, softplus(self.rho(h_BH))


def start(x_NG: sp.csr_matrix, batch_N: np.ndarray, K: int, seed: int, estimated: bool) -> Start:
    """Return the first effects of batches, (S, G), and the first topic logits, (K, G)."""
    shift_SG = np.zeros((int(batch_N.max()) + 1, x_NG.shape[1]))
    if estimated:
        seeds = np.random.default_rng(seed)
        shift_SG = batch_shifts(x_NG, batch_N, len(shift_SG), K, 0.3, seeds)
    cleaned_NG = sp.csr_matrix(x_NG.multiply(np.exp(-shift_SG)[batch_N])).astype(np.float32)
    total_G = np.asarray(cleaned_NG.sum(0)).ravel() + 0.5
    seeds = np.random.default_rng(seed)
    topics_KG = np.log(search_topics(cleaned_NG, K, total_G / total_G.sum(), seeds)[0])
    return shift_SG, topics_KG - topics_KG.mean(1, keepdims=True)


def fit(
    x_NG: sp.csr_matrix, batch_N: np.ndarray, kept: np.ndarray, first: Start, form: Form, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the cells `kept`; return topic proportions of all, topics, (S, K, G), and the loss.

    The loss is that of the last epoch, in nats per cell.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    data_NG, batch = torch.tensor(x_NG.toarray()), torch.tensor(batch_N).long()
    raw_SG, mean_KG = (nn.Parameter(torch.tensor(value, dtype=torch.float32)) for value in first)
    N, G, S, K = len(kept), x_NG.shape[1], len(raw_SG), len(mean_KG)
    own_SKG, rho_KG = (nn.Parameter(v) for v in (torch.zeros(S, K, G), torch.full((K, G), -3.0)))
    encoder = Encoder(form.encoder, raw_SG.detach().clone(), K, float(np.median(x_NG.sum(1).A1)))
    parameters = [mean_KG, rho_KG, *encoder.parameters()]
    parameters += [raw_SG] * form.effect + [own_SKG] * (form.topic > 0)
    n_parts = -(-N // BATCH)
    n_steps = EPOCHS * n_parts
    adam = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=n_steps, pct_start=0.2)
    losses: list[float] = []
    for step in range(n_steps):
        if step % n_parts == 0:
            parts = np.array_split(rng.permutation(kept), n_parts)
        rows = parts[step % n_parts]
        x_BG, batch_B = data_NG[rows], batch[rows]
        m_BK, s_BK = encoder(x_BG, batch_B)
        theta_BK = (m_BK + s_BK * torch.randn_like(s_BK)).softmax(1)
        scale_KG = softplus(rho_KG)
        shared_SG = raw_SG - raw_SG.mean(0)
        prior = penalty(shared_SG, form.prior, form.scale) if form.effect else torch.zeros(())
        logit_SKG = mean_KG + scale_KG * torch.randn_like(scale_KG) + shared_SG[:, None]
        if form.topic:
            special_SKG = own_SKG - own_SKG.mean(0)
            special_SKG = special_SKG - special_SKG.mean(1, keepdim=True)
            prior = prior + penalty(special_SKG, form.prior, form.topic)
            logit_SKG = logit_SKG + special_SKG
        theta_BSK = one_hot(batch_B, S).float()[:, :, None] * theta_BK[:, None]
        p_BG = theta_BSK.flatten(1) @ logit_SKG.softmax(-1).flatten(0, 1)
        of_cells = kl(m_BK, s_BK, encoder.prior) * (N / len(rows))
        of_topics = kl(mean_KG, scale_KG, (K * (1 - 1 / G)) ** 0.5) + prior
        likelihood = (x_BG * torch.log(p_BG + 1e-28)).sum() * (N / len(rows))
        weight = min(1.0, max(1e-3, step / (0.25 * n_steps)))
        loss = (weight * (of_cells + of_topics) - likelihood) / N
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        losses.append(float(loss))
    with torch.no_grad():
        m_NK, s_NK = encoder(data_NG, batch)
        theta_NK = sum((m_NK + s_NK * torch.randn_like(s_NK)).softmax(1) for _ in range(64)) / 64
        logit_SKG = mean_KG + (raw_SG - raw_SG.mean(0))[:, None] * form.effect
        if form.topic:
            special_SKG = own_SKG - own_SKG.mean(0)
            logit_SKG = logit_SKG + special_SKG - special_SKG.mean(1, keepdim=True)
    topics_SKG = logit_SKG.softmax(-1).numpy().astype(float)
    return theta_NK.numpy(), topics_SKG, float(np.mean(losses[-n_parts:]))


def held_out(x_NG: sp.csr_matrix, batch_N: np.ndarray, topics_SKG: np.ndarray) -> float:
    """Return the perplexity of one half of the counts of cells, predicted from the other."""
    observed, completed = thin(x_NG, 0)
    likelihood = 0.0
    for s, topics_KG in enumerate(topics_SKG):
        own = batch_N == s
        theta_NK = MIXTURE.fold_in(observed[own], topics_KG)
        perplexity = MIXTURE.perplexity(completed[own], theta_NK, topics_KG)
        likelihood += completed[own].sum() * np.log(perplexity)
    return float(np.exp(likelihood / completed.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", default="", help="part of the names of forms; replaces their rows"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "forms.csv")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = two_studies()
    x_NG = sp.csr_matrix(cells.layers["counts"]).astype(np.float32)
    batch_N = pd.Categorical(cells.obs["batch"]).codes.astype(int)
    obs = cells.obs[["batch", "label"]].astype(str)
    rows = []
    for seed in range(asked.seeds):
        order = np.random.default_rng(seed).permutation(len(batch_N))
        valid, kept = np.split(order, [len(order) // 10])
        first = {e: start(x_NG[kept], batch_N[kept], 10, seed, e) for e in (False, True)}
        for name, form in FORMS.items():
            began = time.perf_counter()
            theta_NK, topics_SKG, loss = fit(x_NG, batch_N, kept, first[form.estimated], form, seed)
            row = {"form": name, "seed": seed, "loss": loss, "seconds": time.perf_counter() - began}
            row["perplexity"] = held_out(x_NG[valid], batch_N[valid], topics_SKG)
            found = mixing(np.sqrt(theta_NK), theta_NK.argmax(1), obs, scib=False)
            rows.append(row | found)
            print(" · ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    pd.DataFrame(rows).to_csv(asked.output, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
