"""Compare how much of the amortization gap refinement and a long stochastic optimisation find.

    python experiments/measures/refinement.py

On the cells of `pbmc_facs` (1,000 genes, the defaults, one replicate): seconds and mean gap of
refinement, and of Adam from the encoder's posterior with equally many and with many more draws, all
evaluated on the same 256 draws of topics and logits.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor
from torch.nn.functional import softplus

import topicell
from topicell.model.estimates import Chunks, encoded, mean_beta
from topicell.model.minibatches import Batch
from topicell.model.mixture import log_likelihood
from topicell.model.priors import logistic_normal
from topicell.model.program import TopicProgram
from topicell.model.refinement import cell_elbo, quasi_normal, refine

ADAM = [(100, 2, 0.1), (400, 2, 0.1), (2000, 4, 0.1)]
"""Steps, draws per step, learning rate."""
JUDGES = 256


def main() -> None:
    torch.set_num_threads(1)
    adata = topicell.preprocess(topicell.load_dataset("pbmc_facs"))
    fit = topicell.fit(adata, n_topics=10, n_replicates=1, progress=False)
    program, batches = fit.program, list(Chunks(fit.program, fit.cells))
    prior = (program.cell_prior, program.likelihood)
    beta_RKG = torch.from_numpy(mean_beta(program, n_samples=64, seed=0))

    def judged(posteriors: list[tuple[Tensor, Tensor]]) -> Tensor:
        noise_SK = quasi_normal(JUDGES, 10, 7, beta_RKG)
        return torch.cat(
            [
                cell_elbo(batch, m, s, *prior, noise_SK, draws(program))[0]
                for batch, (m, s) in zip(batches, posteriors, strict=True)
            ]
        )

    with torch.no_grad():
        before_N = judged([encoded(program, batch) for batch in batches])

    def show(name: str, posteriors: list[tuple[Tensor, Tensor]], seconds: float) -> None:
        gap_N = judged(posteriors) - before_N
        print(
            f"{name:<34}{seconds:8.2f} s   gap {gap_N.mean():.3f} nats per cell, "
            f"{int((gap_N < 0).sum())} of {len(gap_N)} cells worse than before",
            flush=True,
        )

    for seed in range(3):
        started = time.perf_counter()
        posteriors = [
            tuple(part[None] for part in refine(batch, beta_RKG[0], *prior, seed=seed))
            for batch in batches
        ]
        show(f"refinement, seed {seed}", posteriors, time.perf_counter() - started)
    for n_steps, n_draws, rate in ADAM:
        started = time.perf_counter()
        posteriors = [adam(program, batch, beta_RKG, n_steps, n_draws, rate) for batch in batches]
        name = f"Adam, {n_steps} steps of {n_draws} draws, rate {rate}"
        show(name, posteriors, time.perf_counter() - started)


def draws(program: TopicProgram):
    generator = torch.Generator().manual_seed(7)
    mean_RKG, scale_RKG = (part.detach() for part in program.topic_posterior())
    for _ in range(JUDGES):
        noise_KG = torch.randn(mean_RKG.shape[1:], generator=generator)
        yield (mean_RKG + scale_RKG * noise_KG).softmax(-1)


def adam(
    program: TopicProgram,
    batch: Batch,
    beta_RKG: Tensor,
    n_steps: int,
    n_draws: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Optimise the same objective by reparametrised gradients; the learning rate falls to 0."""
    with torch.no_grad():
        mean, scale = encoded(program, batch)
    mean = mean.contiguous().requires_grad_()
    rho = scale.expm1().log().contiguous().requires_grad_()
    optimizer = torch.optim.Adam([mean, rho], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    noise = quasi_normal(n_steps * n_draws, mean.shape[-1], 0, beta_RKG)
    for some in noise.split(n_draws):
        loss = torch.zeros(())
        for noise_K in some:
            theta, kl = logistic_normal(
                *(mean, rho, noise_K.expand_as(mean)),
                program.cell_prior,
            )
            loss = loss - (log_likelihood(batch, theta, beta_RKG) - kl).sum() / n_draws
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return mean.detach(), softplus(rho).detach()


if __name__ == "__main__":
    main()
