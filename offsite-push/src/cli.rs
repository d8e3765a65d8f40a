//! The command line: arguments in, an action out.

use anyhow::Result;
use clap::{Parser, Subcommand};
use common::fault::Fault;
use common::profile::{Bytes, Layout, TimeOfDay};
use common::status::Report;

use crate::inside::Inside;
use crate::layered::Sizes;
use crate::settings::{Place, Settings};
use crate::{prune, push, status, store, until, verify, view};

/// The encrypted copy elsewhere: pushes the newest snapshot, and opens it to look.
///
/// On S2, as root. `push` mounts S3's folder (sshfs-mount), opens the encrypted
/// container in it (luks-mount), copies the newest snapshot of the store into it
/// (link-sync copy), and takes everything down again, whatever happens. Only
/// what changed since the last push is sent. S3 sees ciphertext only.
#[derive(Debug, Parser)]
#[command(name = "offsite-push", version, max_term_width = 80, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) action: Action,
}

const AFTER: &str = "\
Examples:
  offsite-push push home                     the newest snapshot, if it is new
  offsite-push push home --bwlimit 500k      with at most 500 KiB a second
  offsite-push status home
  offsite-push view home                     open it read-only, to look
  offsite-push unview home
  offsite-push verify home --sample 5%       is it still what was pushed?

PROFILE names /etc/nc-backup/PROFILE.toml; --config FILE names another file.
The container is made by `luks-mount create`. sshfs-mount, luks-mount and
link-sync are expected beside this program; their status objects are in
data.steps. An older container than the one left behind, or another one, is
refused: see push --accept-container.

The last line on stdout is one JSON object; docs/status.schema.json has it.
Exit codes: 0 the newest snapshot is there; 1 failed, nothing is mounted; 2
usage; 3 pushed, but something was left out, or the time was over (--until), or
older dates in the container are not whole; 4 something is still mounted (the
object says what); 69 S3 or a program is not there; 75 another push, or a view,
is open; 77 rights; 78 profile, store or container wrong; 128+N signal.";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Copy the newest snapshot into the container, if it is not there yet.
    ///
    /// What a killed push left mounted is cleared first. When the newest snapshot
    /// was pushed before, the container is not opened. A push that was stopped is
    /// continued by the next one. What the newest date in the container has lost
    /// is sent again. After a repair of its file system, whoever made it, the
    /// names and sizes of all dates are compared first; what is not whole is told
    /// at each push (exit code 3) until `verify` of all dates finds nothing, or
    /// those dates are pruned.
    ///
    /// data: store, date, id, failed_step, push (date, id, base_date, sent_bytes,
    /// received_bytes, copied_bytes, written_bytes, duration_ms, behind; with layers:
    /// layers (images, image_bytes, big_bytes), unfinished (date, images: if the
    /// time was over before all of it was sent, exit code 3)), prune (if anything
    /// was removed; see `prune`), steps (of each: step, exit_code, duration_ms,
    /// output: the tool's own object).
    Push {
        #[command(flatten)]
        place: Place,
        /// Send at most so many bytes a second, like 500k or 2m.
        #[arg(long, value_name = "RATE")]
        bwlimit: Option<Bytes>,
        /// Date of the snapshot, or 'latest' for the newest complete one.
        #[arg(long, default_value = "latest", value_parser = date)]
        date: String,
        /// Room that must stay free in the container. Default:
        /// offsite.reserve_bytes of the profile, or 64m.
        #[arg(long, value_name = "BYTES")]
        reserve_bytes: Option<Bytes>,
        /// Layout 'layers': begin no image after this time of the day, like 07:00;
        /// the next push goes on. Default: offsite.until of the profile, or no end.
        #[arg(long, value_name = "HH:MM")]
        until: Option<TimeOfDay>,
        /// For tests: no more contents in one image.
        #[arg(long, value_name = "BYTES", hide = true)]
        image_bytes: Option<Bytes>,
        /// For tests: what lies beside the images.
        #[arg(long, value_name = "BYTES", hide = true)]
        big_bytes: Option<Bytes>,
        /// Take the container as it is, once, though it is not the one left
        /// behind, or lacks dates that were, or another machine holds its lease:
        /// after it was restored, replaced or adopted, or a date was removed by
        /// hand, on purpose, or that machine is gone for good.
        #[arg(long)]
        accept_container: bool,
    },
    /// Remove from the container what the rules in [offsite.retention] do not keep.
    ///
    /// `push` does it by itself, after its copy is confirmed. Never removed: the
    /// newest, the newest sealed one, and the one the next push begins with; and
    /// no more than max_removals_per_day (10) within 24 hours. See link-sync prune.
    /// Sudo: /usr/sbin/offsite-push prune home
    ///
    /// Of dates of layout "layers" the lists go, and then the images that no list
    /// needs. Where most of what lies between two dates is superseded, one image is
    /// made of it anew, and sent: at most a quarter of what it replaces.
    ///
    /// data: prune (kept, removed, skipped, postponed, paths, snapshots: of each
    /// its date, action and reasons; layers_removed; merged: of each its date,
    /// base_date, images, images_bytes, bytes), dry_run, failed_step, steps.
    Prune {
        #[command(flatten)]
        place: Place,
        /// Open the container read-only and tell what would go, and why the rest
        /// stays.
        #[arg(long)]
        dry_run: bool,
        /// Send at most so many bytes a second, like 500k or 2m.
        #[arg(long, value_name = "RATE")]
        bwlimit: Option<Bytes>,
    },
    /// Tell what was pushed, what is waiting, and what is mounted now.
    ///
    /// data: last_push, last_verify, unconfirmed, unfinished (with layers: the date
    /// that is on its way, and its images so far), damaged (dates that are not
    /// whole), newest, behind (snapshots newer than the last one pushed), pushing,
    /// view, container, s3, s3_fsync (whether what is synced reaches S3's disk, as
    /// of the last mount), steps. Exit code 0.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Check that the container is the one left behind, and its files.
    ///
    /// Opens it read-only and compares it with the checksums and attributes in
    /// the store here (link-sync verify --against), then takes everything down.
    /// Of dates that the store no longer has, files are compared with the
    /// container's own checksums: that is weaker. All that is read comes through
    /// the link: --sample keeps it short. Exit code 1: something is wrong.
    ///
    /// Of dates of layout "layers", images and large files are hashed as they lie,
    /// and compared with what was noted here when they were sent; then the dates
    /// are shown, and all names, sizes and attributes compared. --sample is the
    /// share of images. Exit code 3: this kernel cannot show them.
    ///
    /// data: store, fresh (it is the container left behind), not_fresh_because,
    /// verify (as link-sync verify tells), layers (needed, checked, weaker, wrong:
    /// of each its layer, why, dates), seed, view, received_bytes, steps.
    Verify {
        #[command(flatten)]
        place: Place,
        /// Date of the snapshot, 'latest', or 'all'.
        #[arg(long, default_value = "all", value_parser = date_or_all)]
        date: String,
        /// Read only so many percent of the distinct files, chosen at random.
        #[arg(long, value_name = "N%", default_value = "100%", value_parser = share)]
        sample: String,
        /// Choose the sample as the run did that told this number.
        #[arg(long, value_name = "NUMBER")]
        seed: Option<u64>,
        /// Read that share of the files of layers, too, as they are shown.
        #[arg(long)]
        contents: bool,
    },
    /// Open the container read-only, to look or to restore; it stays open.
    ///
    /// Until `unview` no push is possible. What comes back keeps its owners with
    /// link-sync restore home --store STORE --path alice/files --to DIR
    ///
    /// A date of layout "layers" is a loop device for each of its images, and an
    /// overlay of them. One date is open sooner than all; once one is open, `view`
    /// of another shows that, too. Exit code 3: some dates cannot be shown.
    ///
    /// data: path (the snapshot's folder), store (the folder of the dates, for
    /// --store), date, dates (all there are), view (of layers: dates that are
    /// shown, failed, images that were mounted, duration_ms, link_bytes: both ways),
    /// mount_point, steps.
    View {
        #[command(flatten)]
        place: Place,
        /// Date of the snapshot, or 'latest' for the newest one. Default: all are
        /// shown, and the newest is told.
        #[arg(long, value_parser = date)]
        date: Option<String>,
    },
    /// Close what `view` opened, and whatever a killed push left.
    Unview {
        #[command(flatten)]
        place: Place,
        /// Only what a killed push or view left; an open view stays.
        #[arg(long)]
        if_killed: bool,
    },
    #[command(hide = true)]
    Inside(Inside),
}

