//! Room on the disk the image lies on.
//! The image is sparse: it may be larger than that disk, and grows with what is copied, so the room in the container
//! alone says little.
//!
//! Through sftp nobody is told how much of the image is allocated. It cannot be more than what is in use on its disk;
//! so how much it can still grow is known between two limits. A push is refused when even the lower one does not fit.

use anyhow::Result;
use common::fault::Fault;
use common::offsite;
use common::profile::Layout;
use common::status::Report;

use crate::disk::Disk;
use crate::generation::Content;
use crate::settings::Settings;
use crate::store::Snapshot;
use crate::{inside, tell};

/// Whether what is to come fits.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fits,
    /// Only if the image has its place on the disk already.
    Perhaps,
    No,
    Unknown,
}

/// `need`: bytes to come and to stay free.
fn judge(disk: &Disk, need: u64, remote: bool) -> Verdict {
    let (least, most) = disk.holes(remote);
    if disk.is_unknown() {
        Verdict::Unknown
    } else if need.min(least) > disk.free {
        Verdict::No
    } else if need.min(most) > disk.free {
        Verdict::Perhaps
    } else {
        Verdict::Fits
    }
}

/// What is surely to come: of a first snapshot all that has not arrived yet. What is new in a later one only link-sync
/// knows, once it has compared.
fn to_come(disk: &Disk, wanted: &Snapshot, content: &Content) -> u64 {
    if content.dates.is_empty() { wanted.bytes.saturating_sub(disk.filled) } else { 0 }
}

/// Refuses what cannot fit on the disk below the image, with `reserve` left.
pub(crate) fn check(
    settings: &Settings,
    wanted: &Snapshot,
    content: &Content,
    reserve: u64,
    report: &mut Report,
) -> Result<()> {
    if content.dates.contains(&wanted.date) {
        return Ok(());
    }
    let disk = ask(settings)?;
    let coming = match settings.profile.offsite.layout {
        Layout::Hardlink => to_come(&disk, wanted, content),
        // How small it gets nobody knows before; each image is asked for.
        Layout::Layers => 0,
    };
    let numbers = numbers(settings, &disk, coming, reserve);
    let far = settings.far_name();
    match judge(&disk, coming.saturating_add(reserve), settings.s3.is_some()) {
        Verdict::Fits => {}
        Verdict::Unknown => report.warn(
            "room-unknown",
            format!(
                "{far} does not tell how much room its disk has: the image may not be able to grow there"
            ),
        ),
        Verdict::Perhaps => report.warn(
            "little-room",
            format!("{numbers}: this is enough only if all of the image has its place there already"),
        ),
        Verdict::No => return Err(none(&numbers)),
    }
    Ok(())
}

/// Refuses `coming` bytes that cannot fit on the disk below the image, with `reserve` left.
pub(crate) fn fits(settings: &Settings, coming: u64, reserve: u64) -> Result<()> {
    let disk = ask(settings)?;
    match judge(&disk, coming.saturating_add(reserve), settings.s3.is_some()) {
        Verdict::No => Err(none(&numbers(settings, &disk, coming, reserve))),
        _ => Ok(()),
    }
}

fn ask(settings: &Settings) -> Result<Disk> {
    inside::room(&settings.container, &offsite::image(&settings.profile)?, settings.patience)
}

fn numbers(settings: &Settings, disk: &Disk, coming: u64, reserve: u64) -> String {
    format!(
        "the disk of {} has {} free, and {} are needed ({} to come, {} to stay free)",
        settings.far_name(),
        tell::bytes(disk.free),
        tell::bytes(coming.saturating_add(reserve)),
        tell::bytes(coming),
        tell::bytes(reserve)
    )
}

fn none(numbers: &str) -> anyhow::Error {
    Fault::failed(format!("not enough room below the container: {numbers}"))
        .hint("make room on that disk: the image grows with what is copied into it")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: u64 = 1 << 30;

    fn disk(total: u64, free: u64, image: u64, allocated: u64) -> Disk {
        Disk {
            total: total * G,
            unused: free * G,
            free: free * G,
            image: image * G,
            allocated: allocated * G,
            filled: 0,
        }
    }

    #[test]
    fn a_sparse_image_needs_room_and_one_that_is_allocated_does_not() {
        // Larger than its disk: it must have holes.
        assert_eq!(judge(&disk(500, 100, 776, 776), 90 * G, true), Verdict::Fits);
        assert_eq!(judge(&disk(500, 100, 776, 776), 101 * G, true), Verdict::No);
        // As large as what is in use: it may be allocated as a whole, on a disk that is full.
        assert_eq!(judge(&disk(400, 0, 400, 400), 10 * G, true), Verdict::Perhaps);
        assert_eq!(judge(&disk(1000, 5, 400, 400), 10 * G, true), Verdict::Perhaps);
        // On this machine that is known.
        assert_eq!(judge(&disk(400, 0, 400, 400), 10 * G, false), Verdict::Fits);
        assert_eq!(judge(&disk(1000, 5, 400, 100), 10 * G, false), Verdict::No);
        assert_eq!(judge(&disk(1000, 5, 400, 396), 10 * G, false), Verdict::Fits);
    }

    #[test]
    fn a_server_that_does_not_know_is_not_believed() {
        assert_eq!(judge(&disk(0, 0, 776, 776), 10 * G, true), Verdict::Unknown);
        assert_eq!(judge(&disk(1000, 1000, 776, 776), 2000 * G, true), Verdict::Unknown);
    }

    #[test]
    fn what_has_arrived_of_a_first_snapshot_does_not_come_again() {
        let wanted = Snapshot { date: "d".into(), id: "i".into(), bytes: 500 * G, sealed: false };
        let filled = Disk { filled: 400 * G, ..Disk::default() };
        assert_eq!(to_come(&filled, &wanted, &Content::default()), 100 * G);
        let later = Content { dates: vec!["c".into()], ..Content::default() };
        assert_eq!(to_come(&filled, &wanted, &later), 0);
    }

    #[test]
    fn the_disk_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(G).unwrap();
        let disk = Disk::ask(&image, dir.path()).unwrap();
        assert_eq!(disk.image, G);
        assert!(disk.allocated < G && !disk.is_unknown() && disk.filled > 0, "{disk:?}");
        assert!(Disk::ask(&dir.path().join("none"), dir.path()).is_err());
    }
}
