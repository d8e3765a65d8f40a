//! What every tool's command line promises.

use clap::Command;

/// It is sound, every action and option is explained, and no help is wider than 80 columns. The tool's own help.
#[track_caller]
pub fn is_sound(mut command: Command) -> String {
    command.clone().debug_assert();
    let top = command.render_long_help().to_string();
    let mut texts = vec![top.clone()];
    for action in command.get_subcommands_mut() {
        assert!(action.get_about().is_some(), "{} is not documented", action.get_name());
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
