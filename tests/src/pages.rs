//! Man pages and completions, out of the definitions that make `--help`: nothing is written twice, so nothing drifts.
//!
//! Each tool's own test of its command line hands its definitions to [`crate::help::is_sound`], which makes the pages
//! and looks whether they say what a page must; with `NC_BACKUP_PAGES=DIR` they are also written there.
//! So the tools themselves hold nothing of this (`tests/lab/pages` collects them all).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Arg, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// Every page of a tool, by the name of its file: one for the tool, one for each action that people use.
pub fn pages(command: &Command) -> BTreeMap<String, String> {
    let mut tool = command.clone().disable_help_subcommand(true);
    tool.build();
    let said = Said::of(&tool.get_after_help().map(ToString::to_string).unwrap_or_default());
    let mut all = BTreeMap::new();
    for action in tool.get_subcommands().filter(|a| !a.is_hide_set()) {
        let name = format!("{}-{}", tool.get_name(), action.get_name());
        let page = page(&name, action, &said.about(tool.get_name(), action.get_name()), &files(action));
        all.insert(format!("{name}.8"), page);
    }
    let name = tool.get_name();
    let used: BTreeMap<_, _> = tool.get_subcommands().filter(|a| !a.is_hide_set()).flat_map(files).collect();
    all.insert(format!("{name}.8"), page(name, &tool, &said, &used));
    all
}

/// The completions of a tool, by where a system has them below /usr/share. Profiles are completed by their names.
pub fn completions(command: &Command) -> BTreeMap<String, String> {
    let name = command.get_name().to_owned();
    let mut all = BTreeMap::new();
    for (shell, file) in [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/vendor-completions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut in_brief(command), &name, &mut made);
        let made = String::from_utf8(made).unwrap_or_default();
        all.insert(file, with_profiles(shell, &made));
    }
    all
}

/// Writes all of them below `dir`, as they lie below /usr/share.
pub fn write(command: &Command, dir: &Path) -> std::io::Result<()> {
    let manual = |(name, text)| (format!("man/man8/{name}"), text);
    for (name, text) in pages(command).into_iter().map(manual).chain(completions(command)) {
        let file = dir.join(name);
        fs::create_dir_all(file.parent().unwrap_or(dir))?;
        fs::write(file, text)?;
    }
    Ok(())
}

/// Each page has what a page must have, and each action and option is on it and in the completions.
#[track_caller]
pub fn are_whole(command: &Command) {
    let (pages, completions) = (pages(command), completions(command));
    for (name, page) in &pages {
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "FILES", "EXAMPLES"] {
            let has = page.lines().any(|l| l.trim_start_matches(".SH ").trim_matches('"') == section);
            assert!(has, "{name} has no {section}: {page}");
        }
    }
    for (file, text) in &completions {
        assert!(text.contains("ls /etc/nc-backup"), "{file} does not complete profiles");
    }
    let bash = &completions[&format!("bash-completion/completions/{}", command.get_name())];
    for name in commands(bash) {
        assert!(bash.lines().any(|l| l.trim() == format!("{name})")), "bash knows nothing of {name}");
    }
    for action in command.get_subcommands() {
        let name = format!("{}-{}.8", command.get_name(), action.get_name());
        assert_eq!(pages.contains_key(&name), !action.is_hide_set(), "{name}");
        for long in action.get_arguments().filter(|a| !a.is_hide_set()).filter_map(Arg::get_long) {
            let Some(page) = pages.get(&name) else { continue };
            assert!(page.contains(&format!("\\-\\-{}", long.replace('-', "\\-"))), "{name} has no --{long}");
            for (file, text) in &completions {
                assert!(text.contains(long), "{file} has no --{long}");
            }
        }
    }
}

/// What stands below the options in `--help`.
#[derive(Clone, Default)]
struct Said {
    examples: Vec<String>,
    exit_codes: Vec<String>,
    more: Vec<String>,
}

impl Said {
    fn of(text: &str) -> Said {
        let mut said = Said::default();
        let (mut part, mut blank) = ("", true);
        for line in text.lines() {
            let mut line = line;
            let heading = line.strip_prefix("Examples:").map(|rest| ("examples", rest));
            let heading = heading.or_else(|| line.strip_prefix("Exit codes:").map(|rest| ("codes", rest)));
            if let Some((begun, rest)) = heading {
                (part, blank) = (begun, false);
                line = rest.trim_start();
                if line.is_empty() {
                    continue;
                }
            } else if !line.is_empty()
                && (part == "codes" && blank || part == "examples" && !line.starts_with(' '))
            {
                part = "";
            }
            blank = line.is_empty();
            let lines = match part {
                "examples" => &mut said.examples,
                "codes" => &mut said.exit_codes,
                _ => &mut said.more,
            };
            lines.push(line.to_owned());
        }
        said
    }

