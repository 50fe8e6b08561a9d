"""Schedules: the KL weight and the learning rate as functions of the progress of training."""

from __future__ import annotations

import math

from topicell.config import AnnealingConfig, AnnealingShape, Schedule, TrainConfig


def annealing_weight(epoch: float, n_epochs: float, config: AnnealingConfig) -> float:
    """Return the weight of the KL terms at a (fractional) epoch.

    ``linear`` rises evenly over the warm-up, ``sigmoid`` along a logistic curve, ``cyclical``
    linearly again in each of `n_cycles` cycles (Fu et al. 2019, arXiv:1903.10145), ``constant``
    is always the maximum.
    """
    if config.shape is AnnealingShape.constant:
        return config.max_weight
    length = n_epochs
    if config.shape is AnnealingShape.cyclical:
        length = n_epochs / config.n_cycles
        # The end of the last cycle is not the start of another cycle.
        epoch = epoch % length if epoch < n_epochs else length
    warmup = config.warmup_epochs
    if warmup is None:
        warmup = config.warmup_share * length
    if epoch >= warmup:
        return config.max_weight
    share = epoch / warmup
    if config.shape is AnnealingShape.sigmoid:
        # Logistic from −6 to 6, stretched so that it starts at 0 and ends at 1.
        low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
        share = (1 / (1 + math.exp(6 - 12 * share)) - low) / (high - low)
    return config.min_weight + share * (config.max_weight - config.min_weight)


def learning_rate(progress: float, config: TrainConfig) -> float:
    """Return the rate at a share of all steps.

    ``one_cycle``: a cosine rise from 1/25 of the peak over the first quarter, then a cosine fall
    to 1/1000 of the peak (Smith & Topin 2018, arXiv:1708.07120).
    """
    peak = config.learning_rate
    if config.schedule is Schedule.constant:
        return peak
    rise = 0.25
    if progress < rise:
        return peak * _cosine(1 / 25, 1, progress / rise)
    return peak * _cosine(1, 1e-3, (progress - rise) / (1 - rise))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
