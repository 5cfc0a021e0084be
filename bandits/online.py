"""LinUCB one decision at a time, in the caller's process: the least work that is still exact.

The service learns in batches and serves from snapshots. Where a loop chooses and learns in turn
(a simulation, a device, a script) :class:`OnlineLinUCB` does the same with arrays that stay in
place. The integer sums are those of the policy ``linear_ucb``, in every bit: :attr:`state` can be
stored, merged, and served by it. What it chooses by follows the sums: between two exact beliefs,
which come whenever the rows have grown by ``refresh``, the arm that has learnt is moved by a
rank-one update (Sherman and Morrison, 1950) at the prior and noise of the last belief, so rounding
never accumulates over more than that.

>>> import numpy as np
>>> online = OnlineLinUCB(arms=2, features=1)
>>> rng = np.random.default_rng(0)
>>> for _ in range(200):
...     x = rng.normal(size=1)
...     arm = online.choose(x)
...     online.learn(x, arm, reward=int(x[0] > 0) if arm else int(x[0] <= 0))
>>> online.choose(np.array([1.0])), online.choose(np.array([-1.0]))
(1, 0)
"""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from bandits.backend import numpy_backend
from bandits.features import ONE
from bandits.regressors import linear
from bandits.regressors.linear import LinearSums
from bandits.types import FEATURE_LIMIT, REWARD_LIMIT

Floats = NDArray[np.float64]
_LOW = (1 << 32) - 1


