//! offsite-push with stand-ins for its siblings (`world.rs`).
//! The order of a push, what a failure, a signal or a kill at each step leaves, the generation, and the view. As root,
//! in a mount namespace of each test's own.
#![expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faults;
mod generation;
mod killed;
mod layers;
mod layers_kept;
mod nights_of_layers;
mod prune;
mod real;
mod scripts;
mod settings;
mod story;
mod verify;
mod view;
mod whole;
mod world;
