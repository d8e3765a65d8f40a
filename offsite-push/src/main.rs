//! `offsite-push`: the encrypted copy elsewhere. Composes sshfs-mount, luks-mount and link-sync.

mod cli;
mod copying;
mod disk;
mod generation;
mod inside;
mod layered;
mod layers;
mod lease_keeper;
mod leftovers;
mod link;
mod open_view;
mod pins;
mod promise;
mod prune;
mod push;
mod room;
mod settings;
mod shown;
mod siblings;
mod status;
mod stop;
mod store;
mod tell;
mod until;
mod verify;
mod view;
mod whole;

use std::process::ExitCode;

use clap::Parser as _;

const TOOL: &str = "offsite-push";

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if let cli::Action::Inside(action) = &cli.action {
        // A child of ours: its stdout is an answer to us, not a status object.
        return inside::answer(action);
    }
    let (action, profile) = cli.names();
    common::status::run(TOOL, env!("CARGO_PKG_VERSION"), action, profile.as_deref(), |report| cli.run(report))
}
