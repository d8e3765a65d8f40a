//! nc-maint: Nextcloud's maintenance switch, proven by asking again, and always thrown back.
//!
//! `run` is two processes. The *front* is the one that was started: it relays signals and streams and
//! prints the report. The *guardian*, in a session of its own, throws the switch, owns the command and
//! throws the switch back, whatever becomes of the front. If the guardian is killed, the front does it.

mod actions;
mod claim;
mod cli;
mod close;
mod config_file;
mod curl;
mod dropin;
mod guardian;
mod inspect;
mod instance;
mod mark;
mod method;
mod occ;
mod php;
mod relay;
mod renewal;
mod run;
mod said;
mod settings;
mod switch;
mod tree;
mod wire;

use std::process::ExitCode;

use clap::Parser as _;
use common::profile::Profile;
use common::status;

use crate::cli::{Action, Cli};
use crate::settings::Settings;

/// The name in messages and in the status object.
const TOOL: &str = "nc-maint";

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Action::Close { dir } = &cli.action {
        return status::run(TOOL, env!("CARGO_PKG_VERSION"), "close", None, cli.json, |report| {
            close::close(dir, report)
        });
    }
    let Some(options) = cli.action.options() else { return guardian::main() };
    let profile = options.profile_name();
    status::run(TOOL, env!("CARGO_PKG_VERSION"), cli.action.word(), profile.as_deref(), cli.json, |report| {
        let profile = Profile::load(options.profile.as_deref(), options.config.as_deref())?;
        let settings = Settings::new(&profile, options)?;
        php::only_roots_apps(&settings)?;
        match &cli.action {
            Action::Status { .. } => actions::status(&settings, report),
            Action::On { max, .. } => actions::on(settings.lasting(*max)?, report),
            Action::Off { if_ours, data_fingerprint, .. } => {
                if *data_fingerprint {
                    switch::renew_data_fingerprint(&settings)?;
                    report.changed = true;
                }
                actions::off(&settings, *if_ours, report)
            }
            Action::Run { max, command, .. } => run::run(&settings.with_max(*max)?, command, report),
            Action::Inspect { secrets_to, .. } => inspect::inspect(&settings, secrets_to.as_deref(), report),
            Action::Notify { user, subject, message, .. } => {
                actions::notify(&settings, user, subject, message, report)
            }
            Action::Close { .. } | Action::Guardian => Ok(()),
        }
    })
}
