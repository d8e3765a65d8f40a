//! `luks-mount`: the encrypted container, from its file to a mounted file system and back.

mod adopt;
mod attach;
mod begun;
mod cli;
mod create;
mod cryptsetup;
mod detach;
mod dirty;
mod facts;
mod fs;
mod grow;
mod header;
mod image;
mod key;
mod keys;
mod lease;
mod losetup;
mod marks;
mod record;
mod settings;
mod stack;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;

const TOOL: &str = "luks-mount";

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if let cli::Action::Beside(beside) = &cli.action {
        // A child of ours: its stdout is an answer to us, not a status object.
        return lease::answer(beside);
    }
    let (action, profile) = cli.names();
    common::status::run(TOOL, env!("CARGO_PKG_VERSION"), action, profile.as_deref(), |report| cli.run(report))
}
