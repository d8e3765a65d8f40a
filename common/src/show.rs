//! What people see: the one place that writes to stderr.
//!
//! Much of it is foreign: names of files, what S2, S3, a database or PHP said. A terminal obeys what it is sent, so nothing
//! foreign may reach one as it is: it could hide a line, make one up, or type. All text is escaped here, whoever made it,
//! so that no caller can forget; JSON carries the same values, spelled so that a terminal does nothing either. And
//! whatever becomes of stderr (closed, full, nobody reads), the work goes on: what only tells fails nothing.

use std::borrow::Cow;
use std::fmt::{Arguments, Write as _};
use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::mutant;

/// Whether a terminal could do something else with it than show it where it stands: control characters, what turns the
/// direction of text (a name that reads backwards), and what separates lines or is not seen at all.
fn harmful(c: char) -> bool {
    let acts = c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        )
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    acts && !mutant::active("foreign-text-is-shown-as-it-is")
}

/// `text` with nothing in it that a terminal obeys: `\n`, `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// JSON that says exactly the same and has nothing in it that a terminal obeys.
pub fn escaped_json(json: String) -> String {
    if !json.contains(harmful) {
        return json;
    }
    // Such characters stand in strings only, where any character may be written by its number.
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(shown, "\\u{unit:04x}").ok();
            }
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Whether a person is looking.
pub fn watched() -> bool {
    stderr().is_terminal()
}

/// Whether a line that moves can be shown: to somebody, on a terminal that can.
pub fn moves() -> bool {
    watched() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// One line.
pub fn line(text: Arguments) {
    write(&format!("{}\n", escaped(&text.to_string())));
}

/// What another program said, in lines of its own.
pub fn passage(said: &[u8]) {
    let mut shown = String::new();
    for line in String::from_utf8_lossy(said).split_inclusive('\n') {
        let (words, end) = line.strip_suffix('\n').map_or((line, ""), |words| (words, "\n"));
        let cells: Vec<_> = words.split('\t').map(escaped).collect();
        shown.push_str(&cells.join("\t"));
        shown.push_str(end);
    }
    write(&shown);
}

/// A question; the answer is typed behind it.
pub fn question(text: &str) {
    write(&escaped(text));
}

/// A line that takes the place of the one before, on a terminal; an empty one clears it.
pub fn moving(text: Arguments) {
    write(&format!("\r{}\x1b[K", escaped(&text.to_string())));
}

/// Whether a line that moves stands on the terminal: then what is told takes its place, and it comes again below.
static STANDS: AtomicBool = AtomicBool::new(false);

/// A line that moves, drawn by others, stands on the terminal from now on, or no longer.
pub fn stands(stands: bool) {
    STANDS.store(stands, Ordering::Relaxed);
}

/// What clears the line that moves, if there is one.
pub(crate) fn clearing() -> &'static str {
    if STANDS.load(Ordering::Relaxed) { "\r\x1b[K" } else { "" }
}

fn write(text: &str) {
    let mut stderr = stderr().lock();
    stderr.write_all(clearing().as_bytes()).ok();
    stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()).ok();
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that writes to it")]
fn stderr() -> std::io::Stderr {
    std::io::stderr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_acts() {
        for (foreign, shown) in [
            ("plain, ünïcödé, 日本, 👩‍💻 \\ \"", "plain, ünïcödé, 日本, 👩‍💻 \\ \""),
            ("a\nlink-sync: all is well", "a\\nlink-sync: all is well"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m\x7f\r\0", "\\u{9b}31m\\u{7f}\\r\\u{0}"),
            ("gnp.\u{202e}exe\u{2066}", "gnp.\\u{202e}exe\\u{2066}"),
        ] {
            assert_eq!(escaped(foreign), shown);
        }
    }

    #[test]
    fn json_says_the_same_and_acts_no_more() {
        let value = serde_json::json!({"a\u{9b}\u{7f}": "\u{202e}\u{e0041}\n\\", "b": [1, "ü"]});
        let text = escaped_json(value.to_string());
        assert!(!text.contains(harmful), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