    /// What of it belongs on the page of an action: its own examples, if there are any, and how it ends.
    fn about(&self, tool: &str, action: &str) -> Said {
        let mut own: Vec<String> = Vec::new();
        let mut is_own = false;
        for line in &self.examples {
            // What goes on is indented further.
            if !line.starts_with("   ") {
                is_own = format!("{line} ").contains(&format!("{tool} {action} "));
            }
            if is_own {
                own.push(line.clone());
            }
        }
        let examples = if own.is_empty() { self.examples.clone() } else { own };
        Said { examples, exit_codes: self.exit_codes.clone(), more: Vec::new() }
    }
}

/// The first of what it says.
fn brief(text: &str) -> String {
    let end = [". ", "; ", ": ", ".\n"].iter().filter_map(|mark| text.find(mark)).min();
    text[..end.unwrap_or(text.len())].trim_end_matches('.').to_owned()
}

/// One page. The sections are those of man-pages(7), in its order.
fn page(name: &str, command: &Command, said: &Said, files: &BTreeMap<String, String>) -> String {
    let version = command.get_version().unwrap_or(env!("CARGO_PKG_VERSION"));
    let man = |command: Command| {
        Man::new(command)
            .title(name.to_uppercase())
            .section("8")
            .source(format!("nc-backup {version}"))
            .manual("Backups of Nextcloud")
    };
    let text =
        |styled: Option<&clap::builder::StyledStr>| styled.map(ToString::to_string).unwrap_or_default();
    let about = text(command.get_about());
    let brief = man(command.clone().about(brief(&about)).display_name(name));
    let whole = man(command.clone());
    let mut out = Vec::new();
    let made = brief
        .render_title(&mut out)
        .and_then(|()| brief.render_name_section(&mut out))
        .and_then(|()| whole.render_synopsis_section(&mut out))
        .and_then(|()| whole.render_description_section(&mut out))
        .and_then(|()| section("", &said.more).to_writer(&mut out))
        .and_then(|()| whole.render_options_section(&mut out))
        .and_then(
            |()| if command.has_subcommands() { whole.render_subcommands_section(&mut out) } else { Ok(()) },
        )
        .and_then(|()| section("EXIT STATUS", &said.exit_codes).to_writer(&mut out))
        .and_then(|()| section_of_files(files).to_writer(&mut out))
        .and_then(|()| section("EXAMPLES", &said.examples).to_writer(&mut out))
        .and_then(|()| see_also(name).to_writer(&mut out));
    debug_assert!(made.is_ok(), "a vector takes all");
    // Each part begins with what roff must know once.
    let once = String::from_utf8(out).unwrap_or_default();
    let (head, rest) = once.split_at(once.find(".TH").unwrap_or_default());
    format!("{head}{}", rest.replace(head, ""))
}

/// Lines as they are where they are indented, else filled.
fn section(title: &str, lines: &[String]) -> Roff {
    let mut roff = Roff::new();
    if lines.iter().all(String::is_empty) {
        return roff;
    }
    if !title.is_empty() {
        roff.control("SH", [title]);
    }
    let mut verbatim = false;
    let end = lines.iter().rposition(|l| !l.is_empty()).map_or(0, |last| last + 1);
    for line in lines[..end].iter().skip_while(|l| l.is_empty()) {
        let indented = line.starts_with(' ');
        if indented != verbatim && !line.is_empty() {
            roff.control(if indented { "nf" } else { "fi" }, []);
            verbatim = indented;
        }
        if line.is_empty() && verbatim {
            roff.text([]);
        } else if line.is_empty() {
            roff.control("PP", []);
        } else {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        }
    }
    if verbatim {
        roff.control("fi", []);
    }
    roff
}

