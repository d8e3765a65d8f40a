//! The command line: arguments in, an action out.

#![allow(rustdoc::broken_intra_doc_links, reason = "help names tables of the profile: [database]")]

mod dump;
mod hold;
mod options;
mod restore;

use anyhow::Result;
use clap::{Parser, Subcommand};
use common::status::Report;
use dump::{Dump, List, Prune};
use hold::{Confirm, Drain, Hold, Holder, Release, Status};
use restore::{Check, DropReplaced, Restore, Verify};

/// Dated, complete, private dumps of a PostgreSQL database.
///
/// A dump is a folder named by its date (UTC) that is either complete or not
/// there. It holds the whole database (pg_dump, directory format), the roles and
/// settings it needs, and dump.json, which says what it is. The database is the one named by
/// options, else by the profile's [database], else the one Nextcloud uses
/// (nc-maint is asked).
#[derive(Debug, Parser)]
#[command(name = "pg-snap", version, max_term_width = 80, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    action: Action,
    /// Print the JSON object on stdout even where that is a terminal.
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  pg-snap dump home                    the database of profile 'home'
  pg-snap list home
  pg-snap prune home --keep 3
  nc-maint run home -- sh -c 'pg-snap drain home && pg-snap hold home &&
      pg-snap confirm home'             with the files taken before confirm
  pg-snap dump home --held && pg-snap release home
  pg-snap restore home --database nextcloud_looked_at \\
      --admin-user postgres --admin-host /run/postgresql
                                       beside the one in use; with its name and
                                       --yes it replaces that, and no file: the
                                       whole instance is the script restore's
  pg-snap verify home --newest         would it come back, and fit?
  pg-snap dump --host /run/postgresql --name nextcloud --user nextcloud \\
      --dumps /srv/dumps               without any profile

PROFILE names /etc/nc-backup/PROFILE.toml; --config FILE names another file.

Passwords come from a file (--password-file) or from Nextcloud. They reach
PostgreSQL's programs as a password file in memory, never as an argument or a
variable. Without one, PostgreSQL's own ways remain: peer, trust, ~/.pgpass.
The caller's PG* variables are ignored.

PostgreSQL in a container: --host docker:NAME (or podman:NAME, and :PORT if it
is not 5432) asks for its address each time. The clients are the host's, and not
older than the server; or publish its port on 127.0.0.1, and set e.g.
  pg_dump = [\"docker\", \"exec\", \"-i\", \"db\", \"pg_dump\"]
and the same for pg_restore and psql, mount the dump folder in the container
under the same path, and let the container's own rule admit them: they do not
see the password file (the usual image trusts its own socket).

The last line on stdout is one JSON object (docs/status.schema.json); on a
terminal a table for people, unless --json is given.
Exit codes: 0 done; 1 failed, and undone; 2 usage; 3 restored, and something is
not as it was (warnings); 4 something was left behind (the object says what); 69
no server or no program, or it hangs; 75 another dump, prune or restore runs; 77
rights or password; 78 profile or version wrong; 128+N signal.";

#[derive(Debug, Subcommand)]
enum Action {
    Dump(Dump),
    Drain(Drain),
    Hold(Hold),
    Confirm(Confirm),
    Release(Release),
    Status(Status),
    List(List),
    Prune(Prune),
    Restore(Restore),
    DropReplaced(DropReplaced),
    Verify(Verify),
    Check(Check),
    #[command(hide = true)]
    Holder(Holder),
}

impl Cli {
    /// The action's name and the profile, for the status object.
    pub(crate) fn names(&self) -> (&'static str, Option<String>) {
        let (name, named) = match &self.action {
            Action::Dump(a) => ("dump", &a.place.named),
            Action::Drain(a) => ("drain", &a.named),
            Action::Hold(a) => ("hold", &a.named),
            Action::Confirm(a) => ("confirm", &a.named),
            Action::Release(a) => ("release", &a.named),
            Action::Status(a) => ("status", &a.named),
            Action::List(a) => ("list", &a.place.named),
            Action::Prune(a) => ("prune", &a.place.named),
            Action::Restore(a) => ("restore", &a.place.named),
            Action::DropReplaced(a) => ("drop-replaced", &a.named),
            Action::Holder(a) => ("holder", &a.named),
            Action::Verify(a) => ("verify", &a.place.named),
            Action::Check(a) => ("check", &a.named),
        };
        (name, named.profile.clone())
    }

    /// Does it.
    pub(crate) fn run(self, report: &mut Report) -> Result<()> {
        match self.action {
            Action::Dump(a) => a.run(report),
            Action::Drain(a) => a.run(report),
            Action::Hold(a) => a.run(report),
            Action::Confirm(a) => a.run(report),
            Action::Release(a) => a.run(report),
            Action::Status(a) => a.run(report),
            Action::List(a) => a.run(report),
            Action::Prune(a) => a.run(report),
            Action::Restore(a) => a.run(report),
            Action::DropReplaced(a) => a.run(report),
            Action::Verify(a) => a.run(report),
            Action::Check(a) => a.run(report),
            Action::Holder(a) => a.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound_and_its_help_fits_80_columns_and_documents_everything() {
        testkit::help::is_sound(Cli::command());
    }
}
