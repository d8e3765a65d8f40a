//! What somebody who has the image and no key can do to a LUKS2 header.

#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Makes both copies of the header in `image` say `to` instead of the first `from` behind `after`, with the right checksum.
pub fn rewrite_header(image: &Path, after: &str, from: &str, to: &str) {
    let file = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let mut first = vec![0; 4096];
    file.read_exact_at(&mut first, 0).unwrap();
    let size = u64::from_be_bytes(first[8..16].try_into().unwrap());
    for at in [0, size] {
        let mut header = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut header, at).unwrap();
        let json =
            String::from_utf8(header[4096..].iter().copied().take_while(|b| *b != 0).collect()).unwrap();
        let (before, rest) = json.split_at(json.find(after).unwrap());
        let changed = format!("{before}{}", rest.replacen(from, to, 1));
        assert_ne!(changed, json);
        header[4096..].fill(0);
        header[4096..4096 + changed.len()].copy_from_slice(changed.as_bytes());
        header[448..512].fill(0);
        let sum = sha256(&header);
        header[448..480].copy_from_slice(&sum);
        file.write_all_at(&header, at).unwrap();
    }
    file.sync_all().unwrap();
}

fn sha256(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    (0..32)
        .map(|n| u8::from_str_radix(std::str::from_utf8(&out[2 * n..2 * n + 2]).unwrap(), 16).unwrap())
        .collect()
}
