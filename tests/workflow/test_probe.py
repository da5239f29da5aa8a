"""The fit of a probe: least squares that are nowhere negative."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import nnls

from luthier.workflow.probe import nonnegative

numbers = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


@given(A=arrays(float, st.tuples(st.integers(3, 6), st.integers(1, 3)), elements=numbers), data=st.data())
def test_the_fit_is_as_near_as_scipys(A: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(arrays(float, len(A), elements=numbers))
    x, (theirs, distance) = nonnegative(A, b), nnls(A, b)
    assert (x >= 0).all()
    assert np.linalg.norm(A @ x - b) <= distance + 1e-9 * (1 + distance)
    if np.linalg.matrix_rank(A, tol=1e-2) == A.shape[1]:
        np.testing.assert_allclose(x, theirs, rtol=1e-6, atol=1e-6)


def test_what_is_exactly_so_is_found() -> None:
    A = np.array([[1.0, 128, 4096], [1, 1024, 131072], [1, 1024, 524288]])
    np.testing.assert_allclose(nonnegative(A, A @ [1e-4, 1e-6, 1e-9]), [1e-4, 1e-6, 1e-9])
