//! Random changes of a source: every kind that a file system allows and a backup must notice.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;

/// One change: what, and two numbers that choose where and how.
pub type Change = (u8, u32, u32);

/// How many kinds [`apply`] knows.
pub const KINDS: u8 = 31;

const NAMES: [&[u8]; 22] = [
    b"a",
    b"b",
    b"file.txt",
    "Übergrößen".as_bytes(),
    b"\xff\xfe\x80",
    b"new\nline",
    b"\n",
    b"#x",
    b";x",
    b"-rf",
    b" lead",
    b"trail ",
    b"a*b?[c]",
    b"back\\slash",
    b"\\#012",
    b"~",
    b"...",
    b".hidden",
    b"'q\"`$(x)",
    b".a.XyZ123",
    b"tab\t",
    &[b'n'; 255],
];

const TIMES: [(i64, i64); 6] = [
    (-1_000_000_000, 5),
    (0, 0),
    (1, 999_999_999),
    (1_700_000_000, 123_456_789),
    (4_400_000_000, 1),
    (951_782_400, 0),
];

/// A name that is there already about as often as not.
fn name(n: u32) -> OsString {
    let mut bytes = NAMES[n as usize % NAMES.len()].to_vec();
    let number = (n / 64) % 3;
    if number > 0 && bytes.len() < 250 {
        bytes.extend(number.to_string().bytes());
    }
    OsString::from_vec(bytes)
}

fn content(n: u32) -> Vec<u8> {
    let length = [0, 1, 12, 700, 5000, 70_000][n as usize % 6];
    (0..length).map(|i: u32| (n.wrapping_mul(31).wrapping_add(i * 7) >> (i % 5)) as u8).collect()
}

/// All paths below `top` (itself not), sorted; and whether each is a folder.
fn paths(top: &Path) -> Vec<(PathBuf, bool)> {
    let mut list = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let is_dir = entry.file_type().unwrap().is_dir();
            list.push((entry.path(), is_dir));
            if is_dir {
                waiting.push(entry.path());
            }
        }
    }
    list.sort();
    list
}

fn remove(path: &Path, is_dir: bool) {
    if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
}

