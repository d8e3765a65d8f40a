//! How much may wait in memory to be written: so that stopping takes seconds, and progress counts what has left.

use std::path::{Path, PathBuf};

use common::mounts::Mount;
use serde_json::{Value, json};

use crate::losetup::{names, sys};
use crate::stack::Mapping;

/// What may be dirty, in bytes.
const MOST: u64 = 8 << 20;

/// Sets the limit for a mounted container, as well as this kernel can, and says how: the value of
/// `data.dirty_limit`.
pub(crate) fn set(mapping: &Mapping, mount: &Mount) -> Value {
    let dir = bdi(mapping, mount);
    let put = |file: &str, value: &str| std::fs::write(dir.join(file), value).is_ok();
    // Linux 6.2 and newer; strict: also while the rest of the machine has nothing to write.
    let strict = put("strict_limit", "1");
    if !(strict && put("max_bytes", &MOST.to_string())) {
        // Older: percent of what may be dirty at all, heeded once the machine as a whole has much to write.
        put("max_ratio", "1");
    }
    read(mapping, mount)
}

/// What limits it now.
pub(crate) fn read(mapping: &Mapping, mount: &Mount) -> Value {
    let dir = bdi(mapping, mount);
    let number = |file: &str| std::fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
    let strict = number("strict_limit") == Some(1);
    match (number("max_bytes"), number("max_ratio")) {
        // The kernel keeps it as a share of its memory, so it reads back a little different.
        (Some(bytes), _) if strict => json!({"method": "max-bytes", "bytes": bytes, "strict": true}),
        (_, Some(ratio)) if ratio < 100 => json!({"method": "max-ratio", "bytes": null, "strict": strict}),
        _ => json!({"method": "none", "bytes": null, "strict": false}),
    }
}

/// Where the kernel keeps the limit of this file system: ext4's is its device's, btrfs has one of its own.
fn bdi(mapping: &Mapping, mount: &Mount) -> PathBuf {
    let all = Path::new("/sys/fs/btrfs");
    let ours = |name: &String| all.join(name).join("devices").join(&mapping.dm).exists();
    match names(all).into_iter().find(|n| mount.fs_type == "btrfs" && ours(n)) {
        Some(name) => all.join(name).join("bdi"),
        None => sys(&mapping.dm).join("bdi"),
    }
}