fn date(text: &str) -> Result<String, String> {
    let ok = text == "latest" || store::is_date(text);
    if ok { Ok(text.to_owned()) } else { Err("a date is written like 2026-11-22T03-30-00Z".into()) }
}

fn date_or_all(text: &str) -> Result<String, String> {
    if text == "all" { Ok(text.to_owned()) } else { date(text) }
}

fn share(text: &str) -> Result<String, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match number {
        Ok(n) if n > 0.0 && n <= 100.0 => Ok(text.to_owned()),
        _ => Err("write a share like 5%, more than 0 and at most 100".into()),
    }
}

impl Cli {
    /// The action's name and the profile, for the status object.
    pub(crate) fn names(&self) -> (&'static str, Option<String>) {
        let (name, place) = match &self.action {
            Action::Push { place, .. } => ("push", place),
            Action::Status { place } => ("status", place),
            Action::Verify { place, .. } => ("verify", place),
            Action::Prune { place, .. } => ("prune", place),
            Action::View { place, .. } => ("view", place),
            Action::Unview { place, .. } => ("unview", place),
            Action::Inside(_) => return ("inside", None),
        };
        (name, place.profile.clone())
    }

    /// Does it.
    pub(crate) fn run(self, report: &mut Report) -> Result<()> {
        match self.action {
            Action::Push {
                place,
                bwlimit,
                date,
                reserve_bytes,
                until,
                image_bytes,
                big_bytes,
                accept_container,
            } => {
                let settings = Settings::load(&place)?;
                if until.is_some() && settings.profile.offsite.layout == Layout::Hardlink {
                    let message = "--until: a tree is copied in one piece, and not image by image";
                    return Err(Fault::usage(message).hint("layout = \"layers\" in [offsite]").into());
                }
                push::run(
                    &settings,
                    &push::Options {
                        bwlimit,
                        date,
                        reserve_bytes,
                        accept_container,
                        until: until::after_now(until.or(settings.profile.offsite.until))?,
                        sizes: Sizes { image: image_bytes, big: big_bytes },
                    },
                    report,
                )
            }
            Action::Prune { place, dry_run, bwlimit } => {
                prune::run(&Settings::load(&place)?, prune::Options { bwlimit, dry_run, until: None }, report)
            }
            Action::Status { place } => status::run(&Settings::load(&place)?, report),
            Action::Verify { place, date, sample, seed, contents } => {
                let options = verify::Options { date, sample, seed, contents };
                verify::run(&Settings::load(&place)?, &options, report)
            }
            Action::View { place, date } => view::open(&Settings::load(&place)?, date.as_deref(), report),
            Action::Unview { place, if_killed } => view::close(&Settings::load(&place)?, if_killed, report),
            Action::Inside(_) => Ok(()),
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
