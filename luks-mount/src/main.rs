//! `luks-mount`: the encrypted container, from its file to a mounted file system and back.

mod adopt;
mod attach;
mod begun;
mod cli;
mod create;
mod cryptsetup;
mod detach;
mod dmsetup;
mod facts;
mod fs;
mod grow;
mod header;
mod holding;
mod image;
mod key;
mod keys;
mod lease;
mod lease_file;
mod losetup;
mod marks;
mod record;
mod settings;
mod stack;
mod touch;
mod watch;
mod writeback;

use std::process::ExitCode;

use clap::Parser as _;
use cli::Command;

const TOOL: &str = "luks-mount";

fn main() -> ExitCode {
    let cli::Cli { command, json } = cli::Cli::parse();
    let action = match command {
        // Children of ours: their stdout is an answer to us, not a status object.
        Command::Touch(touch) => return touch::answer(&touch),
        Command::Action(action) => action,
    };
    let (name, profile) = action.names();
    common::status::run(TOOL, env!("CARGO_PKG_VERSION"), name, profile.as_deref(), json, |report| {
        action.run(report)
    })
}
