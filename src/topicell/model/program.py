r"""Amortized latent Dirichlet allocation as a Pyro program: the definition of the model.

Shapes: R replicates, N cells, B cells of a mini-batch, G genes, K topics, H hidden units.
The first axis of every parameter is R: replicates are independent fits of one model, trained on the
same mini-batches. The loss is the sum of their losses, so the gradient of a replicate does not
depend on the others.

Generative model. For each topic :math:`\beta_k = \mathrm{softmax}(b_k)` with :math:`b_k \sim
\mathrm{Normal}(\mu_\eta, \sigma_\eta)` over genes; for each cell :math:`\theta_c =
\mathrm{softmax}(t_c)` with :math:`t_c \sim \mathrm{Normal}(\mu_\alpha, \sigma_\alpha)` over topics;
and :math:`\log p(x_c \mid \theta_c, \beta) = \sum_g x_{cg} \log (\theta_c \beta)_g`, without the
multinomial coefficient, here and in all derived numbers.

With batches, a cell of batch s has the topics of the logits :math:`b_k + d_s`. The shifts d sum to
0 over batches, so that :math:`b_k` is the topic without batch. They are point estimates with the
prior Normal(0, ``batch_scale``); cells of no known batch have no shift. With
``batch_topic_scale``, the shifts of topics differ. The prior of a cell's
logits can have a mean that is linear in covariates, and a full covariance
(`topicell.model.priors.LearnedPrior`); the encoder does not see the covariates.

References
----------
Blei, Ng & Jordan (2003), Latent Dirichlet allocation; Srivastava & Sutton (2017),
Autoencoding variational inference for topic models, arXiv:1703.01488.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
import pyro
import scipy.sparse as sp
import torch
from pyro import poutine
from pyro.distributions import Laplace, MultivariateNormal, Normal, TorchDistribution
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import constraints, kl_divergence
from torch.nn.functional import dropout, relu, softplus

from topicell.config import ModelConfig, PriorKind
from topicell.counts import Counts
from topicell.model.minibatches import Batch, Given
from topicell.model.mixture import MIXTURE
from topicell.model.priors import CellPrior, LaplacePrior, LearnedPrior, NormalPrior, TopicPrior
from topicell.model.ranks import Shards
from topicell.model.seeds import Seeds

INITIAL_TOPIC_SCALE = -3.0
"""Initial ρ: softplus(−3) ≈ 0.05, so the posterior of β is narrow from the first step on."""


FARTHEST = 32.0
"""Bound of a posterior mean's distance from the prior's, and of ρ, in standard deviations of the
prior."""
LOWEST_RHO = -40.0
"""Lower bound of ρ: s ≈ 4e-18, which is practically 0, but its square can still be represented
in single precision. Without the bound, one step of Adam can change ρ of a cell that differs much
from the others by 50; then s underflows to 0 and the KL is infinite."""


MOMENTUM, EPSILON = 0.1, 1e-5
"""Weight of a mini-batch in the running statistics of batch norm, and what is added to a variance:
torch's defaults."""


@dataclass(frozen=True, slots=True)
class Constants:
    """Values of a program that the data determine before training.

    Attributes
    ----------
    batches
        Names of the batches.
    batch_shift_SG
        First estimate of the shift of each batch (`topicell.model.batches`). The encoder reads
        counts from which it is removed.
    covariates
        Names of the D covariates of the prior of cells.
    background_G
        Logarithms of the gene frequencies of all cells, if topics are deviations from them.
    seeds
        Prior knowledge of the first topics, if there is any.
    """

    batches: tuple[str, ...] = ()
    batch_shift_SG: np.ndarray | None = None
    covariates: tuple[str, ...] = ()
    background_G: np.ndarray | None = None
    seeds: Seeds | None = None


