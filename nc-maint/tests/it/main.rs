//! nc-maint against the Nextcloud stand-in (`tests/fakes/nextcloud`), as root, with www-data as the web user.
#![expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod boot;
mod callers;
mod dropin;
mod inspect;
mod killed;
mod notify;
mod owners;
mod rights;
mod run;
mod sudo;
mod switch;
mod world;
