"""Which form of a batch effect mixes batches best? A small dense copy of the model, many variants.

    TOPICELL_DATA=FOLDER python experiments/cohorts/forms.py [--only NAME] [--seeds 3]   # forms.csv

The model, its schedule and its start are those of topicell with one replicate; only this file's
variants of the effect, of its prior and of the encoder differ. In all, the effect has sum 0 over
batches and is a point estimate. Cells are those of `batches.py`, part `two_studies`.

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

from topicell.model.batches import batch_shifts
from topicell.model.search import search_topics

HERE = Path(__file__).parent
H, BATCH, RATE, EPOCHS = 128, 128, 0.1, 8


@dataclass(frozen=True)
class Form:
    """A variant. Scales are those of priors; `topic` is that of the topic-specific share."""

    effect: bool = True
    prior: str = "normal"
    scale: float = 0.3
    topic: float = 0.0
    encoder: str = "corrected"
    start: bool = True
    """Whether the effect starts at the first estimate, and topics at a search of what is left."""


FORMS = {
    "no effect": Form(effect=False, encoder="plain", start=False),
    "shared": Form(),
    "shared, scale 0.1": Form(scale=0.1),
    "shared, scale 1": Form(scale=1.0),
    "shared + topic 0.05": Form(topic=0.05),
    "shared + topic 0.1": Form(topic=0.1),
    "shared + topic 0.3": Form(topic=0.3),
    "Student t": Form(prior="student", scale=0.2),
    "Student t + topic 0.1": Form(prior="student", scale=0.2, topic=0.1),
    "horseshoe": Form(prior="horseshoe", scale=0.1),
    "horseshoe + topic 0.05": Form(prior="horseshoe", scale=0.1, topic=0.05),
    "encoder: counts, no batch": Form(encoder="plain"),
    "encoder: counts and one-hot": Form(encoder="one-hot"),
    "encoder: corrected and one-hot": Form(encoder="corrected one-hot"),
    "encoder: norm of each batch": Form(encoder="plain norm"),
    "encoder: corrected, norm of each batch": Form(encoder="corrected norm"),
    "encoder: one-hot, no first estimate": Form(encoder="one-hot", start=False),
}


def penalty(effect: Tensor, prior: str, scale: float) -> Tensor:
    """Return minus the log-density of an effect; the horseshoe's by its usual approximation.

    The density of the horseshoe has no closed form; log(1 + 2 / z²) is its tight lower bound
    (Carvalho, Polson & Scott 2010). It has a pole at 0, which 0.01 removes.
    """
    z = effect / scale
    if prior == "student":  # 3 degrees of freedom
        return 2 * torch.log1p(z.square() / 3).sum()
    if prior == "horseshoe":
        return -torch.log(torch.log1p(2 / (z.square() + 0.01))).sum()
    return z.square().sum() / 2


def laplace(n: int, K: int) -> tuple[float, float]:
    """Return mean and scale of n logits that approximate Dirichlet(1 / K)."""
    return 0.0, float(np.sqrt(K * (1 - 1 / n)))


class Norm(nn.Module):
    """Batch norm without scale and shift; if asked, with the statistics of each batch of cells."""

    def __init__(self, width: int, n_batches: int, *, own: bool) -> None:
        super().__init__()
        n = n_batches if own else 1
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for _ in range(n))

    def forward(self, x_BH: Tensor, batch_B: Tensor) -> Tensor:
        if len(self.norms) == 1:
            return self.norms[0](x_BH)
        out_BH = torch.zeros_like(x_BH)
        for s, norm in enumerate(self.norms):
            own = batch_B == s
            if own.sum() > 1 or not self.training:
                out_BH[own] = norm(x_BH[own])
        return out_BH


class Encoder(nn.Module):
    """Normal posterior of a cell's topic logits, from its counts."""

    def __init__(self, kind: str, shift_SG: Tensor, shape: tuple[int, int, int], size: float):
        super().__init__()
        S, K, G = shape
        self.kind, self.factor_SG, self.size = kind, shift_SG.exp(), size
        self.w_GH = nn.Parameter(torch.empty(G, H).uniform_(-(G**-0.5), G**-0.5))
        self.w_SH = nn.Parameter(torch.zeros(S, H))
        self.norm = Norm(H, S, own="norm" in kind)
        # Not zero: with batch norm, a scale and shift of each unit, for each batch if asked.
        n = S if "norm" in kind else 1
        self.scale_SH, self.bias_SH = (
            nn.Parameter(v) for v in (torch.ones(n, H), torch.zeros(n, H))
        )
        self.mean, self.rho = nn.Linear(H, K, bias=False), nn.Linear(H, K)
        self.mean_norm, self.spread = Norm(K, S, own=False), nn.Parameter(torch.zeros(1))
        self.prior = laplace(K, K)

    def forward(self, x_BG: Tensor, batch_B: Tensor) -> tuple[Tensor, Tensor]:
        if "corrected" in self.kind:
            x_BG = x_BG / self.factor_SG[batch_B]
        h_BH = torch.log1p(x_BG * (self.size / x_BG.sum(1, keepdim=True).clamp_min(1))) @ self.w_GH
        if "one-hot" in self.kind:
            h_BH = h_BH + self.w_SH[batch_B]
        own_B = batch_B if len(self.scale_SH) > 1 else torch.zeros_like(batch_B)
        h_BH = (self.norm(h_BH, batch_B) * self.scale_SH[own_B] + self.bias_SH[own_B]).relu()
        mean, scale = self.prior
        return mean + scale * self.spread.exp() * self.mean_norm(
            self.mean(h_BH), batch_B
        ), softplus(self.rho(h_BH))


