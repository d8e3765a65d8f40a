//! Lines of mtree(5): `./PATH type=file mode=0640 uid=33 gid=33 size=5 time=1.000000000 tags=xattr-…`.
//!
//! Attributes as they are found on the store's disk. With fake-super the source's owners are in an extended attribute,
//! and what the file itself belongs to is whatever account the store has on this machine: it is neither told nor compared
//! then. Of extended attributes (ACLs among them) there is a digest, as a tag, for which other programs have no meaning.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstat, fstatat, major, minor};
use sha2::{Digest as _, Sha256};
use xattr::FileExt as _;

use super::beneath::{open_dir, open_file_at};
use super::{attributes, shown, sums};

/// What the file begins with; what a check must pass over follows.
pub const HEAD: &[u8] = b"#mtree\n. type=dir\n./.meta type=dir ignore optional\n";

/// A path as it is on the disk.
#[derive(Debug)]
pub struct OnDisk {
    /// Its stat.
    pub stat: FileStat,
    /// The line's part after the path.
    pub body: Vec<u8>,
    /// Opened, if it is a regular file.
    pub file: Option<File>,
}

/// Looks at `name` in `dir`, through no symlink; opens regular files.
pub fn look(dir: &File, name: &[u8]) -> Result<OnDisk> {
    let as_name = OsStr::from_bytes(name);
    let mut stat = fstatat(dir, as_name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let opened = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Some(open_file_at(dir, name)?),
        libc::S_IFDIR => Some(open_dir(dir, name)?),
        _ => None,
    };
    if let Some(file) = &opened {
        stat = fstat(file)?;
    }
    let link = match stat.st_mode & libc::S_IFMT {
        libc::S_IFLNK => Some(readlinkat(dir, as_name)?),
        _ => None,
    };
    let mut xattrs = opened.as_ref().map(xattrs).transpose()?.unwrap_or_default();
    shown::give_back(dir, name, &mut stat, &mut xattrs)?;
    let owned = !attributes::carries_owner(&xattrs) || mutant::active("a-stores-account-is-an-owner");
    let body = body(&stat, owned, link.as_deref().map(|l| l.as_bytes()), digest(&xattrs).as_deref());
    let file = opened.filter(|_| stat.st_mode & libc::S_IFMT == libc::S_IFREG);
    Ok(OnDisk { stat, body, file })
}

/// `type=…` and so on; the owner if it is `owned` by whom its stat says.
fn body(stat: &FileStat, owned: bool, link: Option<&[u8]>, xattrs: Option<&str>) -> Vec<u8> {
    let kind = match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "dir",
        libc::S_IFLNK => "link",
        libc::S_IFCHR => "char",
        libc::S_IFBLK => "block",
        libc::S_IFIFO => "fifo",
        _ => "socket",
    };
    let (mode, uid, gid) = (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
    let mut text = format!("type={kind} mode={mode:04o}");
    // Writing to a string does not fail.
    if owned {
        write!(text, " uid={uid} gid={gid}").ok();
    }
    if kind == "file" {
        write!(text, " size={}", stat.st_size).ok();
    }
    if matches!(kind, "char" | "block") {
        write!(text, " device=native,{},{}", major(stat.st_rdev), minor(stat.st_rdev)).ok();
    }
    write!(text, " time={}.{:09}", stat.st_mtime, stat.st_mtime_nsec).ok();
    let mut line = text.into_bytes();
    if let Some(link) = link {
        line.extend_from_slice(b" link=");
        escape(&mut line, link);
    }
    if let Some(digest) = xattrs {
        line.extend_from_slice(b" tags=xattr-");
        line.extend_from_slice(digest.as_bytes());
    }
    line
}

/// Of a file that is ours alone.
pub fn private_file(bytes: u64) -> Vec<u8> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let now = jiff::Timestamp::now().as_second();
    format!("type=file mode=0600 uid={uid} gid={gid} size={bytes} time={now}.000000000").into_bytes()
}

/// Whether two lines' attributes are the same. One that tells no owner is of a path whose owner is kept in an attribute;
/// what an older version noted of the account that the store had then means nothing there.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    one == other || (tells_owner(one) != tells_owner(other) && without_owner(one) == without_owner(other))
}

/// What is expected of a path that was `found` so, without what means nothing.
pub fn comparable<'a>(expected: &'a [u8], found: &[u8]) -> Cow<'a, [u8]> {
    match tells_owner(found) {
        true => Cow::Borrowed(expected),
        false => Cow::Owned(without_owner(expected)),
    }
}

fn is_owner(word: &[u8]) -> bool {
    word.starts_with(b"uid=") || word.starts_with(b"gid=")
}

fn tells_owner(body: &[u8]) -> bool {
    body.split(|b| *b == b' ').any(is_owner)
}

fn without_owner(body: &[u8]) -> Vec<u8> {
    let words: Vec<&[u8]> = body.split(|b| *b == b' ').filter(|word| !is_owner(word)).collect();
    words.join(&b' ')
}

