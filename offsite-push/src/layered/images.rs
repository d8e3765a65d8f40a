//! An image on its way into the container: in one stream, compared with its hash, durable before it has its name.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::{durable, mutant};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::list::is_image;
use super::target::{Target, room};

/// Bytes read at once.
pub(super) const PIECE: usize = 1 << 20;

/// An image that is to come.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Coming {
    image: String,
    /// Where it is now; what was told of it is in `FROM.json`.
    from: PathBuf,
    bytes: u64,
    sha256: String,
    /// Bytes that stay free.
    #[serde(default)]
    reserve: u64,
    /// Nothing but its list follows, which makes its name durable, too.
    #[serde(default)]
    is_last: bool,
}

/// Copies the image into the folder `images`, and what was told of it; false if it is there already. It is durable before it
/// has its name.
pub(super) fn put(images: &Path, coming: &Coming) -> Result<bool> {
    let Coming { image: name, from, bytes, sha256, reserve, is_last } = coming;
    let (bytes, reserve) = (*bytes, *reserve);
    anyhow::ensure!(is_image(name), "{name:?} is no name of an image");
    let target = images.join(name);
    let beside = images.join(format!("{name}.json"));
    match std::fs::symlink_metadata(&target) {
        Ok(meta) => {
            let told = durable::read(&beside)?.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            let same =
                meta.is_file() && meta.len() == bytes && told.is_some_and(|told| told["sha256"] == *sha256);
            anyhow::ensure!(same, "{name} is there already, and is another image");
            return Ok(false);
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", target.display())),
    }
    let mut json = from.as_os_str().to_owned();
    json.push(".json");
    let told = durable::read(Path::new(&json))?
        .with_context(|| format!("there is no {}", Path::new(&json).display()))?;
    durable::write_soon(&beside, &told, 0o600)?;
    let passing = images.join(format!(".{name}.new"));
    let copied = copy(from, &passing, bytes, reserve);
    let (count, sum) =
        copied.with_context(|| format!("cannot copy {} to {}", from.display(), passing.display()))?;
    if (count, &sum) != (bytes, sha256) && !mutant::active("an-image-is-what-was-made") {
        std::fs::remove_file(&passing).ok();
        std::fs::remove_file(&beside).ok();
        anyhow::bail!("{} is not what was made: {count} bytes, {sum}", from.display());
    }
    std::fs::rename(&passing, &target).with_context(|| format!("cannot rename {}", passing.display()))?;
    if !is_last {
        durable::sync_dir(images)?;
    }
    Ok(true)
}

/// Copies all of it, durably, or what of it is not there yet; its bytes and its hash.
fn copy(from: &Path, to: &Path, bytes: u64, reserve: u64) -> Result<(u64, String)> {
    let mut source = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(from)?;
    anyhow::ensure!(source.metadata()?.is_file(), "it is not a file");
    let mut target = Target::open(to)?;
    room(to.parent().context("an image without a folder")?, bytes.saturating_sub(target.there()), reserve)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        common::signals::check()?;
        let n = match source.read(&mut piece) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 {
            break;
        }
        hash.update(&piece[..n]);
        target.put(&piece[..n])?;
        bytes += n as u64;
    }
    target.finish()?;
    Ok((bytes, hex(&hash.finalize())))
}

/// Reads the image `name`, or a large content, in the folder `dir`; what is wrong with it, if anything. Without `sha256`, S2's word, what
/// lies beside the image counts: that tells damage, and not an exchange.
pub(super) fn check(dir: &Path, name: &str, sha256: Option<&str>) -> Result<Option<String>> {
    let path = dir.join(name);
    let expected = match sha256 {
        Some(sum) => Some(sum.to_owned()),
        None if is_image(name) => {
            let told = durable::read(&dir.join(format!("{name}.json")))?;
            let told = told.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            told.and_then(|told| told["sha256"].as_str().map(str::to_owned))
        }
        None => Some(name.to_owned()),
    };
    let Some(expected) = expected else { return Ok(Some("its hash is not known".into())) };
    let file = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path);
    let mut file = match file {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Some("it is not there".into())),
        other => other.with_context(|| format!("cannot open {}", path.display()))?,
    };
    let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        common::signals::check()?;
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => hash.update(&piece[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // A checksum of btrfs's that is wrong, or a block that S3 does not give.
            Err(e) => return Ok(Some(format!("it cannot be read: {e}"))),
        }
    }
    let sum = hex(&hash.finalize());
    let right = sum == expected || mutant::active("an-image-is-checked-by-its-hash");
    Ok((!right).then(|| format!("its hash is {sum}, not {expected}")))
}

/// Hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
