"""Pictures of MuJoCo models on machines without a screen, several times as fast as the libraries' own renderers."""

from __future__ import annotations

import atexit
import ctypes.util
import importlib
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKENDS = ("egl", "osmesa", "glfw")

_OPEN: weakref.WeakSet[FastRenderer] = weakref.WeakSet()
_DRAWN_IN: list[int] = []  # the process that drew first: its forks cannot draw, they would wait forever


def choose_backend() -> str:
    """Which of :data:`BACKENDS` draws.

    That is ``MUJOCO_GL`` where it is set, GLFW where there is a screen, and else EGL or OSMesa, whichever is installed.
    The choice without a screen is put into ``MUJOCO_GL``: dm_control and robosuite read it when they are imported, so
    call this first.
    """
    told = os.environ.get("MUJOCO_GL", "").lower().strip()
    if told in BACKENDS:
        return told
    if told or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return "glfw"
    found = "osmesa" if ctypes.util.find_library("OSMesa") and not ctypes.util.find_library("EGL") else "egl"
    os.environ["MUJOCO_GL"] = found
    return found


class FastRenderer:
    """Draws one MuJoCo model without shadows, reflections and smoothed edges, which cost most of the time on a CPU.

    Pictures therefore differ from the ones that dm_control, Meta-World and robosuite draw by default: scores of
    policies that see pixels are not comparable with published ones. The model is left as it was.

    A process that was forked after something was drawn cannot draw: give ``context="forkserver"`` to what starts it.

    Args:
        model: ``mujoco.MjModel``.
        height: of the pictures in pixels.
        width: the same.
        camera: a name or number of the model's cameras; -1 is the free camera.
        hidden_groups: of geometries that are not drawn, such as collision meshes; MuJoCo itself hides 3, 4 and 5.

    Raises:
        ImportError: if MuJoCo or the graphics library is missing.
        RuntimeError: in a process that was forked from one that had drawn.
        ValueError: for a camera that the model does not have.
    """

    def __init__(
        self, model: Any, height: int, width: int, camera: str | int = -1, *, hidden_groups: Sequence[int] = ()
    ) -> None:
        backend = choose_backend()
        if _DRAWN_IN and os.getpid() not in _DRAWN_IN:
            raise RuntimeError(
                "pictures were drawn before this process was forked, so it cannot draw any: start it by another method "
                "(AsyncVectorEnv and make_async take context='forkserver'), or draw nothing before"
            )
        try:
            import mujoco

            context = importlib.import_module(f"mujoco.{backend}").GLContext
        except ImportError as error:
            raise ImportError(
                f"drawing robots with MUJOCO_GL={backend} needs MuJoCo (pip install 'aligngym[robot]') and a graphics "
                f"library (Debian: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, or libosmesa6): {error}"
            ) from error
        self._mujoco, self._model = mujoco, model
        self._camera = self._find_camera(camera)
        self._scene, self._options = mujoco.MjvScene(model, maxgeom=10000), mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._gl: Any = context(width, height)
        _DRAWN_IN[:] = [os.getpid()]
        self._gl.make_current()
        self._context: Any = self._make_context(height, width)
        if not _OPEN:
            atexit.register(_close_all)  # after the graphics library's own clean-up was, and so before it
        _OPEN.add(self)

    def render(self, data: Any) -> NDArray[np.uint8]:
        """The picture of a state.

        Args:
            data: ``mujoco.MjData`` of the model.

        Returns:
            ``[height, width, 3]``, the upper row first.
        """
        self._gl.make_current()
        everything = self._mujoco.mjtCatBit.mjCAT_ALL.value
        self._mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        return self._drawn()

    def background(self, *, floor: bool = True) -> NDArray[np.bool_]:
        """Where the last picture shows nothing of the model: it is drawn again, each geometry in a colour of its own.

        Args:
            floor: planes and terrain are background, too.

        Returns:
            ``[height, width]``.
        """
        mujoco, scene = self._mujoco, self._scene
        flags = [int(flag) for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)]
        ground = (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_HFIELD)
        self._gl.make_current()
        scene.flags[flags] = 1
        colors = self._drawn().astype(np.int64) @ [1, 1 << 8, 1 << 16]  # 0 where there is no geometry, else its number
        scene.flags[flags] = 0
        behind = [0]
        if floor:
            geoms = [g for g in scene.geoms[: scene.ngeom] if g.objtype == mujoco.mjtObj.mjOBJ_GEOM]
            behind += [g.segid + 1 for g in geoms if g.type in ground]
        return np.isin(colors, behind)

    def _drawn(self) -> NDArray[np.uint8]:
        """The scene as it is."""
        self._mujoco.mjr_render(self._rectangle, self._scene, self._context)
        pixels = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
        self._mujoco.mjr_readPixels(pixels, None, self._rectangle, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the graphics context; a second call does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
        self._gl = self._context = None
        _OPEN.discard(self)

    def _find_camera(self, camera: str | int) -> Any:
        mujoco, model = self._mujoco, self._model
        names = [mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, i) for i in range(model.ncam)]
        number = names.index(camera) if camera in names else camera
        if not isinstance(number, int) or not -1 <= number < model.ncam:
            raise ValueError(f"camera is {camera!r}, expected one of {names}, a number below {model.ncam}, or -1")
        found = mujoco.MjvCamera()
        if number == -1:
            mujoco.mjv_defaultFreeCamera(model, found)
        else:
            found.type, found.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        return found

    def _make_context(self, height: int, width: int) -> Any:
        """A context sized and tuned by fields of the model, which it reads now and never again."""
        quality, size = self._model.vis.quality, self._model.vis.global_
        before = quality.shadowsize, quality.offsamples, size.offheight, size.offwidth
        try:
            quality.shadowsize, quality.offsamples, size.offheight, size.offwidth = 0, 0, height, width
            context = self._mujoco.MjrContext(self._model, self._mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            quality.shadowsize, quality.offsamples, size.offheight, size.offwidth = before
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        return context


def _close_all() -> None:
    for renderer in list(_OPEN):
        renderer.close()
