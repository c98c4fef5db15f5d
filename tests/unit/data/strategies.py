"""Random wafers for property tests."""

from datetime import UTC, datetime

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from services.common.wafer_map import Notch, WaferGeometry, WaferIdentity, WaferMap


def grids(max_side: int = 24) -> st.SearchStrategy[NDArray[np.uint8]]:
    """Grids with at least one die."""
    shapes = st.tuples(st.integers(1, max_side), st.integers(1, max_side))
    return hnp.arrays(np.uint8, shapes, elements=st.integers(0, 2)).filter(lambda grid: bool(grid.any()))


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)

identities = st.builds(
    WaferIdentity,
    lot=texts,
    wafer=texts,
    slot=st.integers(0, 25),
    product=texts,
    step=texts,
    tool=texts,
    measure_time=st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)

_pitches = st.floats(0, 400, allow_nan=False)

geometries = st.builds(WaferGeometry, notch=st.sampled_from(Notch), die_pitch_x_mm=_pitches, die_pitch_y_mm=_pitches)


@st.composite
def wafer_maps(draw: st.DrawFn) -> WaferMap:
    """Wafer maps with and without bins."""
    dies = draw(grids())
    bins = draw(st.none() | hnp.arrays(np.int32, dies.shape))
    return WaferMap(dies, identity=draw(identities), geometry=draw(geometries), bins=bins)
