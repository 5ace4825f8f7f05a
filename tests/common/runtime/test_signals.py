"""What a signal becomes on its way out of a command."""

import os
import signal

import pytest

from common.runtime.signals import Ended, raised_signals


def test_another_error_that_a_signal_became_is_told_as_the_signal():
    """As where matplotlib's module in C is being imported: "ImportError: initialization failed"."""
    with pytest.raises(Ended) as ended, raised_signals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.sigtimedwait([], 1)
        except Ended:
            raise ImportError("initialization failed") from None
    assert ended.value.exit_code == 143


def test_an_error_without_a_signal_is_itself():
    with pytest.raises(ImportError), raised_signals():
        raise ImportError("initialization failed")
