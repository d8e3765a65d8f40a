//! What the kernel's device mapper itself says of the mapping, and its end.
//!
//! `cryptsetup status` and `close` would tell and do the same, but read the device each time, four times over a link that
//! may be slow, or hang; the mapper needs nothing from S3.

use std::time::Duration;

use anyhow::{Context as _, Result};
use common::run::Cmd;

use crate::cryptsetup::without_udev;
use crate::watch::Watch;

/// What it may take the kernel to end a mapping.
const LIMIT: Duration = Duration::from_secs(300);

fn cmd(words: &[&str]) -> Cmd {
    without_udev(Cmd::new("dmsetup")).args(words).timeout(LIMIT)
}

/// The cipher that mapping `name` really works with.
pub(crate) fn cipher(name: &str, watch: &mut Watch) -> Result<String> {
    let out = watch.checked(&cmd(&["table", name]))?;
    let table = out.text();
    in_table(&table).map(str::to_owned).with_context(|| format!("{name} is no mapping of dm-crypt alone"))
}

/// `START LENGTH crypt CIPHER KEY …`: one line, as the whole of it is encrypted in one way.
fn in_table(table: &str) -> Option<&str> {
    let mut lines = table.lines();
    let mut words = lines.next().filter(|_| lines.next().is_none())?.split(' ');
    (words.next()? == "0" && words.nth(1)? == "crypt").then(|| words.next())?
}

/// Ends mapping `name`; false if something holds it.
pub(crate) fn remove(name: &str, watch: &mut Watch) -> Result<bool> {
    let cmd = cmd(&["remove", name]).uninterruptible();
    let out = watch.output(&cmd)?;
    match out.status.code() {
        Some(0) => Ok(true),
        Some(_) if String::from_utf8_lossy(&out.stderr).contains("Device or resource busy") => Ok(false),
        _ => Err(anyhow::Error::from(cmd.failure(&out)).context("cannot close the container")),
    }
}

#[cfg(test)]
mod tests {
    use super::in_table;

    #[test]
    fn only_a_mapping_that_is_wholly_encrypted_has_a_cipher() {
        let good =
            "0 41938944 crypt aes-xts-plain64 :64:logon:cryptsetup:e6-d0 0 7:1 4096 1 sector_size:4096\n";
        assert_eq!(in_table(good), Some("aes-xts-plain64"));
        for other in [
            "",
            "0 41938944 linear 7:1 4096\n",
            "0 8 crypt aes-xts-plain64 0 0 7:1 0\n8 8 linear 7:1 8\n",
            "8 8 crypt aes-xts-plain64 0 0 7:1 0\n",
            "0 8 crypt\n",
        ] {
            assert_eq!(in_table(other), None, "{other}");
        }
    }
}