/// Files that options and arguments name as what they are by default.
fn files(action: &Command) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for arg in action.get_arguments().filter(|a| !a.is_hide_set()) {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let (what, default) = match help.split_once("[default: /") {
            Some((what, default)) => (what, default),
            None if arg.is_positional() && help.contains("/etc/nc-backup/PROFILE.toml") => {
                ("The profile: what is backed up, from where to where", "etc/nc-backup/PROFILE.toml")
            }
            None => continue,
        };
        let path = default.split(&[' ', ',', ']'][..]).next().unwrap_or_default();
        all.insert(format!("/{path}"), what.trim().to_owned());
    }
    all
}

fn section_of_files(files: &BTreeMap<String, String>) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["FILES"]);
    // An action that knows of none by itself has a profile all the same.
    if files.is_empty() {
        roff.text([roman("None by default: all that it uses is named by options.")]);
    }
    for (path, what) in files {
        roff.control("TP", []);
        roff.text([clap_mangen::roff::italic(path.clone())]);
        roff.text([roman(what.clone())]);
    }
    roff
}

fn see_also(name: &str) -> Roff {
    let mut roff = Roff::new();
    let tool = ["nc-maint", "pg-snap", "link-sync", "sshfs-mount", "luks-mount", "offsite-push"]
        .into_iter()
        .find(|t| name.starts_with(&format!("{t}-")));
    let tool = tool.map(|t| format!("{t}(8), ")).unwrap_or_default();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(format!("{tool}nc-backup(1), /usr/share/doc/nc-backup"))]);
    roff
}

/// The same, as people see it in a list: without what a tool starts itself with, and of each only the first it says.
fn in_brief(command: &Command) -> Command {
    let said = |styled: Option<&clap::builder::StyledStr>| {
        brief(&styled.map(ToString::to_string).unwrap_or_default())
    };
    let in_brief = |arg: Arg| {
        let help = said(arg.get_help());
        arg.help(help)
    };
    let actions = command.get_subcommands().filter(|a| !a.is_hide_set()).cloned();
    // clap keeps names and versions for ever.
    let forever = |text: &str| -> &'static str { text.to_owned().leak() };
    Command::new(forever(command.get_name()))
        .about(said(command.get_about()))
        .version(forever(command.get_version().unwrap_or_default()))
        .args(command.get_arguments().cloned().map(in_brief))
        .subcommands(actions.map(|action| {
            let about = said(action.get_about());
            action.about(about).mut_args(in_brief)
        }))
}

/// The values that bash's `cmd` gets.
fn commands(made: &str) -> impl Iterator<Item = &str> {
    made.lines()
        .filter_map(|line| line.trim().strip_prefix("cmd=\"")?.strip_suffix('"'))
        .filter(|name| !name.is_empty())
}

/// clap_complete 4.6 takes the dash of a name for the space before an action where it looks `cmd` up, and finds nothing.
fn with_labels(made: &str) -> String {
    let looked_up = |name: &str| name.replace("__subcmd__", "__").replace("__", "__subcmd__");
    let labels: BTreeMap<_, _> = commands(made).map(|name| (format!("{})", looked_up(name)), name)).collect();
    let right = |line: &str| match labels.get(line.trim()) {
        Some(name) => format!("        {name})\n"),
        None => format!("{line}\n"),
    };
    made.lines().map(right).collect()
}

/// clap knows nothing of profiles: it offers nothing, or files.
fn with_profiles(shell: Shell, made: &str) -> String {
    let names = "$(ls /etc/nc-backup 2>/dev/null | sed -n 's/[.]toml$//p')";
    match shell {
        // After an action, whose options end with --help.
        Shell::Bash => with_labels(made).replace(" --help\"\n", &format!(" --help {names}\"\n")),
        Shell::Zsh => {
            let complete = |line: &str| match line.strip_suffix(":_default' \\") {
                Some(head) if head.starts_with("'::profile -- ") => {
                    format!("{head}:($(ls /etc/nc-backup 2>/dev/null | sed -n \"s/[.]toml$//p\"))' \\\n")
                }
                _ => format!("{line}\n"),
            };
            made.lines().map(complete).collect()
        }
        _ => {
            let tool =
                made.split("complete -c ").nth(1).and_then(|l| l.split(' ').next()).unwrap_or_default();
            let needs = format!("__fish_{}_needs_command", tool.replace('-', "_"));
            let names = r"(ls /etc/nc-backup 2>/dev/null | sed -n 's/[.]toml\$//p')";
            format!("{made}complete -c {tool} -n \"not {needs}\" -a \"{names}\"\n")
        }
    }
}
