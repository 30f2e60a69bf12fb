"""``ControlAlignMJX-v0``: tasks of dm_control's suite, thousands side by side on one device, simulated by MJX."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..batching import Flags, Rows, check_positive, masked_rows, seed_rows, to_numpy, valid_actions
from .control import BOUND, ControlAlignEnv
from .traced import trace_task

# What an episode starts from.
STATE = ("qpos", "qvel", "act", "qacc_warmstart", "sensordata", "mocap_pos", "mocap_quat")
LOOKS = ("cam_", "light_", "rgba")  # fields of a model with such names are for pictures
BROKEN = 1e10  # beyond it MuJoCo calls a number bad


class ControlAlignMJXVectorEnv(VectorEnv[Any, Any, Any]):
    """:class:`.control.ControlAlignEnv`, batched on the device that JAX uses: a GPU where there is one.

    Spaces, arguments, episodes' starts and infos are those of the single environment, and so are observations and
    rewards, computed by the suite's own code (:mod:`.traced`). A seed starts a row in the state that it starts the
    single environment in. Then the simulations part slowly: MJX computes in single precision, and finds other contacts
    between some shapes. The suite's time steps and limits of solvers are kept.

    A finished row starts its next episode within the same step; ``infos["final_obs"]`` and ``infos["final_info"]`` hold
    the finished one's. Starts are drawn by the single environment on the CPU, one after the other.

    The first reset and the first step compile, for half a minute or more (see the documentation's table).

    Args:
        num_envs: episodes side by side, at least 1; another number compiles anew.
        domain: of the suite; see the documentation for those that MJX simulates.
        task: of the domain.
        observation: "state"; MJX draws no pixels.
        action_repeat: as in the single environment.
        reward: the same.
        max_steps: the same.
        device: None for observations in numpy; a torch device for tensors there, which on JAX's own device do not go
            through the CPU.

    Attributes:
        single: the single environment that starts episodes.

    Raises:
        ImportError: if a package of the extras ``robot`` or ``mjx`` is missing.
        ValueError: for an argument outside what is allowed, or a task that MJX does not simulate.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        domain: str = "walker",
        task: str = "walk",
        observation: str = "state",
        action_repeat: int = 1,
        reward: str = "task",
        max_steps: int | None = None,
        device: str | None = None,
    ) -> None:
        check_positive(num_envs=num_envs)
        if observation == "pixels":
            raise ValueError("observation is 'pixels', but MJX draws none: make_async('ControlAlign-v0') has them")
        jax, mjx = _libraries()
        self.single = ControlAlignEnv(
            domain=domain,
            task=task,
            observation=observation,
            action_repeat=action_repeat,
            reward=reward,
            max_steps=max_steps,
        )
        self.num_envs, self.device, self.max_steps = num_envs, device, self.single.max_steps
        self.single_observation_space = self.single.observation_space
        self.single_action_space = self.single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generators: list[np.random.Generator] = [seeding.np_random()[0] for _ in range(num_envs)]
        self.steps = np.zeros(num_envs, np.int64)  # decisions taken in each running episode
        self._returns = np.zeros(num_envs)
        self._over = np.ones(num_envs, np.bool_)
        self._model, self._drawn = _put_model(self.single, mjx)
        self._starts = {
            name: np.zeros((num_envs, *np.shape(value)), np.float32)
            for name, value in _read(self.single, self.single.reset(seed=0)[0], self._drawn).items()
        }
        self._state: Any = None  # of all rows, on the device
        self._advance = jax.jit(jax.vmap(partial(_advance, self.single, self._model)))
        self._merge = jax.jit(jax.vmap(_choose))

    @property  # type: ignore[misc]  # a tuple without a setter, as in SyncVectorEnv
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The rows' generators."""
        return tuple(self.generators)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: ``s`` seeds row ``i`` with ``s + i``; a list gives each row its own, None in it lets a row's generator
                run on, as None for all does.
            options: ``reset_mask``, a ``[num_envs]`` bool array: reset only these rows.

        Raises:
            ValueError: for a list of another length, an unknown option or an unusable mask.
            gymnasium.error.Error: for a seed that is no non-negative integer.
        """
        options = dict(options or {})
        if unknown := sorted(set(options) - {"reset_mask"}):
            raise ValueError(f"options has unknown keys {unknown}, expected some of ['reset_mask']")
        rows = masked_rows(options.get("reset_mask"), self.num_envs)
        if self._state is None and len(rows) < self.num_envs:
            raise ValueError("options has a reset_mask, but nothing is running yet: reset all rows first")
        seed_rows(self.generators, rows, seed)
        self._start(rows)
        return self._observation(), {}

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]:
        """Take one action in every row; a row that ends starts again at once.

        Args:
            actions: ``[num_envs, ...]`` in ``action_space``, an array or a tensor.

        Raises:
            gymnasium.error.InvalidAction: for an action outside the space.
            gymnasium.error.ResetNeeded: before the first reset.
        """
        if self._over.any():
            raise ResetNeeded("no episode is running: call reset() before step()")
        taken = valid_actions(to_numpy(actions), self.single_action_space, self.num_envs)
        left = np.minimum(self.single.last_step - self.steps * self.single.action_repeat, self.single.action_repeat)
        nothing = np.zeros(self.num_envs, np.bool_)
        self._state, earned, broken = self._advance(self._state, self._starts, nothing, taken, left)
        truth, diverged = np.array(earned, np.float64), np.array(broken)
        truth[diverged] = np.nan
        self.steps += 1
        self._returns += truth
        truncated = diverged | (self.steps >= self.max_steps)
        infos: dict[str, Any] = {}
        if truncated.any():
            infos = self._finished(truth, diverged, truncated)
            self._start(np.flatnonzero(truncated))
        if not truncated.all():
            infos |= {"true_reward": np.where(truncated, 0.0, truth), "_true_reward": ~truncated}
        given = truth if self.single.reward == "task" else np.where(diverged, np.nan, 0.0)
        return self._observation(), given, np.zeros_like(truncated), truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Free the simulations."""
        self.single.close()
        self._state, self._over[:] = None, True

    def _start(self, rows: Rows) -> None:
        """Begin an episode in each of ``rows``, as the single environment does with the row's generator."""
        for row in rows:
            self.single.np_random = self.generators[row]
            observation, _ = self.single.reset()
            for name, value in _read(self.single, observation, self._drawn).items():
                self._starts[name][row] = value
        fresh = np.zeros(self.num_envs, np.bool_)
        fresh[rows] = True
        state = _blank(self._model, self._starts, self._drawn) if self._state is None else self._state
        idle, one = np.zeros((self.num_envs, *self.single.centre.shape), np.float32), np.ones(self.num_envs, np.int64)
        begun, _, _ = self._advance(state, self._starts, fresh, idle, one)
        begun["observation"] = self._starts["observation"]
        self._state = self._merge(fresh, begun, state)
        self.steps[rows] = 0
        self._returns[rows] = 0.0
        self._over[rows] = False

    def _finished(self, truth: NDArray[np.float64], diverged: Flags, over: Flags) -> dict[str, Any]:
        """The infos of episodes that ended, as Gymnasium's vectorisers give them."""
        infos: dict[str, Any] = {}
        finals = np.asarray(self._state["observation"])
        for row in np.flatnonzero(over):
            info: dict[str, Any] = {"true_reward": float(truth[row])}
            if diverged[row]:
                name = f"{self.single.domain} {self.single.task}"
                info["invalid"] = f"the simulation of {name} diverged in decision {self.steps[row]}"
            else:
                info["reward/true_return"] = float(self._returns[row])
            infos = self._add_info(infos, {"final_obs": finals[row].copy(), "final_info": info}, int(row))
        return infos

    def _observation(self) -> Any:
        values = self._state["observation"]
        if self.device is None:
            return np.array(values)
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(values).to(self.device, copy=True)


