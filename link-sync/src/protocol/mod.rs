//! What the two ends say to each other, over one pair of pipes or one ssh connection.
//!
//! `serve` first prints [`GREETING`] (whatever a login shell printed before it is skipped); after that
//! both directions carry frames ([`wire`]). The source says [`Knock`], and then asks what the door it came to has
//! ([`messages`]); some requests are followed by a list of records ended by an empty list frame. The far end answers each
//! with one [`Reply`], before which the parts of a long answer may come one by one. While rsync runs, stream frames
//! carry its own protocol in both directions until each side has sent an end frame.

pub mod messages;
pub mod wire;

pub use messages::*;
pub use wire::*;

/// Raised with every incompatible change; the two ends must agree.
pub const VERSION: u32 = 5;

/// The first thing the far end prints.
pub const GREETING: &[u8] = b"\nlink-sync serve: ready\n";
