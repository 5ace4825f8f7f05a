"""What stands below the job's table."""

from experiments.reporting.job_report import reached_note


def test_shares_that_were_reached_have_decimals_and_counts_have_none():
    assert reached_note({"reached": {"k_reached": 31, "ratio_reached": 0.50213}}) == ", k reached 31, ratio reached 0.5021"
    assert reached_note({}) == ""
