//! The command line: arguments in, an action out.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};
use common::profile::Bytes;
use common::status::Report;

use crate::attach::How;
use crate::cryptsetup::Pbkdf;
use crate::fs::FileSystem;
use crate::settings::{Place, Settings};
use crate::touch::Touch;
use crate::{adopt, attach, create, detach, facts, grow, holding, keys};

/// The encrypted container: one file, opened and mounted on this machine only.
///
/// The container is a LUKS image, mostly on a machine that is not trusted (mount
/// that first, with sshfs-mount). It is always opened with this machine's own copy
/// of its header, so that what somebody writes into the image's header has no
/// effect. Keep the key file and a backup of the header somewhere else, too:
/// without both, the container is lost.
#[derive(Debug, Parser)]
#[command(name = "luks-mount", version, max_term_width = 80, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Action(Action),
    /// Touch the image, for another process of ours.
    #[command(hide = true)]
    Touch(Touch),
}

const AFTER: &str = "\
Examples:
  luks-mount create home --size 776G       a new container for profile 'home'
  luks-mount attach home
  luks-mount detach home
  luks-mount backup-header home --to /media/usb/home.header
  luks-mount create --image /srv/box.img --key-file /root/box.key --size 10G
                                           without any profile

PROFILE names /etc/nc-backup/PROFILE.toml; --config FILE names another file.

A key file holds any bytes, all of which count (a newline at the end too); it
belongs to root and has mode 0600 or less. To make one:
  (umask 077; head -c 64 /dev/urandom >/etc/nc-backup/home.key)

data of every action: state (detached, loop-only, mapped, attached,
mapping-without-image, mounted-elsewhere, foreign), image, image_bytes, loop,
mapping, mount_point, read_only, uuid, luks_version, cipher,
data_offset_sectors, file_system, size_bytes, free_bytes, inodes_free,
written_bytes, read_bytes, dirty_limit, header, key_slots. What is not known is
null.

The last line on stdout is one JSON object; docs/status.schema.json has it.
Exit codes: 0 done; 1 failed, and undone; 2 usage; 4 something is still attached
(the object says what, who holds it and how to clear it); 69 image not reachable
or a program missing; 75 attached or at work already; 77 rights; 78 profile,
key, header or image is not what it should be; 128+N signal.";

#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Make a new container: image, header copy, file system.
    ///
    /// The image is sparse and little of it is written, also later: it can be
    /// made through a slow link. Nothing that exists is overwritten. Afterwards it
    /// is detached.
    Create {
        #[command(flatten)]
        place: Place,
        /// Size of the image, like 500G.
        #[arg(long)]
        size: Bytes,
        /// File system inside [default: btrfs; ext4 if the profile's offsite.layout
        /// is hardlink].
        #[arg(long, value_enum)]
        file_system: Option<FileSystem>,
        /// ext4: one inode for so many bytes. Each path of each snapshot takes one,
        /// but for files that did not change.
        #[arg(long, value_name = "N", default_value_t = 65536,
              value_parser = clap::value_parser!(u32).range(1024..=67_108_864))]
        bytes_per_inode: u32,
        #[command(flatten)]
        pbkdf: Pbkdf,
    },
    /// Take over an existing image, LUKS1 or LUKS2: copy its header once.
    ///
    /// The header is believed this one time, so do it where the image has always
    /// been in your hands, or compare the key slots it tells.
    Adopt {
        #[command(flatten)]
        place: Place,
    },
    /// Open the container and mount it.
    ///
    /// For writing, only as this machine left it: one that another machine has
    /// mounted since, or whose lease (the file IMAGE.lease beside the image) another
    /// machine holds, is refused before anything in it is replayed or changed.
    Attach {
        #[command(flatten)]
        place: Place,
        /// Only for looking and restoring.
        #[arg(long)]
        read_only: bool,
        /// Take the container as it is, once, though it is not as this machine
        /// left it, or another machine holds its lease.
        #[arg(long, conflicts_with = "read_only")]
        accept_container: bool,
    },
    /// Unmount and close it, from whatever state it is in.
    ///
    /// data also has clean: false if what was written last may not have reached
    /// the image, because the link was dead (warning link-dead) or writing failed
    /// (sync-failed).
    Detach {
        #[command(flatten)]
        place: Place,
    },
    /// Move this machine's lease on while it is attached for writing.
    ///
    /// offsite-push does it every few minutes. Exit code 78: another machine has
    /// taken the container over.
    Renew {
        #[command(flatten)]
        place: Place,
    },
    /// Say which of its layers are up. Changes nothing.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Let a second key open it.
    ///
    /// Changes the header copy first, then the image's header. Make a new header
    /// backup afterwards.
    AddKey {
        #[command(flatten)]
        place: Place,
        /// The file with the new key.
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
        #[command(flatten)]
        pbkdf: Pbkdf,
    },
    /// Write this machine's copy of the header to another file.
    BackupHeader {
        #[command(flatten)]
        place: Place,
        /// A file that does not exist yet.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Make it bigger.
    Grow {
        #[command(flatten)]
        place: Place,
        /// New size of the image.
        #[arg(long)]
        size: Bytes,
    },
}

impl Action {
    fn place(&self) -> (&'static str, &Place) {
        match self {
            Action::Create { place, .. } => ("create", place),
            Action::Adopt { place } => ("adopt", place),
            Action::Attach { place, .. } => ("attach", place),
            Action::Detach { place } => ("detach", place),
            Action::Renew { place } => ("renew", place),
            Action::Status { place } => ("status", place),
            Action::AddKey { place, .. } => ("add-key", place),
            Action::BackupHeader { place, .. } => ("backup-header", place),
            Action::Grow { place, .. } => ("grow", place),
        }
    }

    /// The action's name and the profile, for the status object.
    pub(crate) fn names(&self) -> (&'static str, Option<String>) {
        let (name, place) = self.place();
        (name, place.profile.clone())
    }

    /// Does it.
    pub(crate) fn run(self, report: &mut Report) -> Result<()> {
        let settings = Settings::load(self.place().1)?;
        match self {
            Action::Create { size, file_system, bytes_per_inode, pbkdf, .. } => {
                let usual = if settings.layers { FileSystem::Btrfs } else { FileSystem::Ext4 };
                let file_system = file_system.unwrap_or(usual);
                let wanted = create::Wanted { size: size.0, file_system, bytes_per_inode, pbkdf };
                create::run(&settings, &wanted, report)
            }
            Action::Adopt { .. } => adopt::run(&settings, report),
            Action::Attach { read_only, accept_container, .. } => {
                let how = if read_only { How::Reading } else { How::Writing { accept: accept_container } };
                attach::run(&settings, how, report)
            }
            Action::Detach { .. } => detach::run(&settings, report),
            Action::Renew { .. } => holding::renew(&settings, report),
            Action::Status { .. } => facts::run(&settings, report),
            Action::AddKey { new_key_file, pbkdf, .. } => keys::add(&settings, &new_key_file, &pbkdf, report),
            Action::BackupHeader { to, .. } => keys::backup(&settings, &to, report),
            Action::Grow { size, .. } => grow::run(&settings, size.0, report),
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
