//! Headers of a tar stream as mksquashfs reads them: ustar, and before it POSIX's extended header for what that cannot say.

/// What kind of entry: tar's letter for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file; its content follows.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A folder.
    Folder,
    /// A named pipe.
    Pipe,
}

/// One entry.
#[derive(Debug)]
pub struct Header<'a> {
    /// Relative.
    pub path: &'a [u8],
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes of a file.
    pub size: u64,
    /// Seconds since 1970: no more is held.
    pub mtime: u32,
    /// A symlink's target.
    pub target: &'a [u8],
    /// A device's numbers.
    pub device: (u64, u64),
    /// Extended attributes; none has `=` in its name.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Bytes of a block.
const BLOCK: usize = 512;

/// Bytes of the names that ustar has room for.
const NAME: usize = 100;

impl Header<'_> {
    /// Writes it to `out`. A file's content follows, and then [`padding`].
    pub fn write(&self, out: &mut Vec<u8>) {
        let stored = if self.kind == Kind::File { self.size } else { 0 };
        let mut more = Vec::new();
        if self.path.len() > NAME {
            record(&mut more, b"path", self.path);
        }
        if self.target.len() > NAME {
            record(&mut more, b"linkpath", self.target);
        }
        for (key, value) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if u64::from(value) > largest(8) {
                record(&mut more, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if stored > largest(12) {
            record(&mut more, b"size", stored.to_string().as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut more, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        if !more.is_empty() {
            let size = more.len() as u64;
            self.block(out, b'x', b"more", size);
            out.extend_from_slice(&more);
            padding(out, size);
        }
        let letter = match self.kind {
            Kind::File => b'0',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Folder => b'5',
            Kind::Pipe => b'6',
        };
        self.block(out, letter, &self.path[..self.path.len().min(NAME)], stored);
    }

    fn block(&self, out: &mut Vec<u8>, letter: u8, name: &[u8], size: u64) {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], u64::from(self.owner.0));
        octal(&mut block[116..124], u64::from(self.owner.1));
        octal(&mut block[124..136], size);
        octal(&mut block[136..148], u64::from(self.mtime));
        block[156] = letter;
        let target = &self.target[..self.target.len().min(NAME)];
        block[157..157 + target.len()].copy_from_slice(target);
        block[257..265].copy_from_slice(b"ustar\x0000");
        octal(&mut block[329..337], self.device.0);
        octal(&mut block[337..345], self.device.1);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        octal(&mut block[148..155], sum);
        out.extend_from_slice(&block);
    }
}

/// Zeros up to a whole block after `size` bytes.
pub fn padding(out: &mut Vec<u8>, size: u64) {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    out.resize(out.len() + (BLOCK - over) % BLOCK, 0);
}

/// What ends the stream.
pub fn end(out: &mut Vec<u8>) {
    out.resize(out.len() + 2 * BLOCK, 0);
}

/// The largest number that a field of so many bytes holds.
fn largest(bytes: u32) -> u64 {
    (1 << (3 * (bytes - 1))) - 1
}

/// A number in octal digits and a NUL; 0 if it is too large, as the extended header has it then.
fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    let number = if number > largest(u32::try_from(field.len()).unwrap_or(0)) { 0 } else { number };
    field[..width].copy_from_slice(format!("{number:0width$o}").as_bytes());
    field[width] = 0;
}

/// `LENGTH KEY=VALUE` and a newline, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for value in [0, 1, 85, 86, 87, 88, 89, 90, 984, 985, 986, 987, 988, 70_000] {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'x'; value]);
            let told = out.split(|b| *b == b' ').next().unwrap();
            assert_eq!(std::str::from_utf8(told).unwrap().parse::<usize>().unwrap(), out.len());
        }
    }

    #[test]
    fn what_ustar_has_no_room_for_is_in_the_extended_header() {
        let path = vec![b'p'; 300];
        let header = Header {
            path: &path,
            kind: Kind::File,
            mode: 0o4755,
            owner: (1 << 21, (1 << 21) - 1),
            size: 1 << 33,
            mtime: u32::MAX,
            target: b"",
            device: (0, 0),
            xattrs: &[(b"user.a".to_vec(), b"x\n\0y".to_vec())],
        };
        let mut out = Vec::new();
        header.write(&mut out);
        assert_eq!(out.len() % BLOCK, 0);
        let has = |text: &[u8]| out.windows(text.len()).any(|w| w == text);
        assert!(has(b" uid=2097152\n") && !has(b" gid="));
        assert!(has(b" size=8589934592\n") && has(&[b" path=", &path[..], b"\n"].concat()));
        assert!(has(b" SCHILY.xattr.user.a=x\n\0y\n") && has(b"37777777777\0"));
    }
}
