r"""The ELBO of `program` in plain tensor operations: the fast path.

Value and gradients are those of Pyro's on the same noise; `program` is the definition, and a test
holds the two together. What makes it fast: the costly pieces have hand-written gradients, work is
proportional to the non-zero counts where that wins, replicates share the gathered cells and the
small operations, and nothing here waits for the device.

Shapes as in `program`: R replicates, B cells of a mini-batch, G genes, K topics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from topicell.model.minibatches import Batch, DenseBatch, SparseBatch
from topicell.model.program import LEAST_PROPORTION, TopicProgram


class Terms(NamedTuple):
    """What a mini-batch gives, each of shape (R,), in nats, without gradients.

    ``loss`` is minus the annealed ELBO of all cells that the mini-batch stands for. The others
    have KL weight 1: ``reconstruction`` and ``kl_cells`` are sums over the cells of the
    mini-batch, ``kl_topics`` is the whole term.
    """

    loss: Tensor
    reconstruction: Tensor
    kl_cells: Tensor
    kl_topics: Tensor


def negative_elbo(
    program: TopicProgram,
    batch: Batch,
    n_cells: int,
    kl_weight: Tensor | float = 1.0,
    *,
    bfloat16: bool = False,
) -> tuple[Tensor, Terms]:
    """Minus the annealed ELBO of a mini-batch that stands for `n_cells` cells, in nats.

    Parameters
    ----------
    program
        The parameters.
    batch
        B cells.
    n_cells
        N: the cells' terms count N/B times.
    kl_weight
        Weight of both KL terms.
    bfloat16
        Compute the encoder's products in bfloat16 (on CUDA).

    Returns
    -------
    The loss, summed over replicates, and the terms.
    """
    B = batch.n_cells
    # Drawn in the order and the shapes of Pyro's guide.
    topic_noise = torch.randn_like(program.topic_mean)
    beta_RKG, kl_topics_RK = logistic_normal(
        program.topic_mean,
        program.topic_rho,
        topic_noise,
        program.topic_prior_mean,
        program.topic_prior_scale,
    )
    m_RBK, rho_RBK = encode(program, batch, bfloat16=bfloat16)
    cell_noise = torch.randn_like(m_RBK, memory_format=torch.contiguous_format)
    theta_RBK, kl_cells_RB = logistic_normal(
        m_RBK, rho_RBK, cell_noise, program.cell_prior_mean, program.cell_prior_scale
    )
    reconstruction_R = log_likelihood(batch, theta_RBK, beta_RKG).sum(1)
    kl_cells_R, kl_topics_R = kl_cells_RB.sum(1), kl_topics_RK.sum(1)
    per_cell_R = kl_weight * kl_cells_R - reconstruction_R
    loss_R = per_cell_R * (n_cells / B) + kl_weight * kl_topics_R
    terms = (loss_R, reconstruction_R, kl_cells_R, kl_topics_R)
    return loss_R.sum(), Terms(*(term.detach() for term in terms))


def encode(program: TopicProgram, batch: Batch, *, bfloat16: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and unconstrained scale of the topic logits, each of shape (R, B, K)."""
    encoder = program.encoder
    first = encoder.layers[0]
    if isinstance(batch, SparseBatch):
        return encoder.heads(_SparseProduct.apply(batch, first.weight))
    with torch.autocast(batch.counts.device.type, torch.bfloat16, enabled=bfloat16):
        m_RBK, rho_RBK = encoder.heads(first(encoder.inputs(batch.counts)))
    return m_RBK.to(batch.counts.dtype), rho_RBK.to(batch.counts.dtype)


def logistic_normal(
    mean: Tensor, rho: Tensor, noise: Tensor, prior_mean: Tensor, prior_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """A draw of softmax(Normal(mean, softplus(rho))) and the KL of that Normal from the prior.

    Parameters
    ----------
    mean, rho, noise
        Shape (..., n); the noise is standard normal.
    prior_mean, prior_scale
        Shape (n,).

    Returns
    -------
    The draw on the simplex, shape (..., n), and the divergence in nats, shape (...).
    """
    draw, divergence = _LogisticNormal.apply(mean, rho, noise, prior_mean, prior_scale)
    return draw, divergence


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis; over a short one it is many times faster as a leading axis."""
    if logits.shape[-1] < 64:
        return logits.mT.contiguous().softmax(-2).mT
    return logits.softmax(-1)


def log_likelihood(batch: Batch, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
    """Nats of each cell's bag of words under each replicate, shape (R, B)."""
    if isinstance(batch, DenseBatch):
        result: Tensor = _DenseLikelihood.apply(batch.counts, theta_RBK, beta_RKG)
    else:
        result = _SparseLikelihood.apply(batch, theta_RBK, beta_RKG)
    return result


class _LogisticNormal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, rho: Tensor, noise: Tensor, *prior: Tensor) -> Any:
        prior_mean, prior_scale = prior
        scale = softplus(rho)
        draw = softmax(torch.addcmul(mean, scale, noise))
        distance, ratio = (mean - prior_mean) / prior_scale, scale / prior_scale
        twice = distance.square().addcmul_(ratio, ratio).sub_(ratio.log(), alpha=2)
        divergence = 0.5 * (twice.sum(-1) - mean.shape[-1])
        ctx.save_for_backward(draw, rho, noise, distance, ratio, prior_scale)
        return draw, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_draw: Tensor, d_divergence: Tensor) -> Any:
        draw, rho, noise, distance, ratio, prior_scale = ctx.saved_tensors
        d_logit = draw * d_draw
        d_logit = torch.addcmul(d_logit, draw, d_logit.sum(-1, keepdim=True), value=-1)
        weight = d_divergence.unsqueeze(-1) / prior_scale
        d_scale = torch.addcmul(d_logit * noise, weight, ratio - 1 / ratio)
        # The derivative of softplus is the logistic function.
        return torch.addcmul(d_logit, weight, distance), d_scale * rho.sigmoid(), None, None, None