def topic_prior(config: ModelConfig, constants: Constants, n_genes: int) -> TopicPrior:
    """Return the prior of the topic logits: (G,), or (K, G) with prior knowledge."""
    K, given = config.n_topics, config.topic_gene_prior
    base = NormalPrior.dirichlet(None if isinstance(given, str) else given, n_genes, K)
    mean_KG, scale_KG = base.mean, base.scale
    if constants.background_G is not None:
        mean_KG = torch.from_numpy(constants.background_G).to(mean_KG)
        scale_KG = torch.full_like(mean_KG, config.background_scale)
    if constants.seeds is not None:
        J = len(constants.seeds.names)
        logit_JG = torch.from_numpy(constants.seeds.logit_JG).to(mean_KG)
        known_JG = torch.from_numpy(constants.seeds.known_JG)
        mean_KG, scale_KG = mean_KG.repeat(K, 1), scale_KG.repeat(K, 1)
        mean_KG[:J] = logit_JG - logit_JG.mean(1, keepdim=True) + mean_KG[:J].mean(1, keepdim=True)
        scale_KG[:J] = torch.where(known_JG, config.prior_scale, scale_KG[:J])
    return (LaplacePrior if config.background else NormalPrior)(mean_KG, scale_KG)


class Slopes(Protocol):
    """Derivatives of the log-likelihood f of B cells by their topic logits t, θ = softmax(t)."""

    def mode(self) -> Tensor:
        """Return an initial θ of each cell, shape (B, K)."""
        ...

    def both(self, theta_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∂f/∂t_k and −∂²f/∂t_k², each of shape (B, K)."""
        ...


class Likelihood(Protocol):
    """The distribution of the counts of a cell, for given topics and topic proportions.

    `topics` maps the topic logits b to the form that the likelihood uses; `Mixture` documents what
    each method returns.
    """

    def topics(self, b: Tensor) -> Tensor:
        """Return the topics of logits."""
        ...

    def draw(
        self, mean: Tensor, rho: Tensor, noise: Tensor, prior: TopicPrior
    ) -> tuple[Tensor, Tensor]:
        """Return drawn topics and the KL divergence of q(b)."""
        ...

    def log_proportions(self, theta: Tensor, topics: Tensor) -> Tensor:
        """Return log-proportions of genes in cells."""
        ...

    def log_likelihood(
        self,
        batch: Batch,
        theta_RBK: Tensor,
        topics_RKG: Tensor,
        shift_RSG: Tensor | None = None,
    ) -> Tensor:
        """Return the log-likelihood of each cell, in nats."""
        ...

    def slopes(self, batch: Batch, topics_KG: Tensor) -> Slopes:
        """Return derivatives of the log-likelihood."""
        ...

    def mean_topics(self, mean: Tensor, scale: Tensor, *, n_samples: int, seed: int) -> Tensor:
        """Return the topics that represent a posterior of b."""
        ...

    def in_batch(self, topics_KG: np.ndarray, shift_G: np.ndarray) -> np.ndarray:
        """Return topics in a batch with a shift of their logits."""
        ...

    def fold_in(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return topic proportions of new cells."""
        ...

    def perplexity(self, x_NG: sp.csr_matrix, theta_NK: np.ndarray, topics_KG: np.ndarray) -> float:
        """Return the perplexity per count."""
        ...

    def impossible(self, x_NG: sp.csr_matrix, topics_KG: np.ndarray) -> np.ndarray:
        """Return which cells have a count of probability 0."""
        ...


class BagOfWords(TorchDistribution):  # type: ignore[misc]  # pyro is untyped
    """Counts given the log-proportions of genes, without the multinomial coefficient.

    Parameters
    ----------
    log_proportions
        Shape (..., G).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"log_proportions": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative, 1)

    def __init__(self, log_proportions: Tensor, validate_args: bool | None = None) -> None:
        self.log_proportions = log_proportions
        super().__init__(log_proportions.shape[:-1], log_proportions.shape[-1:], validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each cell, in nats, shape (...)."""
        return (value * self.log_proportions).sum(-1)


class ReplicateLinear(nn.Module):
    """R linear layers: from (R, B, in), or a shared (B, in), to (R, B, out).

    A layer before batch norm needs no bias, because batch norm would remove it.
    """

    def __init__(self, n_replicates: int, n_in: int, n_out: int, *, bias: bool) -> None:
        super().__init__()
        bound = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(n_replicates, n_in, n_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_replicates, 1, n_out)) if bias else None

    def forward(self, value: Tensor) -> Tensor:
        """Return the output of each replicate; a shared input is read only once."""
        if value.dim() == 2:
            value = value.expand(len(self.weight), -1, -1)
        if self.bias is None:
            return torch.bmm(value, self.weight)
        return torch.baddbmm(self.bias, value, self.weight)


