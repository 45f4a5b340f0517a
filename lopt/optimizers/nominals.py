"""Nominal steps: what a rule does without its network, made of optax's own transforms, with learned hyperparameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lopt.optimizers.muon import scale_by_muon
from lopt.optimizers.scalars import decay, read_decay
from lopt.optimizers.shampoo import scale_by_shampoo
from lopt.symmetry.spec import PyTree, WeightSpec


@dataclasses.dataclass(frozen=True)
class NominalConfig:
    """The hand-designed step that a rule starts from, in the sign of optax's `scale_by_...`; its hyperparameters are part of theta."""

    def init(self) -> PyTree:
        """Its part of theta."""
        return {}

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        """The transform of gradients in float32, of the weights of a spec, which has no leaves where it is not known."""
        raise NotImplementedError(f"{type(self).__name__} does not define make()")

    @property
    def reads_spec(self) -> bool:
        """Whether the step is another one where it is known which axes are inputs and outputs."""
        return False

    def scalars(self, theta: PyTree) -> dict[str, jax.Array]:
        """Its hyperparameters, readable."""
        return {name: read_decay(value) for name, value in theta.items()}


@dataclasses.dataclass(frozen=True)
class NoNominal(NominalConfig):
    """No hand-designed step: all of the update comes from the network."""

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
            del params
            return jax.tree.map(lambda g: jnp.zeros_like(g, jnp.float32), updates), state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@dataclasses.dataclass(frozen=True)
class MomentumNominal(NominalConfig):
    """The momentum: an average of past gradients, m <- g m + (1 - g) gradient."""

    g: float = 0.9
    """Decay g before meta-training, in [0, 1)."""

    def init(self) -> PyTree:
        return {"g": decay(self.g, "the decay g of the momentum")}

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        g = read_decay(theta["g"])
        return optax.chain(optax.trace(g, accumulator_dtype=jnp.float32), optax.scale(1 - g))


@dataclasses.dataclass(frozen=True)
class AdamNominal(NominalConfig):
    """The step of Adam, with decays that are learned."""

    b1: float = 0.9
    """Decay of the first moment before meta-training, in [0, 1)."""
    b2: float = 0.999
    """Decay of the second moment before meta-training, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment; fixed."""

    def init(self) -> PyTree:
        return {"b1": decay(self.b1, "b1"), "b2": decay(self.b2, "b2")}

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return _scale_by_adam(theta, self.eps, nesterov=False)


@dataclasses.dataclass(frozen=True)
class NAdamNominal(AdamNominal):
    """The step of Adam with Nesterov momentum, with decays that are learned."""

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        return _scale_by_adam(theta, self.eps, nesterov=True)


@dataclasses.dataclass(frozen=True)
class MuonNominal(NominalConfig):
    """Muon's step for matrices, orthogonalised Nesterov momentum; NAdam's for vectors and scalars."""

    beta: float = 0.95
    """Decay of the momentum of matrices before meta-training, in [0, 1)."""
    b1: float = 0.9
    """Decay of the first moment of vectors before meta-training, in [0, 1)."""
    b2: float = 0.999
    """Decay of the second moment of vectors before meta-training, in [0, 1)."""
    lengthen: float | None = None
    """After t steps momenta average over sqrt(1 + t / lengthen) times as many gradients: a long training wants longer ones. None: over
    as many at all times."""

    def init(self) -> PyTree:
        if self.lengthen is not None and not self.lengthen > 0:
            raise ValueError(f"lengthen must be a positive number of steps, got {self.lengthen}")
        return {"beta": decay(self.beta, "beta"), "b1": decay(self.b1, "b1"), "b2": decay(self.b2, "b2")}

    @property
    def reads_spec(self) -> bool:
        return True

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        beta, b1, b2 = (read_decay(theta[name]) for name in ("beta", "b1", "b2"))
        return scale_by_muon(beta, b1, b2, lengthen=self.lengthen, spec=spec)


@dataclasses.dataclass(frozen=True)
class ShampooNominal(MuonNominal):
    """Shampoo's step for matrices, momentum between the inverse roots of both covariances of gradients; NAdam's for vectors and scalars.

    L^-1/2 M R^-1/2, with averages L and R of G G^T and G^T G: Shampoo with the exponent of Morwani et al., "A New Perspective on Shampoo's
    Preconditioner" (arXiv 2409.17791). Matrices with a side of more than 1,024 have Muon's step.
    """

    b3: float = 0.95
    """Decay of covariances before meta-training, in [0, 1)."""
    every: int = 1
    """Steps from one computation of their roots to the next, after as many in which each has its own."""

    def init(self) -> PyTree:
        if self.every < 1:
            raise ValueError(f"every must be a positive number of steps, got {self.every}")
        return {**super().init(), "b3": decay(self.b3, "b3")}

    def make(self, theta: PyTree, spec: WeightSpec) -> optax.GradientTransformation:
        decays = (read_decay(theta[name]) for name in ("beta", "b1", "b2", "b3"))
        return scale_by_shampoo(*decays, every=self.every, lengthen=self.lengthen, spec=spec)


def _scale_by_adam(theta: PyTree, eps: float, nesterov: bool) -> optax.GradientTransformation:
    transform = optax.scale_by_adam(read_decay(theta["b1"]), read_decay(theta["b2"]), eps, nesterov=nesterov)

    def init(params: PyTree) -> PyTree:
        return transform.init(jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), params))

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, Any]:
        with jax.numpy_dtype_promotion("standard"):  # its bias correction raises a float to an integer power
            return transform.update(updates, state, params)

    return optax.GradientTransformation(init, update)
