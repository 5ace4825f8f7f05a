from tests.four_levels import tiny_teacher_folder  # noqa: F401  # the fixture, in place of the one of two levels
