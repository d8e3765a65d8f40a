//! What every tool's command line promises.

use std::path::Path;

use clap::Command;

use crate::pages;

/// It is sound, every action and option is explained, no help is wider than 80 columns, and its man pages and completions
/// have all of that; with `NC_BACKUP_PAGES=DIR` these are written there. The tool's own help.
#[track_caller]
pub fn is_sound(mut command: Command) -> String {
    command.clone().debug_assert();
    pages::are_whole(&command);
    if let Some(dir) = std::env::var_os("NC_BACKUP_PAGES") {
        pages::write(&command, Path::new(&dir)).unwrap();
    }
    let top = command.render_long_help().to_string();
    let mut texts = vec![top.clone()];
    for action in command.get_subcommands_mut() {
        assert!(action.get_about().is_some(), "{} is not documented", action.get_name());
        // What a tool starts itself with, nobody reads.
        if action.is_hide_set() {
            continue;
        }
        texts.push(action.render_long_help().to_string());
        for arg in action.get_arguments() {
            assert!(arg.get_help().is_some(), "{} is not documented", arg.get_id());
        }
    }
    for line in texts.iter().flat_map(|t| t.lines()) {
        assert!(line.chars().count() <= 80, "too wide: {line}");
    }
    top
}
