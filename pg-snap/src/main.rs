//! pg-snap: dated, complete, private dumps of a PostgreSQL database.

use std::process::ExitCode;

use clap::Parser as _;

mod activity;
mod admin;
mod catalog;
mod check;
mod cli;
mod client;
mod confirm;
mod connect;
mod container;
mod dbhost;
mod drain;
mod dump;
mod dumps;
mod facts;
mod file_cache;
mod greeting;
mod hold;
mod holder;
mod horizon;
mod list;
mod load;
mod loader;
mod login;
mod manifest;
mod names;
mod nc_maint;
mod old_facts;
mod password;
mod pause;
mod pg_dump;
mod pg_restore;
mod programs;
mod psql;
mod refusal;
mod restore;
mod roles;
mod same;
mod scratch;
mod session;
mod source;
mod stall;
mod standing;
mod swap;
mod target;
mod verify;
mod whose;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let (action, profile) = cli.names();
    let json = cli.json;
    common::status::run("pg-snap", env!("CARGO_PKG_VERSION"), action, profile.as_deref(), json, |report| {
        cli.run(report)
    })
}
