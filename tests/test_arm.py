from __future__ import annotations

import mujoco
import numpy as np
import pytest

from vla.envs.arm import HAND_BODIES, JOINTS, TIP_SITE, arm_spec, menagerie_path
from vla.envs.ik import ROLL_OFFSET, ArmIK, azimuth
from vla.errors import InputError


@pytest.fixture(scope="module")
def light() -> mujoco.MjModel:
    return arm_spec("light").compile()


@pytest.fixture(scope="module")
def menagerie() -> mujoco.MjModel:
    if menagerie_path() is None:
        pytest.skip("needs the package so101-nexus")
    return arm_spec("menagerie").compile()


def tip(model: mujoco.MjModel, joints: np.ndarray) -> np.ndarray:
    data = mujoco.MjData(model)
    data.qpos[:6] = joints
    mujoco.mj_kinematics(model, data)
    return np.concatenate([data.site(TIP_SITE).xpos, *(data.body(name).xpos for name in HAND_BODIES)])


def test_fingertips_and_jaws_match_menagerie(light: mujoco.MjModel, menagerie: mujoco.MjModel) -> None:
    rng = np.random.default_rng(0)
    for joints in rng.uniform(light.jnt_range[:, 0], light.jnt_range[:, 1], (200, 6)):
        np.testing.assert_allclose(tip(light, joints), tip(menagerie, joints), atol=0.005)


def test_ranges_masses_and_servos_match_menagerie(light: mujoco.MjModel, menagerie: mujoco.MjModel) -> None:
    assert tuple(light.joint(i).name for i in range(light.njnt)) == JOINTS
    for name in JOINTS:
        mine, theirs = light.joint(name), menagerie.joint(name)
        np.testing.assert_allclose(mine.range, theirs.range, atol=1e-4)
        for field in ("damping", "armature", "frictionloss"):
            np.testing.assert_allclose(getattr(mine, field), getattr(theirs, field))
        np.testing.assert_allclose(light.actuator(name).gainprm, menagerie.actuator(name).gainprm)
        np.testing.assert_allclose(light.actuator(name).biasprm, menagerie.actuator(name).biasprm)
    for body in range(1, light.nbody):
        name = light.body(body).name
        np.testing.assert_allclose(light.body(name).mass, menagerie.body(name).mass, atol=1e-6)
        np.testing.assert_allclose(light.body(name).ipos, menagerie.body(name).ipos, atol=1e-5)
        np.testing.assert_allclose(light.body(name).inertia, menagerie.body(name).inertia, atol=2e-6)


def test_unknown_model_is_named() -> None:
    with pytest.raises(InputError, match="'heavy'.*light, menagerie"):
        arm_spec("heavy")


def test_ik_reaches_the_workspace_continuously(light: mujoco.MjModel) -> None:
    ik = ArmIK(light)
    previous = None
    for angle in np.linspace(-0.8, 0.8, 33):
        place = np.array([0.0388 + 0.2 * np.cos(angle), 0.2 * np.sin(angle), 0.02])
        joints, left = ik.solve(place, 1.2, azimuth(place) - np.pi / 2)
        assert left < 0.001
        np.testing.assert_allclose(tip(light, np.append(joints, 0.3))[:3], place, atol=0.001)
        assert joints[1:4].sum() == pytest.approx(1.2, abs=0.01)
        assert joints[4] - joints[0] - ROLL_OFFSET == pytest.approx(azimuth(place) - np.pi / 2, abs=0.01)
        if previous is not None:
            assert np.abs(joints - previous).max() < 0.15
        previous = joints


def test_ik_reports_what_it_cannot_reach(light: mujoco.MjModel) -> None:
    joints, left = ArmIK(light).solve(np.array([0.8, 0.0, 0.1]), 1.2, -1.57)
    assert left > 0.2
    assert (joints >= light.jnt_range[:5, 0]).all() and (joints <= light.jnt_range[:5, 1]).all()
