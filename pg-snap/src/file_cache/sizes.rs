//! Whether a file's size is the one its row promises, also under server-side encryption.
//!
//! Nextcloud's default encryption module writes a header of one block of 8192 bytes, then each block of plain text as a
//! block of 8192 bytes; the last one is as short as what is left. What fits into a block depends on how the file was
//! written (apps/encryption, `getUnencryptedBlockSize`): binary or base64, signed or not. The row holds the plain size,
//! in `size` and, since Nextcloud 24, in `unencrypted_size`.

/// Bytes of a block on disk, and of the header.
const BLOCK: u64 = 8192;

/// The four ways a block is written: base64, and bytes besides the text (vector, padding, signature).
const WAYS: [(bool, u64); 4] = [(false, 96), (false, 24), (true, 96), (true, 24)];

/// What a row says about the size of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Promised {
    /// `size`; negative: not known yet.
    pub(crate) size: i64,
    /// Whether `encrypted` is set.
    pub(crate) encrypted: bool,
    /// `unencrypted_size`; 0: not set.
    pub(crate) unencrypted: i64,
}

impl Promised {
    /// Whether a file of `bytes` is what the row promises.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        let Ok(size) = u64::try_from(self.size) else { return true };
        if size == bytes {
            return true;
        }
        if !self.encrypted {
            return false;
        }
        let plain = [size, u64::try_from(self.unencrypted).unwrap_or(0)];
        let plain = plain.into_iter().filter(|p| *p > 0 || size == 0);
        plain.into_iter().any(|p| {
            WAYS.iter().any(|way| {
                let body = on_disk(p, *way);
                // Files of ownCloud 6 and older have no header.
                body.is_some_and(|body| bytes == body + BLOCK || bytes == body)
            })
        })
    }

    /// The size, for what would be lost.
    pub(crate) fn bytes(&self) -> u64 {
        u64::try_from(self.size).unwrap_or(0)
    }
}

/// Bytes that `plain` bytes take, without the header. `None` if no file is as large.
fn on_disk(plain: u64, (base64, more): (bool, u64)) -> Option<u64> {
    let fits = if base64 { (BLOCK - more) / 4 * 3 } else { BLOCK - more };
    let (whole, rest) = (plain / fits, plain % fits);
    let last = if rest == 0 {
        0
    } else if base64 {
        rest.div_ceil(3) * 4 + more
    } else {
        rest + more
    };
    whole.checked_mul(BLOCK)?.checked_add(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size: i64, encrypted: bool) -> Promised {
        Promised { size, encrypted, unencrypted: 0 }
    }

    #[test]
    fn a_plain_file_has_exactly_its_size() {
        assert!(row(5, false).fits(5) && row(-1, false).fits(77));
        assert!(!row(5, false).fits(4) && !row(5, false).fits(8192 + 5 + 96));
    }

    #[test]
    fn encrypted_files_have_a_header_and_longer_blocks() {
        // Signed binary: 8096 fit; the default of today.
        assert!(row(8096, true).fits(2 * 8192));
        assert!(row(8097, true).fits(2 * 8192 + 97));
        assert!(row(100, true).fits(8192 + 196));
        // Signed base64: 6072 fit.
        assert!(row(6072, true).fits(2 * 8192));
        assert!(row(100, true).fits(8192 + 136 + 96));
        // Empty: the header alone, or nothing.
        assert!(row(0, true).fits(8192) && row(0, true).fits(0));
    }

    #[test]
    fn a_truncated_encrypted_file_does_not_fit() {
        for cut in [0, 8191, 8192, 8192 + 195, 8192 + 197] {
            assert!(!row(100, true).fits(cut), "{cut}");
        }
    }

    #[test]
    fn the_plain_size_may_stand_in_its_own_column() {
        let row = Promised { size: 8192 + 196, encrypted: true, unencrypted: 100 };
        assert!(row.fits(8192 + 196) && !row.fits(8192 + 195));
    }
}
