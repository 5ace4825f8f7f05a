"""What every method shares: teachers, plans, sampling, distillation, measuring.

The names that other projects import are here too (PUBLIC): common.load_teacher, common.apply_plan, common.Method, ... They are
loaded when first asked for, so that `import common` stays cheap.
"""

from common.runtime import library_messages, torchvision_import
from common.runtime.lazy_names import names_of

torchvision_import.install()
library_messages.install()

PUBLIC = {
    "load_teacher": "common.models.loading",
    "load_denoiser": "common.models.loading",
    "save_student": "common.models.saving",
    "apply_plan": "common.pruning.plan",
    "Method": "common.pruning.method",
    "Plan": "common.pruning.plan",
    "Edit": "common.pruning.plan",
    "save_sparse": "common.export.sparse_file",
    "load_sparse": "common.export.sparse_file",
}
__all__ = list(PUBLIC)
__getattr__ = names_of(__name__, PUBLIC)