class _SparseProduct(torch.autograd.Function):
    """The encoder's inputs (B, G) times the weights of each replicate (R, G, H): (R, B, H)."""

    @staticmethod
    def forward(ctx: Any, batch: SparseBatch, weight_RGH: Tensor) -> Tensor:
        ctx.batch = batch
        return _products(batch.by_cell.with_values(batch.inputs), weight_RGH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RBH: Tensor) -> Any:
        batch: SparseBatch = ctx.batch
        return None, _products(batch.by_gene.with_values(batch.inputs_by_gene), d_RBH)


def _products(matrix: Tensor, values_Rnm: Tensor) -> Tensor:
    """A sparse matrix times each of R dense ones."""
    R, _, m = values_Rnm.shape
    result = values_Rnm.new_empty(R, len(matrix), m)
    for values, out in zip(values_Rnm, result, strict=True):
        multiply(matrix, values, out)
    return result


def multiply(matrix: Tensor, values: Tensor, out: Tensor) -> None:
    """A sparse matrix times a dense one, written to `out`."""
    # torch.mm would fill and copy another matrix on its way to `out`.
    torch.addmm(out, matrix, values, beta=0, out=out)


class _DenseLikelihood(torch.autograd.Function):
    """Σ_g x log(θβ), whose derivative by θβ is x / θβ."""

    @staticmethod
    def forward(ctx: Any, x_BG: Tensor, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
        probability = (theta_RBK @ beta_RKG).add_(LEAST_PROPORTION)
        ctx.save_for_backward(x_BG / probability, theta_RBK, beta_RKG)
        return probability.log_().mul_(x_BG).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RB: Tensor) -> Any:
        ratio_RBG, theta_RBK, beta_RKG = ctx.saved_tensors
        # A cell's weight goes to the small factor, not to cells × genes.
        return (
            None,
            (ratio_RBG @ beta_RKG.mT) * d_RB.unsqueeze(-1),
            (theta_RBK * d_RB.unsqueeze(-1)).mT @ ratio_RBG,
        )


class _SparseLikelihood(torch.autograd.Function):
    """The same at the non-zeros alone: a gene without counts adds nothing."""

    @staticmethod
    def forward(ctx: Any, batch: SparseBatch, theta_RBK: Tensor, beta_RKG: Tensor) -> Tensor:
        pattern = batch.by_cell.with_values(batch.counts)
        probability_Rn = torch.stack(
            [
                torch.sparse.sampled_addmm(pattern, theta_BK, beta_KG, beta=0.0).values()
                for theta_BK, beta_KG in zip(theta_RBK, beta_RKG, strict=True)
            ]
        ).add_(LEAST_PROPORTION)
        ctx.batch = batch
        ctx.save_for_backward(theta_RBK, beta_RKG, batch.counts / probability_Rn)
        nats_Rn = probability_Rn.log_().mul_(batch.counts)
        starts = batch.by_cell.starts.long().expand(len(nats_Rn), -1).contiguous()
        return torch.segment_reduce(nats_Rn, "sum", offsets=starts, axis=1, unsafe=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_RB: Tensor) -> Any:
        batch: SparseBatch = ctx.batch
        theta_RBK, beta_RKG, ratio_Rn = ctx.saved_tensors
        d_RB1 = d_RB.unsqueeze(-1)
        weighted_RBK, beta_RGK = (theta_RBK * d_RB1).contiguous(), beta_RKG.mT.contiguous()
        d_theta, d_beta = torch.empty_like(weighted_RBK), torch.empty_like(beta_RGK)
        for r, ratio in enumerate(ratio_Rn):
            by_gene = ratio.index_select(0, batch.order)
            multiply(batch.by_cell.with_values(ratio), beta_RGK[r], d_theta[r])
            multiply(batch.by_gene.with_values(by_gene), weighted_RBK[r], d_beta[r])
        return None, d_theta * d_RB1, d_beta.mT