fn set_mtime(path: &Path, (sec, nsec): (i64, i64)) {
    let time = TimeSpec::new(sec, nsec);
    utimensat(AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// user::rw-, user:UID:PERM, group::r--, mask::rwx, other::r--, as the kernel stores it.
pub fn acl(user: u32, perm: u16) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in
        [(1u16, 6u16, u32::MAX), (2, perm, user), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)]
    {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn make(kind: u32, path: &Path, n: u32) {
    let node = |kind: SFlag, device: u64| mknod(path, kind, Mode::from_bits_truncate(0o640), device).unwrap();
    match kind % 7 {
        0 | 1 => std::fs::write(path, content(n)).unwrap(),
        2 => {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join(name(n / 7)), content(n / 11)).unwrap();
        }
        3 => std::os::unix::fs::symlink(name(n / 3), path).unwrap(),
        4 => node(SFlag::S_IFIFO, 0),
        5 => node(SFlag::S_IFCHR, makedev(1, u64::from(n % 300))),
        _ => node(SFlag::S_IFBLK, makedev(7, u64::from(n % 4))),
    }
}

/// All of `list`, in order.
pub fn apply_all(top: &Path, list: &[Change]) {
    list.iter().for_each(|change| apply(top, *change));
}

/// Changes something below `top`. What makes no sense there changes nothing.
pub fn apply(top: &Path, (kind, a, b): Change) {
    let all = paths(top);
    let any = |n: u32| (!all.is_empty()).then(|| all[n as usize % all.len()].clone());
    let files: Vec<_> = all.iter().filter(|p| p.0.symlink_metadata().unwrap().is_file()).collect();
    let a_file = |n: u32| (!files.is_empty()).then(|| files[n as usize % files.len()].0.clone());
    let mut dirs = vec![top.to_owned()];
    dirs.extend(all.iter().filter(|p| p.1).map(|p| p.0.clone()));
    let a_dir = |n: u32| dirs[n as usize % dirs.len()].clone();
    let free = |n: u32| Some(a_dir(n).join(name(n / 5))).filter(|p| p.symlink_metadata().is_err());
    // Those that look at what is there, first.
    match kind % KINDS {
        0..=2 => drop(free(a).map(|p| make(0, &p, b))),
        3 => drop(free(a).map(|p| make(b, &p, b / 7))),
        4 => drop(free(a).map(|p| std::fs::create_dir(p).unwrap())),
        5 => drop(free(a).map(|p| {
            // Deep: 40 folders with a file at the end.
            let deep = (0..40).fold(p, |p, n| p.join(if n % 9 == 0 { "deep" } else { "d" }));
            std::fs::create_dir_all(&deep).unwrap();
            std::fs::write(deep.join("end"), content(b)).unwrap();
        })),
        6 => drop(free(a).map(|p| {
            // Sparse, with something at the end.
            let file = std::fs::File::create(p).unwrap();
            file.set_len(200_000 + u64::from(b % 4096)).unwrap();
            std::os::unix::fs::FileExt::write_at(&file, &content(b | 1), 150_000).unwrap();
        })),
        7 => drop(a_file(a).zip(free(b)).map(|(old, new)| std::fs::hard_link(old, new).unwrap())),
        8 | 9 => drop(a_file(a).map(|p| {
            use std::io::Write as _;
            std::fs::File::options().append(true).open(p).unwrap().write_all(&content(b | 1)).unwrap();
        })),
        10 | 11 => drop(a_file(a).map(|p| {
            // Same size, same mtime.
            let meta = p.metadata().unwrap();
            let bytes: Vec<u8> = std::fs::read(&p).unwrap().iter().map(|x| x ^ (1 << (b % 8))).collect();
            std::fs::write(&p, bytes).unwrap();
            set_mtime(&p, (meta.mtime(), meta.mtime_nsec()));
        })),
        12 => drop(a_file(a).map(|p| {
            // Replaced by rename, as programs do that write safely; same size, same mtime.
            let meta = p.metadata().unwrap();
            let bytes: Vec<u8> = std::fs::read(&p).unwrap().iter().map(|x| x.wrapping_add(b as u8)).collect();
            let new = top.join("replacement-under-way");
            std::fs::write(&new, bytes).unwrap();
            set_mtime(&new, (meta.mtime(), meta.mtime_nsec()));
            std::fs::rename(new, p).unwrap();
        })),
        13 => drop(a_file(a).map(|p| {
            let file = std::fs::File::options().write(true).open(p).unwrap();
            file.set_len(u64::from(b % 3000)).unwrap();
        })),
        14 => drop(any(a).filter(|p| !p.0.is_symlink()).map(|(p, is_dir)| {
            let modes = if is_dir {
                [0o700, 0o755, 0o2770, 0o1777, 0o000, 0o555]
            } else {
                [0o600, 0o644, 0o4755, 0o2711, 0o000, 0o666]
            };
            std::fs::set_permissions(p, std::fs::Permissions::from_mode(modes[b as usize % 6])).unwrap();
        })),
        15 => drop(any(a).map(|(p, _)| {
            let id = [0, 33, 1000, 65534, 4_000_000_000];
            let (user, group) = (id[b as usize % 5], id[b as usize / 5 % 5]);
            std::os::unix::fs::lchown(p, Some(user), Some(group)).unwrap();
        })),
        16 | 17 => drop(any(a).zip(free(b)).map(|((old, _), new)| {
            // Into itself is refused.
            std::fs::rename(old, new).ok();
        })),
        18 => drop(any(a).zip(any(b)).map(|((one, _), (two, _))| {
            // Both ways at once; one in the other is refused.
            renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE).ok();
        })),
        19 | 20 => drop(any(a).map(|(p, is_dir)| {
            remove(&p, is_dir);
            make(b, &p, b / 7);
        })),
        21 => drop(any(a).map(|(p, is_dir)| remove(&p, is_dir))),
        22 => {
            let path = if b.is_multiple_of(3) { a_dir(a) } else { any(a).map_or(top.to_owned(), |p| p.0) };
            set_mtime(&path, TIMES[b as usize % TIMES.len()]);
        }
        23 => {
            let path = if b.is_multiple_of(2) { Some(a_dir(a)) } else { a_file(a) };
            if let Some(path) = path {
                let value = content(b);
                xattr::set(path, ["user.one", "user.two"][b as usize % 2], &value[..value.len().min(700)])
                    .unwrap();
            }
        }
        24 => drop(any(a).map(|(p, _)| {
            for name in xattr::list(&p).into_iter().flatten().filter(|n| n.as_bytes().starts_with(b"user.")) {
                xattr::remove(&p, name).unwrap();
            }
        })),
        25 => {
            let name =
                if b.is_multiple_of(3) { "system.posix_acl_default" } else { "system.posix_acl_access" };
            let path = if b.is_multiple_of(3) {
                Some(a_dir(a))
            } else {
                any(a).filter(|p| !p.0.is_symlink()).map(|p| p.0)
            };
            if let Some(path) = path {
                xattr::set(path, name, &acl(b % 2000, (b % 8) as u16)).unwrap();
            }
        }
        26 => drop(a_file(a).zip(a_file(b)).filter(|(one, two)| one != two).map(|(one, two)| {
            // Onto another one, which is gone then.
            std::fs::rename(one, two).unwrap();
        })),
        27 => {
            // The names of three go round.
            if let (Some(one), Some(two), Some(three)) = (a_file(a), a_file(b), a_file(a ^ b)) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE).ok();
                renameat2(AT_FDCWD, &two, AT_FDCWD, &three, RenameFlags::RENAME_EXCHANGE).ok();
            }
        }
        28 => drop(a_file(a).zip(free(b)).map(|(old, new)| {
            // A copy; sometimes with its time.
            let meta = old.metadata().unwrap();
            std::fs::write(&new, std::fs::read(&old).unwrap()).unwrap();
            if b.is_multiple_of(2) {
                set_mtime(&new, (meta.mtime(), meta.mtime_nsec()));
            }
        })),
        29 => drop(a_file(a).zip(free(b)).map(|(old, new)| {
            // Gone, and another one of that size and time elsewhere, most often with its inode number.
            let meta = old.metadata().unwrap();
            let bytes: Vec<u8> = std::fs::read(&old).unwrap().iter().map(|x| x ^ 0x55).collect();
            std::fs::remove_file(old).unwrap();
            std::fs::write(&new, bytes).unwrap();
            set_mtime(&new, (meta.mtime(), meta.mtime_nsec()));
        })),
        _ => drop(a_file(a).zip(free(b)).map(|(old, new)| {
            // Moved, and edited with the time it had.
            let meta = old.metadata().unwrap();
            std::fs::rename(&old, &new).unwrap();
            let bytes: Vec<u8> = std::fs::read(&new).unwrap().iter().map(|x| x ^ (1 << (b % 8))).collect();
            std::fs::write(&new, bytes).unwrap();
            set_mtime(&new, (meta.mtime(), meta.mtime_nsec()));
        })),
    }
}

/// A tree to begin with: names of all kinds, one of everything.
pub fn begin(top: &Path) {
    for n in 0..NAMES.len() as u32 {
        make(n, &top.join(name(n)), n);
    }
    for n in 0..6 {
        let dir = top.join(format!("folder {n}/inner"));
        std::fs::create_dir_all(&dir).unwrap();
        for m in 0..4 {
            std::fs::write(dir.join(name(n + m)), content(n * 5 + m)).unwrap();
        }
    }
    apply(top, (5, 0, 3));
    apply(top, (6, 3, 1));
    for n in 0..20u32 {
        let a = 2_654_435_761u32.wrapping_mul(n);
        for kind in [14, 15, 22, 23, 25] {
            apply(top, (kind, a.wrapping_mul(u32::from(kind)), a >> 3));
        }
    }
}
