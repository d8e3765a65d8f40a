//! Checks that can be taken out, to show that the test of each one fails without it (mutation testing).
//!
//! A check whose absence would let somebody in or lose something is written
//! `if !mutant::active("name") && …`. Without the feature `mutants`, which no build for use has, that is the
//! constant `false` and leaves nothing in the program. With it, the name of the one check that is out stands in a
//! file whose path is fixed when the tests are built: the tools clear their environment, so a variable would
//! not reach them. `tests/mutants/list` says which test must fail for each; `tests/mutants/run` runs them.

/// Whether the check `name` is taken out. Never, except in a build with the feature `mutants`.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn active(_name: &str) -> bool {
    false
}

/// Whether the check `name` is the one that is taken out.
#[cfg(feature = "mutants")]
#[must_use]
pub fn active(name: &str) -> bool {
    std::fs::read_to_string(env!("NC_BACKUP_MUTANT_FILE")).is_ok_and(|text| text.trim() == name)
}
