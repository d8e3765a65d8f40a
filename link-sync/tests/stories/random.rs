//! Random stories: what fails is made smaller, and told with the seed that brings it back.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// The number in the variable `name`, if it is set.
pub fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).map_or(usual, |n| n.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// A seed, in the variable `name` or another one each time; told.
pub fn seed(name: &str) -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number(name, now.subsec_nanos());
    eprintln!("{name}={seed}");
    seed
}

/// Runs `story`, which says what went wrong, for so many values; of one that fails, up to `smaller` smaller ones.
pub fn try_many<S: Strategy>(
    seed: u32,
    cases: u32,
    smaller: u32,
    values: &S,
    story: impl Fn(&S::Value) -> String,
) {
    let config = Config { cases, max_shrink_iters: smaller, failure_persistence: None, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let result = TestRunner::new_with_rng(config, random).run(values, |value| {
        let wrong = story(&value);
        if wrong.is_empty() { Ok(()) } else { Err(TestCaseError::fail(wrong)) }
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
