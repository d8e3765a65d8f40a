//! pg-snap against a real PostgreSQL.
#![allow(clippy::disallowed_methods, reason = "the tests start what they test by hand")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod connect;
mod dump;
mod faults;
mod folder;
mod german;
mod hold;
mod hostile;
mod hung;
mod lab;
mod late;
mod newserver;
mod peer;
mod prologue;
mod restore;
mod same;
mod verify;
