r"""The ELBO of `program` in plain tensor operations, which is fast.

Value and gradients equal those of Pyro on the same noise; `program` is the definition, and a test
compares the two. It is fast because the expensive parts have hand-written gradients, the work is
proportional to the non-zero counts if that is faster, replicates share the gathered cells and the
small operations, and nothing here waits for the device.

Shapes as in `program`: R replicates, B cells of a mini-batch, G genes, K topics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from topicell.model.minibatches import Batch, SparseBatch
from topicell.model.mixture import products
from topicell.model.program import TopicProgram
from topicell.model.ranks import Share


class Terms(NamedTuple):
    """Terms of a mini-batch, each of shape (R,), in nats, without gradients.

    ``loss`` is minus the annealed ELBO of all cells that the mini-batch represents. The others have
    KL weight 1: ``reconstruction`` and ``kl_cells`` are sums over the cells of the mini-batch,
    ``kl_topics`` is the whole term, with the penalty of the shifts of batches.
    """

    loss: Tensor
    reconstruction: Tensor
    kl_cells: Tensor
    kl_topics: Tensor


def noise(like: Tensor, share: Share | None, n_cells: int | None = None) -> Tensor:
    """Return standard normal noise for a tensor whose first axis is replicates.

    A process draws the noise of all replicates, and of all `n_cells` cells of a mini-batch (the
    second axis), and uses its own, so that all processes together have the noise of a single one.
    """
    if share is None or (len(share.mine) == share.n_replicates and share.n_shards == 1):
        return torch.randn_like(like, memory_format=torch.contiguous_format)
    n_second = like.shape[1] if n_cells is None else n_cells
    shape = (share.n_replicates, n_second, *like.shape[2:])
    drawn = torch.randn(shape, device=like.device, dtype=like.dtype)
    drawn = drawn[share.mine[0] : share.mine[-1] + 1]
    return drawn if n_cells is None else drawn[:, share.shard :: share.n_shards].contiguous()


def negative_elbo(
    program: TopicProgram,
    batch: Batch,
    n_cells: int,
    kl_weight: Tensor | float = 1.0,
    *,
    bfloat16: bool = False,
    share: Share | None = None,
    n_batch: int | None = None,
) -> tuple[Tensor, Terms]:
    """Return minus the annealed ELBO of a mini-batch that represents `n_cells` cells, in nats.

    Parameters
    ----------
    program
        The parameters.
    batch
        B cells.
    n_cells
        N: the terms of the cells are multiplied by N/B.
    kl_weight
        Weight of both KL terms.
    bfloat16
        Compute the encoder's products in bfloat16 (on CUDA).
    share
        The replicates of `program`, and the cells of `batch`, among those of all processes.
    n_batch
        Number of cells of the mini-batch of all processes.

    Returns
    -------
    The loss, summed over replicates, and the terms.
    """
    B = batch.n_cells
    # Drawn in the same order and shapes as in Pyro's guide.
    topic_noise = noise(program.topic_mean, share)
    topics_RKG, kl_topics_RK = program.likelihood.draw(
        program.topic_mean, program.topic_rho, topic_noise, program.topic_prior
    )
    m_RBK, rho_RBK = encode(program, batch, bfloat16=bfloat16)
    cell_noise = noise(m_RBK, share, n_batch or B)
    theta_RBK, kl_cells_RB = program.cell_prior.draw(m_RBK, rho_RBK, cell_noise, batch.design)
    nats_RB = program.likelihood.log_likelihood(batch, theta_RBK, topics_RKG, program.shifts())
    reconstruction_R, kl_cells_R = nats_RB.sum(1), kl_cells_RB.sum(1)
    kl_topics_R = kl_topics_RK.sum(1) + program.penalty()
    per_cell_R = kl_weight * kl_cells_R - reconstruction_R
    loss_R = per_cell_R * (n_cells / B) + kl_weight * kl_topics_R
    terms = (loss_R, reconstruction_R, kl_cells_R, kl_topics_R)
    return loss_R.sum(), Terms(*(term.detach() for term in terms))


def encode(program: TopicProgram, batch: Batch, *, bfloat16: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and unconstrained scale of the topic logits, each of shape (R, B, K)."""
    encoder = program.encoder
    first = encoder.layers[0]
    if isinstance(batch, SparseBatch):
        return encoder.heads(_SparseProduct.apply(batch, first.weight))
    inputs_BG = encoder.inputs(batch.counts, batch.one_hot)
    with torch.autocast(batch.counts.device.type, torch.bfloat16, enabled=bfloat16):
        m_RBK, rho_RBK = encoder.heads(first(inputs_BG))
    return m_RBK.to(batch.counts.dtype), rho_RBK.to(batch.counts.dtype)


class _SparseProduct(torch.autograd.Function):
    """The encoder's inputs (B, G) times the weights of each replicate (R, G, H): (R, B, H)."""

    @staticmethod
    def forward(ctx: Any, batch: SparseBatch, weight_RGH: Tensor) -> Tensor:
        ctx.batch = batch
        return products(batch.by_cell.with_values(batch.inputs), weight_RGH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RBH: Tensor) -> Any:
        batch: SparseBatch = ctx.batch
        return None, products(batch.by_gene.with_values(batch.inputs_by_gene), d_RBH)
