//! The names of what lies in a store beside its snapshots, and of what a snapshot says of itself.

/// The snapshot being made.
pub const PARTIAL: &str = ".partial";
/// Where rsync writes.
pub const INCOMING: &str = ".incoming";
/// What an interrupted run had received.
pub const RESUME: &str = ".resume";
/// What is being removed.
pub const TRASH: &str = ".trash";
/// Published snapshots that are being removed.
pub const PRUNED: &str = ".pruned";
/// Which dates others need.
pub const PINS: &str = ".pins";
/// In a snapshot: what is known about it.
pub const META: &str = ".meta";