/// A digest of extended attributes; `None` if there are none.
pub fn digest(all: &BTreeMap<std::ffi::OsString, Vec<u8>>) -> Option<String> {
    if all.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    for (name, value) in all {
        for part in [name.as_bytes(), value] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    Some(sums::hex(&hash.finalize()[..16]))
}

/// All extended attributes that a backup keeps, by name.
pub fn xattrs(file: &File) -> Result<BTreeMap<std::ffi::OsString, Vec<u8>>> {
    let names = match file.list_xattr() {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e).context("cannot list extended attributes"),
    };
    let mut all = BTreeMap::new();
    for name in names.filter(|name| super::attributes::is_kept(name)) {
        if let Some(value) = file.get_xattr(&name).context("cannot read an extended attribute")? {
            all.insert(name, value);
        }
    }
    Ok(all)
}

/// Adds the line of `path`.
pub fn line(out: &mut Vec<u8>, path: &[u8], body: &[u8]) {
    out.extend_from_slice(b"./");
    for (n, name) in path.split(|b| *b == b'/').enumerate() {
        if n > 0 {
            out.push(b'/');
        }
        escape_name(out, name);
    }
    out.push(b' ');
    out.extend_from_slice(body);
    out.push(b'\n');
}

/// The path and the rest of a line; `None` for those that describe no path in the snapshot.
pub fn parse(line: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let line = line.strip_prefix(b"./")?;
    let end = line.iter().position(|b| *b == b' ')?;
    let path = unescape(&line[..end])?;
    (*path != *b".meta").then_some((path, &line[end + 1..]))
}

/// What one line says, by keyword.
pub fn words(body: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let words = body.split(|b| *b == b' ').filter_map(|word| {
        let at = word.iter().position(|b| *b == b'=')?;
        let value = unescape(&word[at + 1..])?.into_owned();
        Some((String::from_utf8_lossy(&word[..at]).into_owned(), value))
    });
    words.collect()
}

/// A name that NetBSD's and FreeBSD's mtree, after decoding it, would take for a pattern is written as one that means only
/// itself: with a backslash before what is special. That one is `\\\\`, which is never written otherwise.
fn escape_name(out: &mut Vec<u8>, name: &[u8]) {
    if !name.iter().any(|b| matches!(b, b'*' | b'?' | b'[')) {
        return escape(out, name);
    }
    for byte in name {
        if matches!(byte, b'*' | b'?' | b'[' | b'\\') {
            out.extend_from_slice(b"\\\\");
        }
        escape(out, std::slice::from_ref(byte));
    }
}

/// What a reader could take for more than a letter is written as a backslash and three octal digits (vis(3)).
fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        match byte {
            b'#' | b'*' | b'?' | b'[' | b'\\' => {}
            0x21..=0x7e => {
                out.push(*byte);
                continue;
            }
            _ => {}
        }
        out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
    }
}

fn unescape(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !text.contains(&b'\\') {
        return Some(Cow::Borrowed(text));
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'\\' {
            plain.push(*byte);
            continue;
        }
        if let Some(after) = rest.strip_prefix(b"\\") {
            // Only says that what comes next is no pattern.
            rest = after;
            continue;
        }
        let (digits, tail) = rest.split_at_checked(3)?;
        rest = tail;
        plain.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()?);
    }
    Some(Cow::Owned(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_name() {
        for path in ["a", "d/a b", "back\\slash", "new\nline", "#[*?", "ü=x", "*", "d*/\\[x]/a\\b"] {
            let mut out = Vec::new();
            line(&mut out, path.as_bytes(), b"type=file size=1");
            let text = out.strip_suffix(b"\n").unwrap();
            let (back, body) = parse(text).unwrap();
            assert_eq!((&*back, body), (path.as_bytes(), &b"type=file size=1"[..]));
        }
        // As it was written before.
        assert_eq!(&*parse(b"./a\\052\\134\\052 type=file").unwrap().0, b"a*\\*");
        assert!(HEAD.split(|b| *b == b'\n').all(|l| parse(l).is_none()));
        assert_eq!(words(b"type=link link=a\\040b")["link"], b"a b");
    }

    #[test]
    fn an_owner_that_is_kept_elsewhere_is_not_compared_and_any_other_is() {
        let (old, new) = (
            &b"type=file mode=0600 uid=9 gid=9 size=1 tags=xattr-1"[..],
            &b"type=file mode=0600 size=1 tags=xattr-1"[..],
        );
        assert!(same(old, new) && same(new, old) && same(old, old) && same(new, new));
        assert_eq!(&*comparable(old, new), new);
        let other = &b"type=file mode=0600 uid=8 gid=9 size=1 tags=xattr-1"[..];
        assert!(!same(old, other));
        assert_eq!(&*comparable(old, other), old);
        assert!(!same(old, b"type=file mode=0600 size=1 tags=xattr-2"));
    }
}
