//! What a person sees: a command on a terminal of its own, of 80 columns and 24 lines.

use std::process::{Command, Stdio};

/// What came to the terminal, and how the command ended.
#[derive(Debug)]
pub struct Seen {
    /// Exit code.
    pub code: i32,
    /// All of it, as it was sent.
    pub text: String,
}

impl Seen {
    /// Its lines, as a terminal would show them if nothing in them moved the cursor.
    pub fn lines(&self) -> Vec<&str> {
        self.text.lines().map(|line| line.trim_end_matches('\r')).collect()
    }

    /// Asserts that nothing a terminal obeys is in it, and that it fits on a screen of 80 columns and 24 lines, with the
    /// command and the next prompt.
    #[track_caller]
    pub fn fits(self) -> Seen {
        let lines = self.lines();
        assert!(lines.iter().all(|line| !line.contains(|c: char| c.is_control())), "{:?}", self.text);
        let rows: usize = lines.iter().map(|line| line.chars().count().div_ceil(80).max(1)).sum();
        assert!(rows <= 22, "{rows} lines:\n{}", self.text);
        assert!(!self.text.contains("{\""), "an object:\n{}", self.text);
        self
    }
}

/// Runs `command` with its streams on a terminal, but for those that `redirected` (`2>/dev/null`, say) leads elsewhere.
#[expect(clippy::disallowed_methods, reason = "tests start the tools as their users do")]
#[track_caller]
pub fn on_terminal(command: &Command, redirected: &str) -> Seen {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    let mut words = String::from("stty cols 80 rows 24 -opost; exec");
    words += if command.get_envs().count() > 0 { " env" } else { "" };
    for (name, value) in command.get_envs() {
        let value = value.expect("a variable is set");
        words += &format!(" {}={}", name.to_string_lossy(), quoted(value));
    }
    for word in [command.get_program()].into_iter().chain(command.get_args()) {
        words += &format!(" {}", quoted(word));
    }
    words += &format!(" {redirected}");
    let mut script = Command::new("script");
    script.args(["-qec", &words, "/dev/null"]).stdin(Stdio::null());
    script.env("TERM", "xterm").env("SHELL", "/bin/sh");
    let output = script.output().expect("`script` starts: util-linux has it");
    Seen {
        code: output.status.code().expect("`script` ends by itself"),
        text: String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}
