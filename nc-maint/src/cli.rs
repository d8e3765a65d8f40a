//! The command line: what can be asked, and how it is explained.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use common::profile::{Method, Span};

const AFTER: &str = r"Examples:
  nc-maint status --root /var/www/nextcloud
  nc-maint run home --max 10m -- rsync -a /srv/data/ /backup/data/
  nc-maint off home --if-ours
  nc-maint inspect home --secrets-to /root/nextcloud-secrets.json
  nc-maint on --root /srv/nc --occ docker --occ exec --occ -u --occ www-data \
      --occ nextcloud --occ php --occ occ

Every action prints one JSON object on stdout, or, where that is a terminal, a
table for people, unless --json is given. What happens is told on stderr.

Exit codes:
  0  the state asked for holds      69  occ, php or the web server is missing
  1  failed, and undone             75  another run is active
  2  wrong usage                    77  the rights do not suffice
  4  maintenance could not be       78  the profile or the instance is wrong
     proven off: see left_behind    128+N  stopped by signal N, after clean-up
run ends with the command's own exit code where below 128; 4 outranks it.
";

/// Nextcloud's maintenance switch: proven, and always thrown back.
#[derive(Debug, Parser)]
#[command(name = "nc-maint", version, after_help = AFTER, max_term_width = 80)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) action: Action,
    /// Print the JSON object on stdout even where that is a terminal
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Tell whether maintenance is on, for occ and for clients, and whose it is
    Status {
        #[command(flatten)]
        options: Options,
    },
    /// Switch maintenance on and prove it; it stays on until `off`, or --max
    ///
    /// Without --max occ throws the switch, and it stays on until `off`. With it (or with `method =
    /// "drop-in"`: then `max` of the profile counts) it ends by itself, even if nc-maint is gone.
    On {
        #[command(flatten)]
        options: Options,
        /// Ends by itself after this time (method drop-in only)
        #[arg(long, value_name = "TIME")]
        max: Option<Span>,
    },
    /// Switch maintenance off and prove it
    ///
    /// A restore that was not finished counts as finished from then on: what is there is backed up
    /// again. Not with --if-ours.
    Off {
        #[command(flatten)]
        options: Options,
        /// Only if nc-maint switched it on and no run is at work (for ExecStopPost= and at boot)
        #[arg(long)]
        if_ours: bool,
        /// First tell clients that the server went back in time (after a restore): without it they
        /// delete what they have and it has not. When that fails, maintenance stays on
        #[arg(long, conflicts_with = "if_ours")]
        data_fingerprint: bool,
    },
    /// Switch on, run a command, switch off: whatever happens
    ///
    /// The command runs as the user who called sudo, with a clean environment, HOME, USER,
    /// NC_BACKUP_PROFILE and NC_BACKUP_RUN_ID; it reads nothing. JSON objects among its output lines
    /// go into data.command.output, all else to stderr. Maintenance that was on before stays on.
    Run {
        #[command(flatten)]
        options: Options,
        /// Longest time for it all; then the command is stopped and maintenance ends [default: 30m]
        #[arg(long, value_name = "TIME")]
        max: Option<Span>,
        /// The command and its arguments, after `--`; no shell is involved
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Tell what a backup needs from Nextcloud's configuration
    Inspect {
        #[command(flatten)]
        options: Options,
        /// Write the database password to FILE (JSON, mode 0600) instead of leaving it out
        #[arg(long, value_name = "FILE")]
        secrets_to: Option<PathBuf>,
    },
    /// Show a notification to users of Nextcloud, in the browser and in its apps
    ///
    /// By its app `notifications`, through occ: not possible in maintenance. What is too long is cut.
    Notify {
        #[command(flatten)]
        options: Options,
        /// A user who sees it; repeat it
        #[arg(long, required = true, value_name = "USER")]
        user: Vec<String>,
        /// One line
        #[arg(long, value_name = "TEXT")]
        subject: String,
        /// More about it
        #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
        message: String,
    },
    /// Write maintenance into the configuration of a copy that is not in place yet
    ///
    /// For a restore: DIR holds config/config.php as it was saved. Nothing of it is executed; a
    /// leftover drop-in of a backup is removed. `off` opens the instance, once it is in place.
    Close {
        /// The folder that will be Nextcloud's
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// The background half of `run`; started by it, with its job on stdin.
    #[command(hide = true)]
    Guardian,
}

/// Which instance, and how it is reached. Each wins over the profile's setting of the same name.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name of a profile, /etc/nc-backup/PROFILE.toml; without one, options alone must do
    pub(crate) profile: Option<String>,
    /// Another file as the profile
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Nextcloud's folder, the one that holds occ and config/
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// One word of the command that runs occ; repeat it [default: php ROOT/occ, as its owner]
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) occ: Vec<OsString>,
    /// Base URL; the switch is then believed only when status.php there shows it
    #[arg(long)]
    pub(crate) url: Option<String>,
    /// How long clients may need to see the switch [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(crate) url_timeout: Option<Span>,
    /// How long one call of occ may take before it is ended [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub(crate) occ_timeout: Option<Span>,
    /// How long maintenance lasts when a run and its guardian are killed at once (method drop-in)
    /// [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub(crate) lease: Option<Span>,
    /// How the switch is thrown: drop-in or occ [default: drop-in where that is possible]
    #[arg(long, value_parser = method)]
    pub(crate) method: Option<Method>,
    /// Where the run record is kept [default: /var/lib/nc-backup/PROFILE]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the lock is [default: /run/nc-backup/PROFILE, or `run` in --state-dir]
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
}

fn method(word: &str) -> Result<Method, String> {
    let all = [Method::DropIn, Method::Occ];
    all.into_iter().find(|m| m.word() == word).ok_or_else(|| "use drop-in or occ".into())
}

impl Options {
    /// What goes under `profile` in the report.
    pub(crate) fn profile_name(&self) -> Option<String> {
        let stem = || Some(self.config.as_ref()?.file_stem()?.to_string_lossy().into_owned());
        self.profile.clone().or_else(stem)
    }
}

impl Action {
    /// The action's word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Action::Status { .. } => "status",
            Action::On { .. } => "on",
            Action::Off { .. } => "off",
            Action::Run { .. } => "run",
            Action::Inspect { .. } => "inspect",
            Action::Notify { .. } => "notify",
            Action::Close { .. } => "close",
            Action::Guardian => "guardian",
        }
    }

    /// Its options; the guardian has none, nor has what is done to a mere copy.
    pub(crate) fn options(&self) -> Option<&Options> {
        match self {
            Action::Status { options }
            | Action::On { options, .. }
            | Action::Off { options, .. }
            | Action::Run { options, .. }
            | Action::Inspect { options, .. }
            | Action::Notify { options, .. } => Some(options),
            Action::Close { .. } | Action::Guardian => None,
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