def _libraries() -> tuple[Any, Any]:
    try:
        import jax
        from mujoco import mjx
    except ImportError as error:
        raise ImportError("ControlAlignMJX-v0 needs JAX and MJX: pip install 'aligngym[robot,mjx]'") from error
    return jax, mjx


def _put_model(single: ControlAlignEnv, mjx: Any) -> tuple[Any, list[str]]:
    """The model for MJX, without what it lacks and the physics does not need; the fields that each episode draws.

    Raises:
        ValueError: if it lacks more.
    """
    import jax
    import mujoco
    from dm_control.rl.control import Task

    models = []
    for seed in range(3):
        single.reset(seed=seed)
        models.append(copy.copy(single.simulator.physics.model.ptr))
    model = models[0]
    names = [f.name for f in dataclasses.fields(mjx.Model) if isinstance(getattr(model, f.name, None), np.ndarray)]
    physical = [name for name in names if not any(part in name for part in LOOKS)]
    drawn = [n for n in physical if any((getattr(m, n) != getattr(model, n)).any() for m in models)]
    model.opt.enableflags &= ~int(mujoco.mjtEnableBit.mjENBL_ENERGY)  # only reports it
    if type(single.simulator.task).get_termination is not Task.get_termination:
        raise ValueError(f"MJX does not simulate {single.domain}: its episodes end themselves")
    try:
        made = mjx.put_model(model)
    except NotImplementedError as error:
        raise ValueError(f"MJX does not simulate {single.domain}: {error}") from error
    if fixed := [name for name in drawn if not isinstance(getattr(made, name), jax.Array)]:
        raise ValueError(
            f"MJX does not simulate {single.domain} {single.task}: each episode draws {fixed[0]} of the model, "
            "which is the same for all rows there"
        )
    return made, drawn


