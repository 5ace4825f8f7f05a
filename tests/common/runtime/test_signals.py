"""What a signal becomes on its way out of a command."""

import pytest

from common.runtime.signals import raised_signals
from tests.test_ends import script


def test_another_error_that_a_signal_became_is_told_as_the_signal():
    """As where matplotlib's module in C is being imported: "ImportError: initialization failed"."""
    found = script("""
        try:
            with raised_signals():
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(60)
                except Ended:
                    raise ImportError("initialization failed") from None
        except Ended as ended:
            print(ended.exit_code)
    """)
    assert found == ["143"]


def test_an_error_without_a_signal_is_itself():
    with pytest.raises(ImportError), raised_signals():
        raise ImportError("initialization failed")


def test_a_signal_that_is_lost_where_an_object_is_freed_comes_again():
    """As in the callbacks of weak references while torch.compile works: Python only prints what is raised there."""
    found = script("""
        class Freed:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)

        try:
            with raised_signals():
                Freed()
                time.sleep(60)
        except Ended as ended:
            print(ended.exit_code)
    """)
    assert found == ["143"]