class ReplicateNorm(nn.Module):
    """Batch norm of (R, B, n) over B: each unit of each replicate by its own mean and variance."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, n_replicates: int, n: int, *, affine: bool) -> None:
        super().__init__()
        width = n_replicates * n
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.shards: Shards | None = None
        """The processes that have the other cells of the mini-batch, if there are any."""

    def forward(self, value_RBn: Tensor) -> Tensor:
        """Return normalised values; in evaluation mode, with the running statistics of training."""
        R, B, n = value_RBn.shape
        if self.training and self.shards is not None:
            value_BW = value_RBn.transpose(0, 1).reshape(B, R * n)
            return self._over_shards(value_BW, self.shards).view(B, R, n).transpose(0, 1)
        flat = nn.functional.batch_norm(
            value_RBn.transpose(0, 1).reshape(B, R * n),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            # A mini-batch of one cell has no variance, so it is normalised as in evaluation mode.
            training=self.training and B > 1,
        )
        return flat.view(B, R, n).transpose(0, 1)

    def _over_shards(self, value_BW: Tensor, shards: Shards) -> Tensor:
        """Normalise by mean and variance of all cells of a mini-batch, and keep their averages."""
        found: tuple[Tensor, Tensor, Tensor] = _SharedNorm.apply(value_BW, shards)  # type: ignore[no-untyped-call]
        normalized_BW, mean_W, var_W = found
        with torch.no_grad():
            unbiased_W = var_W * shards.n_batch / max(shards.n_batch - 1, 1)
            self.running_mean.lerp_(mean_W, MOMENTUM)
            self.running_var.lerp_(unbiased_W, MOMENTUM)
        if self.weight is None or self.bias is None:
            return normalized_BW
        scaled_BW: Tensor = torch.addcmul(self.bias, normalized_BW, self.weight)
        return scaled_BW


class _SharedNorm(torch.autograd.Function):
    """Normalise columns by their mean and variance over the cells of all processes."""

    @staticmethod
    def forward(ctx: Any, value_BW: Tensor, shards: Shards) -> Any:
        n_batch = shards.n_batch
        mean_W = shards.total(value_BW.sum(0, dtype=torch.float64)) / n_batch
        centred_BW = value_BW - mean_W.to(value_BW)
        var_W = shards.total(centred_BW.square().sum(0, dtype=torch.float64)) / n_batch
        scale_W = (var_W + EPSILON).rsqrt().to(value_BW)
        normalized_BW = centred_BW * scale_W
        ctx.save_for_backward(normalized_BW, scale_W)
        ctx.shards = shards
        mean_W, var_W = mean_W.to(value_BW), var_W.to(value_BW)
        ctx.mark_non_differentiable(mean_W, var_W)
        return normalized_BW, mean_W, var_W

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BW: Tensor, *_: Any) -> Any:
        normalized_BW, scale_W = ctx.saved_tensors
        sums_2W = ctx.shards.total(torch.stack([d_BW.sum(0), (d_BW * normalized_BW).sum(0)]))
        mean_W, slope_W = sums_2W / ctx.shards.n_batch
        return scale_W * (d_BW - mean_W - normalized_BW * slope_W), None


class Encoder(nn.Module):
    """The map from counts to the posterior of topic logits: m(x) and s(x) of q(t | x).

    Parameters
    ----------
    n_replicates, n_genes
        R and G.
    config
        Number and width of hidden layers, dropout, whether the means are normalised.
    constants
        The first estimate of the shifts of batches.
    prior
        The prior of the topic logits: normalised means have its mean over the cells of a batch, and
        its scale times one learned factor for all topics. Therefore no topic can become unused in
        all cells, and cells with few counts, about which less is known, can stay closer to the
        mean.
    """

    library_size: Tensor
    mean_bounds: Tensor
    rho_bounds: Tensor
    factor_SG: Tensor | None

    def __init__(
        self,
        n_replicates: int,
        n_genes: int,
        config: ModelConfig,
        constants: Constants,
        prior: NormalPrior,
    ) -> None:
        super().__init__()
        R, K, H = n_replicates, config.n_topics, config.n_hidden
        widths = [n_genes] + [H] * config.n_layers
        self.dropout = config.dropout
        self.layers = nn.ModuleList(
            ReplicateLinear(R, n_in, n_out, bias=False) for n_in, n_out in pairwise(widths)
        )
        self.norms = nn.ModuleList(ReplicateNorm(R, H, affine=True) for _ in self.layers)
        self.mean = ReplicateLinear(R, H, K, bias=not config.normalize_means)
        self.scale = ReplicateLinear(R, H, K, bias=True)
        self.mean_norm = ReplicateNorm(R, K, affine=False) if config.normalize_means else None
        self.mean_spread = nn.Parameter(torch.zeros(R, 1, 1)) if config.normalize_means else None
        self.register_buffer("library_size", torch.tensor(1e4))
        shift_SG = constants.batch_shift_SG
        factor_SG = None
        if shift_SG is not None:
            # The last row is for cells of no known batch.
            factor_SG = torch.from_numpy(np.exp(np.vstack([shift_SG, np.zeros(n_genes)])))
            factor_SG = factor_SG.to(self.mean.weight)
        self.register_buffer("factor_SG", factor_SG, persistent=False)
        self.prior = prior
        reach = FARTHEST * prior.scale
        mean_bounds = torch.stack([prior.mean - reach, prior.mean + reach])
        rho_bounds = torch.stack([torch.full_like(reach, LOWEST_RHO), reach])
        self.register_buffer("mean_bounds", mean_bounds, persistent=False)
        self.register_buffer("rho_bounds", rho_bounds, persistent=False)

    def forward(self, x_BG: Tensor, one_hot_BS: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the topic logits, each of shape (R, B, K)."""
        m_RBK, rho_RBK = self.heads(self.layers[0](self.inputs(x_BG, one_hot_BS)))
        return m_RBK, softplus(rho_RBK)

    def inputs(self, x_BG: Tensor, one_hot_BS: Tensor | None = None) -> Tensor:
        """Return log-normalised counts, with every cell scaled to the same total, shape (B, G).

        Counts are divided by the factors of the cell's batch.
        """
        if one_hot_BS is not None:
            assert self.factor_SG is not None
            x_BG = x_BG / (one_hot_BS @ self.factor_SG)
        total_B1 = x_BG.sum(-1, keepdim=True).clamp_min(1)
        return torch.log1p(x_BG * (self.library_size / total_B1))

    def heads(self, first_RBH: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and ρ from the values of the first layer, each (R, B, K), where s = softplus(ρ).

        Both are bounded, so that a cell that differs from all others has a finite posterior. The
        bounds are far outside the values of ordinary cells, which they do not change.
        """
        value = first_RBH
        for depth, norm in enumerate(self.norms):
            if depth:
                value = self.layers[depth](value)
            value = dropout(relu(norm(value)), self.dropout, self.training)
        m_RBK = self.mean(value)
        if self.mean_norm is not None and self.mean_spread is not None:
            spread_R1K = self.prior.scale * self.mean_spread.exp()
            m_RBK = self.prior.mean + spread_R1K * self.mean_norm(m_RBK)
        return bounded(m_RBK, self.mean_bounds), bounded(self.scale(value), self.rho_bounds)


def bounded(value: Tensor, bounds: Tensor) -> Tensor:
    """Clamp to the two rows of `bounds`, with the gradient of the identity."""
    result: Tensor = _Bounded.apply(value, *bounds)  # type: ignore[no-untyped-call]
    return result


class _Bounded(torch.autograd.Function):
    """Clamp, with the gradient of the identity: training can move a value back into its bounds.

    The gradient of `torch.clamp` is 0 outside the bounds, and it has another memory layout, so that
    sums differ in their last bits.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None, None


class TopicProgram(nn.Module):
    """The model and its variational posterior, used for training and for prediction.

    Parameters
    ----------
    n_genes
        G.
    n_replicates
        R.
    config
        Topics, priors and encoder.
    likelihood
        The distribution of counts for given topics and proportions.
    constants
        Batches, if there are any.

    Attributes
    ----------
    cell_prior, topic_prior
        Priors of the topic logits of a cell, and of the gene logits of a topic.
    """

    def __init__(
        self,
        n_genes: int,
        n_replicates: int,
        config: ModelConfig,
        likelihood: Likelihood = MIXTURE,
        constants: Constants = Constants(),
    ) -> None:
        super().__init__()
        R, K, G = n_replicates, config.n_topics, n_genes
        self.n_replicates, self.n_topics, self.n_genes = R, K, G
        self.config = config
        self.likelihood = likelihood
        self.constants = constants
        base = NormalPrior.dirichlet(config.cell_topic_prior, K, K)
        correlated = config.prior is PriorKind.correlated
        self.cell_prior: CellPrior = base
        if correlated or constants.covariates:
            n_covariates = len(constants.covariates)
            self.cell_prior = LearnedPrior(base, R, n_covariates, correlated=correlated)
        self.topic_prior = topic_prior(config, constants, G)
        self.encoder = Encoder(R, G, config, constants, base)
        self.topic_mean = nn.Parameter(torch.zeros(R, K, G))
        self.topic_rho = nn.Parameter(torch.full((R, K, G), INITIAL_TOPIC_SCALE))
        self.batch_shift: nn.Parameter | None = None
        if constants.batch_shift_SG is not None:
            shift_SG = torch.from_numpy(constants.batch_shift_SG).to(self.topic_mean)
            self.batch_shift = nn.Parameter(shift_SG.repeat(R, 1, 1))
        self.topic_shift: nn.Parameter | None = None
        if self.batch_shift is not None and config.batch_topic_scale is not None:
            self.topic_shift = nn.Parameter(torch.zeros(R, len(constants.batches), K, G))

    def by_replicate(self) -> dict[str, Tensor]:
        """Return the state of each replicate, by name, each of shape (R, values)."""
        return {
            name: value.view(self.n_replicates, -1)
            for name, value in self.state_dict().items()
            if value.dim()
        }

    def of_replicates(self, replicates: Sequence[int]) -> TopicProgram:
        """Return a program with only these replicates, with their state."""
        kept = self.like(len(replicates))
        kept.to(self.topic_mean.device)
        state = self.state_dict() | {
            name: value[list(replicates)].view_as(kept.state_dict()[name])
            for name, value in self.by_replicate().items()
        }
        kept.load_state_dict(state)
        return kept

    def like(self, n_replicates: int) -> TopicProgram:
        """Return a new program of the same kind with other replicates."""
        return TopicProgram(
            self.n_genes, n_replicates, self.config, self.likelihood, self.constants
        )

    def given(self, counts: Counts) -> Given:
        """Return what the model knows of cells besides their counts.

        Cells without covariates have those of the mean cell, which are 0.
        """
        design_ND = counts.design if self.constants.covariates else None
        if self.encoder.factor_SG is None:
            return Given(design_ND=design_ND)
        assert counts.batch is not None
        number = {name: s for s, name in enumerate(self.constants.batches)}
        batch_N = np.array([number.get(name, len(number)) for name in counts.batch], dtype=int)
        return Given(batch_N, self.encoder.factor_SG.cpu().numpy(), design_ND)

    def shifts(self) -> Tensor | None:
        """Return the shift of each batch, and 0 for cells of no known batch, shape (R, S, G).

        If the shifts of topics differ, it has the shape (R, S, K, G).
        """
        if self.batch_shift is None:
            return None
        shift = self.batch_shift - self.batch_shift.mean(1, keepdim=True)
        own_RSKG = self.topic_shifts()
        if own_RSKG is not None:
            shift = shift.unsqueeze(2) + own_RSKG
        return torch.cat([shift, torch.zeros_like(shift[:, :1])], 1)

    def shift_in(self, batch: int) -> Tensor:
        """Return the shift of topics in a batch, by its number, shape (R, 1 or K, G)."""
        shift = self.shifts()
        assert shift is not None
        of_batch = shift[:, batch]
        return of_batch if of_batch.dim() == 3 else of_batch.unsqueeze(1)

    def topic_shifts(self) -> Tensor | None:
        """Return what the shifts of topics differ from those of all topics, (R, S, K, G).

        They sum to 0 over batches and over topics. There is none for cells of no known batch.
        """
        if self.topic_shift is None:
            return None
        centred_RSKG = self.topic_shift - self.topic_shift.mean(1, keepdim=True)
        return centred_RSKG - centred_RSKG.mean(2, keepdim=True)

    def penalty(self) -> Tensor:
        """Return minus the log-density of point estimates, relative to its maximum, (R,), nats."""
        penalty_R = self.topic_mean.new_zeros(self.n_replicates) + self.cell_prior.penalty()
        if self.batch_shift is not None:
            shift_RSG = self.batch_shift - self.batch_shift.mean(1, keepdim=True)
            penalty_R = penalty_R + (shift_RSG / self.config.batch_scale).square().sum((1, 2)) / 2
        own_RSKG = self.topic_shifts()
        if own_RSKG is not None and self.config.batch_topic_scale is not None:
            scaled_RSKG = own_RSKG / self.config.batch_topic_scale
            penalty_R = penalty_R + scaled_RSKG.square().sum((1, 2, 3)) / 2
        return penalty_R

    def topic_posterior(self, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of b in q(b), each of shape (R, K, G).

        With the number of a batch, its shift is added to the mean.
        """
        mean_RKG: Tensor = self.topic_mean
        if batch is not None and self.batch_shift is not None:
            mean_RKG = mean_RKG + self.shift_in(batch)
        return mean_RKG, softplus(self.topic_rho)

    def model(
        self,
        x_BG: Tensor,
        n_cells: int,
        kl_weight: Tensor | float = 1.0,
        one_hot_BS: Tensor | None = None,
        design_BD: Tensor | None = None,
    ) -> None:
        """Sample from p(x, t, b) for a mini-batch that represents `n_cells` cells."""
        cells, topics, replicates = self._plates(x_BG, n_cells)
        annealed = poutine.scale(scale=kl_weight)
        with replicates:
            with topics, annealed:
                kind = Laplace if isinstance(self.topic_prior, LaplacePrior) else Normal
                prior_b = kind(self.topic_prior.mean, self.topic_prior.scale).to_event(1)
                b_RKG = pyro.sample("topic_logits", prior_b)
            with annealed:
                pyro.factor("point_estimates", -self.penalty().unsqueeze(-1))
            with cells:
                with annealed:
                    t_RBK = pyro.sample("cell_logits", self._cell_prior(design_BD))
                theta_RBK = t_RBK.softmax(-1)
                log_p_RBG = self._log_proportions(theta_RBK, b_RKG, one_hot_BS)
                pyro.sample("counts", BagOfWords(log_p_RBG), obs=x_BG)

    def _cell_prior(self, design_BD: Tensor | None) -> Any:
        """Return the prior of the topic logits of cells as a distribution."""
        prior = self.cell_prior
        if isinstance(prior, NormalPrior):
            return Normal(prior.mean, prior.scale).to_event(1)
        mean_RBK, effect_RDK = prior.base.mean, prior.effects()
        if effect_RDK is not None and design_BD is not None:
            mean_RBK = mean_RBK + design_BD @ effect_RDK
        return MultivariateNormal(mean_RBK, scale_tril=prior.cholesky().unsqueeze(1))

    def _log_proportions(
        self, theta_RBK: Tensor, b_RKG: Tensor, one_hot_BS: Tensor | None
    ) -> Tensor:
        """Return the log-proportion of each gene in each cell, shape (R, B, G)."""
        shift_RSG = self.shifts()
        if shift_RSG is None:
            return self.likelihood.log_proportions(theta_RBK, self.likelihood.topics(b_RKG))
        shift_RSKG = shift_RSG if shift_RSG.dim() == 4 else shift_RSG.unsqueeze(2)
        topics_RSKG = self.likelihood.topics(b_RKG.unsqueeze(1) + shift_RSKG)
        in_each_RSBG = self.likelihood.log_proportions(theta_RBK.unsqueeze(1), topics_RSKG)
        assert one_hot_BS is not None
        return (in_each_RSBG * one_hot_BS.T.unsqueeze(-1)).sum(1)

    def guide(
        self,
        x_BG: Tensor,
        n_cells: int,
        kl_weight: Tensor | float = 1.0,
        one_hot_BS: Tensor | None = None,
        design_BD: Tensor | None = None,
    ) -> None:
        """Sample from the posterior q(b) q(t | x) of the same mini-batch."""
        cells, topics, replicates = self._plates(x_BG, n_cells)
        annealed = poutine.scale(scale=kl_weight)
        with replicates:
            with topics, annealed:
                pyro.sample("topic_logits", Normal(*self.topic_posterior()).to_event(1))
            with cells, annealed:
                pyro.sample("cell_logits", Normal(*self.encoder(x_BG, one_hot_BS)).to_event(1))

    def _plates(self, x_BG: Tensor, n_cells: int) -> tuple[Any, Any, Any]:
        # The mini-batch is drawn outside; the plate scales the terms of its cells by N/B.
        return (
            pyro.plate("cells", n_cells, subsample=torch.arange(len(x_BG)), dim=-1),
            pyro.plate("topics", self.n_topics, dim=-1),
            pyro.plate("replicates", self.n_replicates, dim=-2),
        )


class TopicELBO(TraceMeanField_ELBO):  # type: ignore[misc]  # pyro is untyped
    """Pyro's ELBO with analytic KL terms, which also keeps its terms by replicate.

    Attributes
    ----------
    terms
        Terms of the last mini-batch, each of shape (R,), KL weight 1, in nats: ``reconstruction``
        and ``kl_cells`` are sums over the cells of the mini-batch, ``kl_topics`` the whole term.
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        def kl(site: str) -> Tensor:
            q, p = guide_trace.nodes[site]["fn"], model_trace.nodes[site]["fn"]
            return kl_divergence(q, p).sum(-1).detach()

        self.terms = {
            "reconstruction": model_trace.nodes["counts"]["unscaled_log_prob"].sum(-1).detach(),
            "kl_cells": kl("cell_logits"),
            "kl_topics": kl("topic_logits"),
        }
        penalty = model_trace.nodes["point_estimates"]["unscaled_log_prob"]
        self.terms["kl_topics"] = self.terms["kl_topics"] - penalty.sum(-1).detach()
        return super()._differentiable_loss_particle(model_trace, guide_trace)
