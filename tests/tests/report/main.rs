//! `nc-backup report`: the page tells what `status` and the history of the runs tell, whatever they hold, and is written whole.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

mod browser;
mod looked_at;
mod told;
mod world;
mod written;
