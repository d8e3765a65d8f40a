//! `link-sync`: dated hard-link snapshots. See `docs/architecture.md` for how its parts fit together.

mod account;
mod acls;
mod actions;
mod agent;
mod budget;
mod cli;
mod copy;
mod diff;
mod far;
mod find;
mod fsid;
mod index;
mod layer;
mod list;
mod maintenance;
mod meant;
mod moved;
mod names;
mod parallel;
mod paste;
mod progress;
mod protocol;
mod prune;
mod pulse;
mod reach;
mod restore;
mod retention;
mod rsync;
mod serve;
mod session;
mod settings;
mod signs;
mod silence;
mod source;
mod ssh;
mod store;
mod timing;
mod told;
mod tree;
mod verify;
mod walk;
mod watch;
mod writers;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use cli::{Action, Cli};
use common::process;
use common::status::{self, Report};

const TOOL: &str = "link-sync";

fn main() -> ExitCode {
    let Cli { action, json } = Cli::parse();
    let report = |name: &str, profile: Option<&str>, work: &dyn Fn(&mut Report) -> Result<()>| {
        status::run(TOOL, env!("CARGO_PKG_VERSION"), name, profile, json, work)
    };
    match &action {
        Action::Stage(run) => {
            report("stage", run.name(), &|r| actions::step(agent::Task::Stage, run, run.allow(), r))
        }
        Action::Settle(settle) => report("settle", settle.run.name(), &|r| {
            actions::step(agent::Task::Settle, &settle.run, settle.allow(), r)
        }),
        Action::Publish(run) => {
            report("publish", run.name(), &|r| actions::step(agent::Task::Publish, run, run.allow(), r))
        }
        Action::Abort(abort) => report("abort", abort.run.name(), &|r| actions::abort(abort, r)),
        Action::Snapshot(run) => report("snapshot", run.name(), &|r| actions::snapshot(run, r)),
        Action::List(list) => report("list", list.profile.profile.as_deref(), &|r| list::list(list, r)),
        Action::Find(find) => report("find", find.profile.profile.as_deref(), &|r| find::find(find, r)),
        Action::Diff(diff) => report("diff", diff.profile.profile.as_deref(), &|r| diff::diff(diff, r)),
        Action::Copy(copy) => report("copy", copy.profile.profile.as_deref(), &|r| copy::copy(copy, r)),
        Action::Layer(args) => report("layer", args.profile.profile.as_deref(), &|r| layer::layer(args, r)),
        Action::Restore(restore) => {
            report("restore", restore.profile.profile.as_deref(), &|r| restore::restore(restore, r))
        }
        Action::Verify(args) => report("verify", args.profile.profile.as_deref(), &|r| verify::run(args, r)),
        Action::Prune(prune) => {
            report("prune", prune.profile.profile.as_deref(), &|r| prune::prune(prune, r))
        }
        Action::Profile(named) => report("profile", named.profile.as_deref(), &|r| told::profile(named, r)),
        Action::Serve(serve) => silent(process::normal().and_then(|()| actions::serve_store(serve))),
        Action::CopyEnd(end) => silent(process::normal().and_then(|()| actions::copy_end(end))),
        Action::Agent(agent) => silent(
            process::normal()
                .and_then(|()| common::signals::install())
                .and_then(|()| agent::live::live(&agent.run.options(), agent.listen_fd, agent.lock_fd)),
        ),
        Action::Tunnel(tunnel) => {
            match process::normal().and_then(|()| rsync::tunnel(tunnel.fd, &tunnel.argv)) {
                Ok(code) => ExitCode::from(code),
                Err(error) => silent(Err(error)),
            }
        }
    }
}

/// For the actions whose stdout is not for a status object.
fn silent(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    common::say!(TOOL, "{error:#}");
    if let Some(hint) = status::describe(&error)["hint"].as_str() {
        common::say!(TOOL, "hint: {hint}");
    }
    ExitCode::from(common::fault::kind_of(&error).exit_code())
}
