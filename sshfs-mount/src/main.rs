//! sshfs-mount: mounts the folder of S3, tells a hung mount from a healthy one, and ends it.

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Action, Cli};

mod actions;
mod cli;
mod mounted;
mod options;
mod record;
mod relay;
mod scope;
mod session;
mod settings;
mod sftp_extensions;
mod sshfs;
mod wire;

const TOOL: &str = "sshfs-mount";

fn main() -> ExitCode {
    let Cli { action, json } = Cli::parse();
    let (name, place, work): (_, _, actions::Work) = match &action {
        Action::Mount(place) => ("mount", place, actions::mount),
        Action::Unmount(place) => ("unmount", place, actions::unmount),
        Action::Status(place) => ("status", place, actions::status),
        Action::Relay(wish) => return silent(common::process::normal().and_then(|()| relay::run(wish))),
    };
    common::status::run(TOOL, env!("CARGO_PKG_VERSION"), name, place.profile.as_deref(), json, |report| {
        work(&settings::Settings::new(place.clone())?, report)
    })
}

/// For the relay, whose stdout belongs to ssh.
fn silent(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    common::say!(TOOL, "{error:#}");
    ExitCode::from(common::fault::kind_of(&error).exit_code())
}
