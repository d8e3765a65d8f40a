//! Small files of link-sync's own in a store: read with care, as anybody's store may be read.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};

use super::beneath::{self, open_file};
use super::place::Store;

/// The text of a small file of link-sync's own in the store; `None` if it is not there. What else may lie there under its name
/// is not read, and not waited for.
pub fn note(root: &File, name: &str) -> Result<Option<String>> {
    let context = || format!("cannot read {name} in the store");
    let opened = match mutant::active("a-note-is-a-file") {
        true => beneath::open_with(root, name.as_bytes(), OFlag::O_RDONLY, ResolveFlag::empty())
            .map(File::from)
            .map_err(Into::into),
        false => open_file(root, name),
    };
    let mut text = String::new();
    match opened {
        Ok(file) => file.take(LONGEST_NOTE).read_to_string(&mut text).with_context(context)?,
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    Ok(Some(text))
}

/// More bytes than one has.
const LONGEST_NOTE: u64 = 1 << 20;

/// What a file `name` of the store, of at most so many bytes, says; the default if it is not there, or damaged: for what is
/// only of help.
pub fn hint<T: Default + serde::de::DeserializeOwned>(store: &Store, name: &str, longest: u64) -> T {
    let text = store.check().and_then(|dir| {
        let mut text = String::new();
        open_file(&dir, name)?.take(longest).read_to_string(&mut text)?;
        Ok(text)
    });
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn what_lies_in_the_place_of_a_note_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join(".note"), Mode::from_bits_truncate(0o600)).unwrap();
        let dir = File::open(folder.path()).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(note(&dir, ".note").is_err()));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
    }
}
