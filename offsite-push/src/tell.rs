//! Numbers as people read them.

pub(crate) use common::figures::{bytes, rate, time};
