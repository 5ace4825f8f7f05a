"""benchmarks/full_size.py on a small teacher: every stage that it times."""

import pytest

from benchmarks import full_size

pytestmark = pytest.mark.slow


def test_the_stages_of_a_job(tiny_teacher_folder, tmp_path):
    data = full_size.write_captioned_images(tmp_path / "data", 64)
    method = ["method=magnitude", *full_size.METHODS["magnitude"]]
    settings = ["task=t2i", *method, *data, f"teacher.path={tiny_teacher_folder}", *full_size.SMALL, *full_size.ONE_STEP]
    found = full_size.run_stages(
        [*settings, "distill=bk_sdm", "logging=none"], tmp_path / "students" / "magnitude", distill=True
    )
    assert list(found["seconds"]) == ["load", "plan", "distill", "save, load", "sample"]
    assert found["nonzero"] > 0 and (tmp_path / "students" / "magnitude" / "student" / "model_index.json").is_file()