def kl(mean: Tensor, scale: Tensor, prior: tuple[float, float]) -> Tensor:
    """Return the divergence of a normal posterior from a normal prior."""
    m, s = prior
    return (np.log(s) - scale.log() + (scale**2 + (mean - m) ** 2) / (2 * s**2) - 0.5).sum()


def start(
    x_NG: sp.csr_matrix, batch_N: np.ndarray, K: int, seed: int, *, estimated: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first effects of batches, (S, G), and the first topic logits, (K, G)."""
    S = int(batch_N.max()) + 1
    shift_SG = np.zeros((S, x_NG.shape[1]))
    if estimated:
        shift_SG = batch_shifts(x_NG, batch_N, S, K, 0.3, np.random.default_rng(seed))
    cleaned_NG = sp.csr_matrix(x_NG.multiply(np.exp(-shift_SG)[batch_N])).astype(np.float32)
    total_G = np.asarray(cleaned_NG.sum(0)).ravel() + 0.5
    seeds = np.random.default_rng(seed)
    topics_KG = np.log(search_topics(cleaned_NG, K, total_G / total_G.sum(), seeds)[0])
    return shift_SG, topics_KG - topics_KG.mean(1, keepdims=True)


def fit(
    x_NG: sp.csr_matrix,
    batch_N: np.ndarray,
    starts: tuple[np.ndarray, np.ndarray],
    form: Form,
    seed: int,
) -> tuple[np.ndarray, float]:
    """Return topic proportions, and minus the objective in nats per cell."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    (N, G), S = x_NG.shape, int(batch_N.max()) + 1
    shift_SG, start_KG = starts
    K = len(start_KG)
    data_NG, batch = torch.tensor(x_NG.toarray()), torch.tensor(batch_N).long()
    raw_SG = nn.Parameter(torch.tensor(shift_SG, dtype=torch.float32))
    own_SKG = nn.Parameter(torch.zeros(S, K, G))
    mean_KG = nn.Parameter(torch.tensor(start_KG).float())
    rho_KG = nn.Parameter(torch.full((K, G), -3.0))
    size = float(np.median(x_NG.sum(1)))
    encoder = Encoder(form.encoder, raw_SG.detach().clone(), (S, K, G), size)
    parameters = [mean_KG, rho_KG, *encoder.parameters()]
    parameters += [raw_SG] * form.effect + [own_SKG] * (form.topic > 0)
    steps_per_epoch = -(-N // BATCH)
    n_steps = EPOCHS * steps_per_epoch
    adam = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, RATE, total_steps=n_steps, pct_start=0.2)
    losses = []
    for step in range(n_steps):
        if step % steps_per_epoch == 0:
            parts = np.array_split(rng.permutation(N), steps_per_epoch)
        rows = parts[step % steps_per_epoch]
        weight = min(1.0, max(1e-3, step / (0.25 * n_steps)))
        x_BG, batch_B = data_NG[rows], batch[rows]
        m_BK, s_BK = encoder(x_BG, batch_B)
        theta_BK = (m_BK + s_BK * torch.randn_like(s_BK)).softmax(1)
        scale_KG = softplus(rho_KG)
        logit_KG = mean_KG + scale_KG * torch.randn_like(scale_KG)
        shared_SG = raw_SG - raw_SG.mean(0)
        prior = penalty(shared_SG, form.prior, form.scale) if form.effect else torch.zeros(())
        logit_SKG = logit_KG + shared_SG[:, None]
        if form.topic:
            # What all topics have in common is the shared effect.
            special_SKG = own_SKG - own_SKG.mean(0)
            special_SKG = special_SKG - special_SKG.mean(1, keepdim=True)
            prior = prior + penalty(special_SKG, form.prior, form.topic)
            logit_SKG = logit_SKG + special_SKG
        theta_BSK = one_hot(batch_B, S).float()[:, :, None] * theta_BK[:, None]
        p_BG = theta_BSK.flatten(1) @ logit_SKG.softmax(-1).flatten(0, 1)
        likelihood = (x_BG * torch.log(p_BG + 1e-28)).sum() * (N / len(rows))
        of_cells = kl(m_BK, s_BK, encoder.prior) * (N / len(rows))
        of_topics = kl(mean_KG, scale_KG, laplace(G, K)) + prior
        loss = (weight * (of_cells + of_topics) - likelihood) / N
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        losses.append(float(loss))
    encoder.eval()
    with torch.no_grad():
        m_NK, s_NK = encoder(data_NG, batch)
        theta_NK = sum((m_NK + s_NK * torch.randn_like(s_NK)).softmax(1) for _ in range(64)) / 64
    return theta_NK.numpy(), float(np.mean(losses[-steps_per_epoch:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--only", default="", help="part of the names of forms; replaces their rows"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "forms.csv")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = two_studies()
    x_NG = sp.csr_matrix(cells.layers["counts"]).astype(np.float32)
    batch_N = pd.Categorical(cells.obs["batch"]).codes.astype(int)
    obs = cells.obs[["batch", "label"]].astype(str)
    starts = {
        (seed, estimated): start(x_NG, batch_N, 10, seed, estimated=estimated)
        for seed in range(asked.seeds)
        for estimated in (False, True)
    }
    rows = []
    for name, form in FORMS.items():
        for seed in range(asked.seeds if asked.only in name else 0):
            began = time.perf_counter()
            theta_NK, loss = fit(x_NG, batch_N, starts[seed, form.start], form, seed)
            took = time.perf_counter() - began
            found = mixing(np.sqrt(theta_NK), theta_NK.argmax(1), obs, scib=False)
            rows.append({"form": name, "seed": seed, "loss": loss, "seconds": took, **found})
            print(
                f"{name} {seed}: same batch {found['same batch']:.3f}, separation within labels "
                f"{found['separation within labels']:.3f}, same label {found['same label']:.3f}, "
                f"loss {loss:.1f}, {took:.0f} s",
                flush=True,
            )
    table = pd.DataFrame(rows)
    if asked.only and asked.output.exists():
        before = pd.read_csv(asked.output)
        table = pd.concat([before[~before["form"].isin(table["form"])], table])
    table.to_csv(asked.output, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
