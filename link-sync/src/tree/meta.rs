//! What is known of one path, and compared to decide whether it changed.

use common::mutant;

/// A time as the file system gives it: seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

impl Stamp {
    /// Now, by the wall clock that stamps files.
    pub fn now() -> Stamp {
        let now = jiff::Timestamp::now();
        Stamp { sec: now.as_second(), nsec: u32::try_from(now.subsec_nanosecond()).unwrap_or(0) }
    }

    /// The same where every file system has room for it: outside of 1901 to 2446 (ext4), what arrives is cut without a word.
    pub fn everywhere(self) -> Stamp {
        const FIRST: i64 = -(1 << 31);
        const LAST: i64 = 0x3_7fff_ffff;
        let fits = (FIRST + 1..LAST).contains(&self.sec) || mutant::active("odd-times-are-no-hole");
        if fits { self } else { Stamp::default() }
    }

    /// Two seconds earlier: the coarsest time stamps in use (file systems with 1 s exist), doubled.
    pub fn two_seconds_before(self) -> Stamp {
        Stamp { sec: self.sec - 2, nsec: self.nsec }
    }
}

/// A change time that no walk is ever later than: what has it counts as changed.
pub const NEVER: Stamp = Stamp { sec: i64::MAX, nsec: 0 };

/// The inode number of each folder of btrfs that stands for a subvolume which is not there.
pub const STUB: u64 = 2;

/// What is compared to decide whether a path changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub ino: u64,
    /// Content change.
    pub mtime: Stamp,
    /// Inode change: moves with every change a program can make, and cannot be set.
    pub ctime: Stamp,
}

impl Meta {
    /// The type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    /// A directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
    /// A regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
    /// The same without what says nothing on a file system that does not keep inode numbers, or moves no change time:
    /// it differs from whatever any walk has seen, as [`NEVER`] is not safely over.
    pub fn untrusted(self) -> Meta {
        Meta { ino: 0, ctime: NEVER, ..self }
    }
    /// The same for a folder of btrfs that stands for a subvolume which its snapshot does not hold: its times are those of the
    /// moment in which it is looked at.
    pub fn stub(self) -> Meta {
        Meta { mtime: Stamp::default(), ctime: Stamp::default(), ..self }
    }
    /// Whether it is such a one.
    pub fn is_stub(&self) -> bool {
        self.is_dir() && self.ino == STUB && self.ctime == Stamp::default()
    }
    /// Whether it is such a one.
    pub fn is_untrusted(&self) -> bool {
        self.ino == 0 && self.ctime == NEVER
    }
}
