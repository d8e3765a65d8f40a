//! SHA-256 of files, and the lines of `sha256sum`: `HASH  PATH`, as its `-c` reads them.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};

use anyhow::{Context as _, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub type Sum = [u8; 32];

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// Hashes an open file to its end. `read` is told of every piece and may end it.
pub fn of_file(file: &mut File, mut read: impl FnMut(u64) -> Result<()>) -> Result<(Sum, u64)> {
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let n = match file.read(&mut buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if n == 0 {
            return Ok((hash.finalize().into(), bytes));
        }
        hash.update(&buffer[..n]);
        bytes += n as u64;
        read(n as u64)?;
    }
}

/// Drops what the page cache holds of a file, as far as it can: what is read then comes from the disk.
pub fn uncache(file: &File) {
    // A file system that cannot be asked is read as it is.
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).ok();
}

/// Hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
        text
    })
}

/// The sum that is written as 64 hexadecimal digits.
pub fn unhex(text: &[u8]) -> Option<Sum> {
    let text: &[u8; 64] = text.try_into().ok()?;
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut sum = [0; 32];
    for (byte, pair) in sum.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(sum)
}

/// Adds a line. A name with a backslash, a newline or a carriage return is escaped, and the line begins with a
/// backslash then.
pub fn line(out: &mut Vec<u8>, sum: &Sum, path: &[u8]) {
    let odd = path.iter().any(|b| matches!(b, b'\\' | b'\n' | b'\r'));
    if odd {
        out.push(b'\\');
    }
    out.extend_from_slice(hex(sum).as_bytes());
    out.extend_from_slice(b"  ");
    for byte in path {
        match byte {
            b'\\' if odd => out.extend_from_slice(b"\\\\"),
            b'\n' if odd => out.extend_from_slice(b"\\n"),
            b'\r' if odd => out.extend_from_slice(b"\\r"),
            other => out.push(*other),
        }
    }
    out.push(b'\n');
}

/// The sum and the path of a line.
pub fn parse(line: &[u8]) -> Option<(Sum, Cow<'_, [u8]>)> {
    let (odd, line) = line.strip_prefix(b"\\").map_or((false, line), |rest| (true, rest));
    let (sum, rest) = line.split_at_checked(64)?;
    let path = rest.strip_prefix(b"  ")?;
    let sum = unhex(sum)?;
    if !odd {
        return Some((sum, Cow::Borrowed(path)));
    }
    let mut plain = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match (byte, byte == &b'\\') {
            (_, false) => *byte,
            _ => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                b'\\' => b'\\',
                _ => return None,
            },
        });
    }
    Some((sum, Cow::Owned(plain)))
}

/// The lines of a file.
#[derive(Debug)]
pub struct Lines {
    input: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    /// The lines of `file`.
    pub fn new(file: File) -> Lines {
        let input = BufReader::with_capacity(BUFFER, file);
        Lines { input, line: Vec::new() }
    }

    /// The next one, without its end.
    pub fn next(&mut self) -> Result<Option<&[u8]>> {
        self.line.clear();
        let n = self.input.read_until(b'\n', &mut self.line).context("cannot read a manifest")?;
        Ok((n > 0).then(|| self.line.strip_suffix(b"\n").unwrap_or(&self.line)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_any_name() {
        for path in ["a", "d/a b", "back\\slash", "new\nline", "end\r", "\\n", " *odd"] {
            let mut out = Vec::new();
            line(&mut out, &[0xab; 32], path.as_bytes());
            let text = out.strip_suffix(b"\n").unwrap();
            assert!(!text.contains(&b'\n') && !text.contains(&b'\r'), "{path:?}");
            assert_eq!(parse(text).unwrap(), ([0xab; 32], Cow::Borrowed(path.as_bytes())));
        }
        for bad in ["", "abc  x", "zz", "\\"] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }
}
