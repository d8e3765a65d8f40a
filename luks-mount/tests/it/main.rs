//! luks-mount with real loop devices, dm-crypt and file systems, as root: here or in the guest of `tests/vm-run`.
#![expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adopt;
mod attack;
mod half;
mod hangs;
mod keys;
mod link;
mod refusals;
mod story;
mod two;
mod unclean;
mod world;