def _read(single: ControlAlignEnv, observation: Any, drawn: Sequence[str]) -> dict[str, Any]:
    """What the episode that the single environment has just started is given to MJX with."""
    physics = single.simulator.physics
    values = {name: getattr(physics.data, name) for name in STATE} | {n: getattr(physics.model, n) for n in drawn}
    return values | {"observation": observation}


def _blank(model: Any, starts: dict[str, Any], drawn: Sequence[str]) -> dict[str, Any]:
    """A state of all rows, of the right shapes, before any episode."""
    import jax
    import jax.numpy as jnp
    from mujoco import mjx

    rows = len(starts["observation"])
    data = jax.tree.map(lambda values: jnp.broadcast_to(values, (rows, *values.shape)), mjx.make_data(model))
    return _strong({"data": data, "drawn": {n: starts[n] for n in drawn}, "observation": starts["observation"]})


def _strong(state: dict[str, Any]) -> dict[str, Any]:
    """The same with types that do not depend on how arrays were made, so that nothing is compiled twice."""
    import jax

    strong: dict[str, Any] = jax.tree.map(lambda values: jax.lax.convert_element_type(values, values.dtype), state)
    return strong


def _choose(first: Any, ours: Any, others: Any) -> Any:
    """Of two nested structures of arrays, the first or the second."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda one, other: jnp.where(first, one, other), ours, others)


def _advance(
    single: ControlAlignEnv,
    model: Any,
    state: dict[str, Any],
    start: dict[str, Any],
    fresh: Any,
    action: Any,
    left: Any,
) -> tuple[dict[str, Any], Any, Any]:
    """Take an action in a row: its state, its reward, and whether the simulation diverged.

    Starting an episode is the same program, so that there is only one to compile.

    Args:
        single: the environment.
        model: of MJX.
        state: of the row.
        start: state that an episode starts in.
        fresh: start an episode instead.
        action: that is taken.
        left: for how many control steps; there may be fewer than ``action_repeat`` before the episode's end.
    """
    import jax
    import jax.numpy as jnp

    drawn = {name: jnp.where(fresh, start[name], values) for name, values in state["drawn"].items()}
    changed = model.replace(**drawn)
    begin = {name: start[name] for name in STATE}

    def substep(data: Any, _: None) -> tuple[Any, None]:
        moved = _finish_step(changed, data)
        moved = moved.replace(**_choose(fresh, begin, {name: getattr(moved, name) for name in STATE}))
        return _start_step(changed, moved), None

    def control_step(carry: tuple[Any, Any, Any], index: Any) -> tuple[tuple[Any, Any, Any], None]:
        data, total, broken = carry
        moved, _ = jax.lax.scan(substep, data, length=single.simulator._n_sub_steps)
        _, reward = trace_task(single.simulator, moved, drawn)
        numbers = jnp.concatenate([moved.qpos, moved.qvel, moved.qacc])
        taken = (moved, total + reward, broken | ~(jnp.abs(numbers) < BROKEN).all())
        return (_choose(index < left, taken, carry) if single.last_step % single.action_repeat else taken), None

    first = (state["data"].replace(ctrl=single.centre + single.reach * action), jnp.float32(0), jnp.bool_(False))
    (data, total, broken), _ = jax.lax.scan(control_step, first, jnp.arange(single.action_repeat))
    observation, _ = trace_task(single.simulator, data, drawn)
    observation = jnp.clip(jnp.nan_to_num(observation), -BOUND, BOUND)
    return _strong({"data": data, "drawn": drawn, "observation": observation}), total, broken


def _start_step(model: Any, data: Any) -> Any:
    """MuJoCo's ``mj_step1``: compute what depends on positions and velocities."""
    from mujoco import mjx

    data = mjx.sensor_pos(model, mjx.fwd_position(model, data))
    return mjx.sensor_vel(model, mjx.fwd_velocity(model, data))


def _finish_step(model: Any, data: Any) -> Any:
    """MuJoCo's ``mj_step2``: compute accelerations, and with them the positions and velocities that follow."""
    import mujoco
    from mujoco import mjx

    data = mjx.fwd_acceleration(model, mjx.fwd_actuation(model, data))
    data = mjx.solve(model, data) if data.efc_J.size else data.replace(qacc=data.qacc_smooth)
    data = mjx.sensor_acc(model, data)
    integrate = mjx.rungekutta4 if model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4 else mjx.euler
    return integrate(model, data)
