//! What the tools share. Flat modules, one job each; no command-line parsing, no framework.

pub mod account;
mod capture;
pub mod drill;
pub mod durable;
pub mod exclude;
pub mod fault;
pub mod fuse;
pub mod holders;
pub mod lock;
pub mod mounts;
pub mod mutant;
pub mod offsite;
pub mod outward;
pub mod places;
pub mod process;
pub mod processes;
pub mod profile;
pub mod program;
pub mod progress;
pub mod record;
pub mod rename;
pub mod restoring;
pub mod retention;
pub mod run;
pub mod show;
pub mod signals;
pub mod status;
