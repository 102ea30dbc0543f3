"""The peers, their tests, and which of these lockd cannot pass, and why."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Suite(NamedTuple):
    """The tests of one peer.

    Attributes:
        peer: the name of the peer on PyPI; `adapters/sitecustomize.py` knows it.
        version: which one.
        sha256: of its sdist.
        tests: the files and folders to run.
        fewest: how many tests must pass.
        left_out: files, and beginnings of names of tests, that are not run, and why.
    """

    peer: str
    version: str
    sha256: str
    tests: tuple[str, ...]
    fewest: int
    left_out: Mapping[str, str] = {}


NO_FILE: Final = "looks at a file, and lockd makes none"
NO_DESCRIPTOR: Final = "uses on_acquired, which gets a descriptor; lockd has none"
INSIDE: Final = "replaces what filelock itself calls: open, flock, close or sleep"

FILELOCK: Final = {
    "test_acquire_signal.py::test_acquire_from_a_signal_handler_during_a_re": INSIDE,
    "test_admission.py::test_shared_instance_admission_wait_respects": NO_DESCRIPTOR,
    "test_admission.py::test_shared_instance_refuses_entry_during": NO_DESCRIPTOR,
    "test_admission.py::test_shared_instance_release_behind_a_failed": NO_DESCRIPTOR,
    "test_admission.py::test_shared_instance_waiter_enters_once": NO_DESCRIPTOR,
    "test_context_errors.py::test_close_error_raise_is_exact": INSIDE,
    "test_context_errors.py::test_close_not_reached_when_unlock_fails": INSIDE,
    "test_context_errors.py::test_context_chain_keeps_release_error": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_group_base_exception": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_group_detaches": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_group_handles_deep_body": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_group_preserves_distinct": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_group_renders": NO_DESCRIPTOR,
    "test_context_errors.py::test_context_release_only_failure": NO_DESCRIPTOR,
    "test_context_errors.py::test_dual_body_and_close_failure_grouped": INSIDE,
    "test_fork_audit.py::test_native_descriptor_is_visible_during_flock": INSIDE,
    "test_fork_coordination.py::test_fork_interrupted_while_waiting": INSIDE,
    "test_fork_descriptors.py::test_child_closes_descriptor_held": INSIDE,
    "test_fork_descriptors.py::test_fork_waits_for_descriptor": INSIDE,
    "test_fork_descriptors.py::test_unrelated_acquisitions_reach": INSIDE,
    "test_fork_ownership.py::test_async_child_release_preserves_parent_lock": (
        "its AsyncFileLock locks a file"
    ),
    "test_fork_ownership.py::test_fork_from_on_acquired": NO_DESCRIPTOR,
    "test_lock.py::test_bad_lock_file": NO_FILE,
    "test_on_acquired.py": NO_DESCRIPTOR,
    "test_relative_paths.py::test_acquire_without_working_directory": NO_FILE,
    "test_relative_paths.py::test_each_acquisition_resolves": NO_FILE,
    "test_relative_paths.py::test_equivalent_relative_singleton": NO_FILE,
    "test_relative_paths.py::test_final_symlink_backend_refuses": NO_FILE,
    "test_relative_paths.py::test_nested_acquire_without_working": NO_FILE,
    "test_relative_paths.py::test_shared_singleton_refuses_moved": NO_FILE,
    "test_relative_paths.py::test_singleton_after": NO_FILE,
    "test_relative_paths.py::test_unshared_singleton_follows": NO_FILE,
    "test_relative_paths.py::test_waiter_after_directory_rename": NO_FILE,
    "test_release_interruption.py::test_errno_after_unix_unlock": INSIDE,
    "test_release_interruption.py::test_errno_before_unix_unlock": INSIDE,
    "test_release_interruption.py::test_release_reentered_after_unlock": INSIDE,
    "test_settings.py::test_default_mode_respects_umask": NO_FILE,
    "test_settings.py::test_explicit_mode_calls_fchmod": NO_FILE,
    "test_settings.py::test_explicit_mode_overrides_umask": NO_FILE,
    "test_shutdown.py::test_concurrent_force_releases": NO_FILE,
    "test_timeout.py::test_poll_interval_acquire_override": INSIDE,
    "test_timeout.py::test_poll_interval_used_by_context_manager": INSIDE,
    "test_timeout_validation.py::test_timeout_at_exact_deadline": INSIDE,
}

SUITES: Final = (
    Suite(
        "filelock",
        "4.3.1",
        "4c5ee627c401f1863ac6a0de9a14a28d3bb5f8c730b45e2fd6e5dbc79cf34b9e",
        ("tests/core",),
        fewest=840,
        left_out={f"tests/core/{name}": why for name, why in FILELOCK.items()},
    ),
    Suite(
        "fasteners",
        "0.20",
        "55dce8792a41b56f727ba6e123fcaee77fd87e638a6863cec00007bfea84c8d8",
        ("tests",),
        fewest=52,
    ),
    Suite(
        "oslo.concurrency",
        "7.6.1",
        "8dcd3a6e931fc24d53832e887a124e3872e44e1af015cab47783bc67ad5b85e7",
        ("oslo_concurrency/tests/unit/test_lockutils.py",),
        fewest=33,
    ),
    Suite(
        "tooz",
        "9.1.0",
        "69d1fea697abeb6a739219b7eaa348552aae0b0aac3d9550cbd625cbaf0e3e0a",
        ("tooz/tests/test_coordination.py",),
        fewest=32,
    ),
    Suite(
        "portalocker",
        "4.4.2",
        "7ac85bb2aa3c7873bf2ac72586fc6154afa4671ac786994a16617a6b7ccb3e5e",
        ("portalocker_tests",),
        fewest=330,
        left_out={
            "portalocker_tests/test_redis.py": "locks in Redis",
            "portalocker_tests/test_redis_random_sleep.py": "locks in Redis",
            "portalocker_tests/test_redis_reply_deadline.py": "locks in Redis",
            "portalocker_tests/test_optional_redis.py": "locks in Redis",
            "portalocker_tests/test_combined.py": "its build",
            "portalocker_tests/test_readme.py": "its README",
            "portalocker_tests/test_version.py": "its build",
            "portalocker_tests/test_windows_locker.py": "Windows",
        },
    ),
)