class OnlineLinUCB:
    """LinUCB over disjoint linear arms, chosen and learnt in turn.

    Attributes:
        rows: decisions learnt.
    """

    def __init__(
        self, *, arms: int, features: int, alpha: float = 1.5, refresh: float = 0.5
    ) -> None:
        """Start with nothing learnt.

        Args:
            arms: A, at least 1.
            features: D of every context.
            alpha: standard deviations that are added to the mean; 0 is greedy.
            refresh: growth of the rows after which prior, noise and every arm's posterior are
                computed afresh from the sums.

        Raises:
            ValueError: a size below 1, or an option out of range; the message names it.
        """
        for name, value, least in (("arms", arms, 1), ("features", features, 0)):
            if value < least:
                raise ValueError(f"{name}: must be at least {least}")
        for name, number in (("alpha", alpha), ("refresh", refresh)):
            if not 0.0 <= number < np.inf:
                raise ValueError(f"{name}: must be a finite number at least 0")
        width = features + 1
        self._alpha, self._growth = alpha, refresh
        self._sums = linear.zeros(arms=arms, width=width)
        self._sums = LinearSums(*(field.copy() for field in self._sums))
        self._x = np.full(width, ONE, dtype=np.int64)
        self._value = np.ones(width)
        self._scaled = np.empty(features)
        self.rows = 0
        self._believe()

    @property
    def state(self) -> LinearSums:
        """The sums, as ``linear_ucb`` keeps them; a copy."""
        return LinearSums(*(field.copy() for field in self._sums))

    def choose(self, x: Floats) -> int:
        """The arm to serve in the context x (D,); the first of equals."""
        self._take(x)
        value = self._value
        width = (self._rows @ value).reshape(self._mean.shape) @ value
        score = self._mean @ value + self._wide * np.sqrt(width)
        return int(score.argmax())

    def learn(self, x: Floats, arm: int, reward: int) -> None:
        """Add what came of serving ``arm`` in the context x (D,).

        Raises:
            ValueError: the reward is beyond the limit of a row.
        """
        if not -REWARD_LIMIT <= reward <= REWARD_LIMIT:
            raise ValueError(f"reward: must be within ±{REWARD_LIMIT}")
        self._take(x)
        sums, exact, value = self._sums, self._x, self._value
        sums.gram[arm] += exact[:, None] * exact
        sums.moment[arm] += exact * reward
        self._count(arm, reward)
        self.rows += 1
        if self.rows >= self._due:
            self._believe()
            return
        covariance = self._covariance[arm]
        along = covariance @ value
        covariance -= along[:, None] * (along / (1.0 + along @ value))
        self._mean[arm] = covariance @ sums.moment[arm] * (1.0 / ONE)

    def choose_batch(self, x: Floats) -> NDArray[np.intp]:
        """The arms (B,) to serve in the contexts x (B, D)."""
        value = self._exact(x) / float(ONE)
        along = value @ self._covariance
        width = np.einsum("abp,bp->ba", along, value)
        score = value @ self._mean.T + self._wide * np.sqrt(np.maximum(width, 0.0))
        equal = score == score.max(axis=1, keepdims=True)
        if np.count_nonzero(equal) > len(score):
            # Before anything is known all arms are equal: a batch must not go to the first alone.
            turn = (np.arange(score.shape[1]) - np.arange(len(score))[:, None]) % score.shape[1]
            score = np.where(equal, -turn, -np.inf)
        arms: NDArray[np.intp] = score.argmax(axis=1)
        return arms

    def learn_batch(self, x: Floats, arm: NDArray[np.intp], reward: NDArray[np.int64]) -> None:
        """Add what came of B decisions: contexts (B, D), arms (B,), integer rewards (B,).

        Raises:
            ValueError: a reward is beyond the limit of a row.
        """
        if len(reward) and int(np.abs(reward).max()) > REWARD_LIMIT:
            raise ValueError(f"reward: must be within ±{REWARD_LIMIT}")
        sums, exact = self._sums, self._exact(x)
        high = reward >> 15
        wide = np.column_stack([exact, high, reward - (high << 15)]).astype(np.float64)
        # Products of a batch stay below 2**53, where float64 is exact: see regressors/linear.py.
        for begin in range(0, len(arm), 1 << 20):
            part = wide[begin : begin + (1 << 20)]
            for one in np.unique(arm[begin : begin + (1 << 20)]):
                mine = part[arm[begin : begin + (1 << 20)] == one]
                product = (mine[:, :-2].T @ mine).astype(np.int64)
                sums.gram[one] += product[:, :-2]
                sums.moment[one] += (product[:, -2] << 15) + product[:, -1]
        self._count_batch(arm, reward)
        self.rows += len(arm)
        if self.rows >= self._due:
            self._believe()
        else:
            for one in np.unique(arm):
                self._settle(one)

    def _take(self, x: Floats) -> None:
        """Quantise one context into the buffers that are kept for it."""
        scaled = self._scaled
        np.multiply(x, float(ONE), out=scaled)
        np.rint(scaled, out=scaled)
        np.maximum(scaled, -FEATURE_LIMIT, out=scaled)
        np.minimum(scaled, FEATURE_LIMIT, out=scaled)
        self._x[1:] = scaled
        np.multiply(scaled, 1.0 / ONE, out=self._value[1:])

    def _exact(self, x: Floats) -> NDArray[np.int64]:
        out = np.full((x.shape[0], x.shape[1] + 1), ONE, dtype=np.int64)
        out[:, 1:] = np.minimum(np.maximum(np.rint(x * ONE), -FEATURE_LIMIT), FEATURE_LIMIT)
        return out

    def _count(self, arm: int, reward: int) -> None:
        sums, square = self._sums, reward * reward
        sums.trials[arm] += 1
        if reward:
            sums.conversions[arm] += reward > 0
            sums.reward[arm] += reward
            sums.square_high[arm] += square >> 32
            sums.square_low[arm] += square & _LOW

    def _count_batch(self, arm: NDArray[np.intp], reward: NDArray[np.int64]) -> None:
        sums, square = self._sums, reward * reward
        np.add.at(sums.trials, arm, 1)
        np.add.at(sums.conversions, arm, reward > 0)
        np.add.at(sums.reward, arm, reward)
        np.add.at(sums.square_high, arm, square >> 32)
        np.add.at(sums.square_low, arm, square & _LOW)

    def _believe(self) -> None:
        """Prior, noise and every arm from the sums, as ``linear_ucb`` believes them."""
        belief = linear.posterior(self._sums, space=numpy_backend())
        self._mean = np.ascontiguousarray(belief.mean)
        self._set(belief.root @ belief.root.swapaxes(1, 2))
        self._wide = self._alpha * float(belief.noise)
        self._precision = float(belief.precision)
        self._due = max(self.rows + 1, int(self.rows * (1.0 + self._growth)))

    def _settle(self, arm: int) -> None:
        """One arm from its sums, at the prior and noise of the last belief."""
        gram = self._sums.gram[arm] * 2.0**-24
        every = len(gram) + 1
        gram.reshape(-1)[::every] += self._precision
        factor, _ = lapack.dpotrf(gram, lower=1, clean=1)
        half, _ = lapack.dpotri(factor, lower=1)
        covariance = self._covariance[arm]
        np.add(half, half.T, out=covariance)
        covariance.reshape(-1)[::every] *= 0.5
        self._mean[arm] = covariance @ self._sums.moment[arm] * (1.0 / ONE)

    def _set(self, covariance: Floats) -> None:
        """Keep the arms' covariances, and the same memory as rows for one product with all."""
        self._covariance = np.ascontiguousarray(covariance)
        self._rows = self._covariance.reshape(-1, covariance.shape[-1])
