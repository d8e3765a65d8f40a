//! Whoever is to be told how a run ended is told: once, by every way, and no secret is seen on the way.
#![expect(clippy::disallowed_methods, reason = "tests start what they test as its users do")]

mod ages;
mod runs;
mod ways;
mod world;
