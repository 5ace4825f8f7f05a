"""Jobs, sweeps, training and reports, on what common and the methods make possible.

The steps of a job are here for Python too (docs/in_python.md): experiments.Job, make_plans, prune, train_student, compare. They
are loaded when first asked for, so that `python run.py --help` stays fast.
"""

from common.runtime.lazy_names import names_of

PUBLIC = {
    "Job": "experiments.shared.job",
    "make_plans": "experiments.job.planning",
    "prune": "experiments.job.planning",
    "train_student": "experiments.training.train_student",
    "compare": "experiments.job.compare",
}
__all__ = list(PUBLIC)
__getattr__ = names_of(__name__, PUBLIC)
