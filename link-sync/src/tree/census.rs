//! How many paths, and which: a number that both ends make, and that tells whether they hold the same.

use super::meta::Stamp;

/// How many paths, and which, whatever their order: two that are equal hold the same. A hole in a snapshot, or what
/// somebody put there, makes them differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Census {
    /// Folders, the top not counted.
    pub folders: u64,
    /// Everything else.
    pub files: u64,
    /// Sum of a hash of each path, with its type, size and modification time.
    pub sum: u64,
}

impl Census {
    /// Counts `name` in the folder `dir`. A folder's size is not one.
    pub fn add(&mut self, dir: &[u8], name: &[u8], is_dir: bool, size: u64, mtime: Stamp) {
        self.folders += u64::from(is_dir);
        self.files += u64::from(!is_dir);
        self.sum = self.sum.wrapping_add(hash(dir, name, is_dir, if is_dir { 0 } else { size }, mtime));
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Census) {
        self.folders += other.folders;
        self.files += other.files;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// FNV-1a with a last mixing (of splitmix64), so that sums of it tell sets apart. Both ends must make the same.
fn hash(dir: &[u8], name: &[u8], is_dir: bool, size: u64, mtime: Stamp) -> u64 {
    let numbers = [size.to_le_bytes(), mtime.sec.to_le_bytes(), u64::from(mtime.nsec).to_le_bytes()];
    let last: &[u8] = if is_dir { b"d" } else { b"f" };
    let bytes = dir.iter().chain(b"/").chain(name).chain(numbers.iter().flatten()).chain(last);
    let fnv =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
