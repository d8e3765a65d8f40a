//! stdout where it is a terminal: a short table or a sentence for people, instead of the status object.
//!
//! The one place that decides who reads stdout, and the only one that writes to such a terminal. Text is escaped like that
//! on stderr ([`crate::show`]), and there is nothing else in it that a terminal obeys: no colour, no cursor that moves.
//! What fits on the screen is shown, and said how much more there is.

use std::fmt::Arguments;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsRawFd as _;

use serde_json::{Map, Value};

use crate::{figures, mutant, show};

/// Lines and columns of a terminal that does not tell its own.
const USUAL: (usize, usize) = (24, 80);
/// Lines of a screen that a list leaves to others: the command, what it sums up to, warnings, the next prompt.
const OTHERS: usize = 7;

/// A terminal that people look at.
#[derive(Clone, Debug)]
pub struct Screen {
    rows: usize,
    columns: usize,
}

/// Which end of a list is shown where not all of it fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The beginning.
    First,
    /// The end.
    Last,
}

impl Screen {
    /// The terminal that stdout is; `None` if it is none, or the object is what is asked for.
    pub fn find(json: bool) -> Option<Screen> {
        let stdout = std::io::stdout();
        if json || !stdout.is_terminal() || mutant::active("a-terminal-gets-the-object") {
            return None;
        }
        let (rows, columns) = size(stdout.as_raw_fd());
        Some(Screen { rows, columns })
    }

    /// Writes one line. What becomes of it changes nothing.
    pub fn line(&self, text: Arguments) {
        let text = text.to_string();
        let text = match mutant::active("a-table-shows-names-as-they-are") {
            true => text.into(),
            false => show::escaped(&text),
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}{text}", show::clearing()).and_then(|()| stdout.flush()).ok();
    }

    /// How many lines of a list fit.
    pub fn room(&self) -> usize {
        self.rows.saturating_sub(OTHERS).max(4)
    }

    /// The lines of `data`'s plain facts, as many as fit.
    pub fn facts(&self, data: &Map<String, Value>) -> Vec<String> {
        let facts = data.iter().filter(|(key, _)| !key.ends_with("_b64"));
        let mut facts: Vec<_> = facts
            .filter_map(|(key, value)| Some((figures::name(key), figures::value(key, value)?)))
            .collect();
        facts.truncate(self.room());
        let width = facts.iter().map(|f| f.0.chars().count()).max().unwrap_or(0);
        let left = self.columns.saturating_sub(width + 4).max(20);
        facts.into_iter().map(|(name, value)| format!("  {name:<width$}  {}", cut(&value, left))).collect()
    }
}

impl Screen {
    /// The part of a list that fits, and the line that says how many more `what` there are.
    pub fn part<'a>(&self, list: &'a [String], end: End, what: &str) -> (&'a [String], Option<String>) {
        // A line that is too long takes several.
        let fits = |shown: &[String], room: usize| {
            shown.iter().map(|line| line.chars().count().div_ceil(self.columns).max(1)).sum::<usize>() <= room
        };
        if fits(list, self.room()) {
            return (list, None);
        }
        let of = |shown: usize| if end == End::First { &list[..shown] } else { &list[list.len() - shown..] };
        // The line that says so takes one.
        let shown = (0..list.len()).take_while(|n| fits(of(*n), self.room() - 1)).last().unwrap_or(0);
        let more = list.len() - shown;
        let says = match end {
            End::First => format!("… and {more} more {what}: --all"),
            End::Last => format!("… {more} {what} before these: --all"),
        };
        (of(shown), Some(says))
    }
}

/// `text` in at most `width` columns, if each character takes one.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Lines and columns of the terminal open as `fd`.
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper")]
fn size(fd: i32) -> (usize, usize) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is; a descriptor that is none fails.
    let told = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) } == 0;
    let or = |told_of: u16, usual: usize| if told && told_of > 0 { usize::from(told_of) } else { usual };
    (or(size.ws_row, USUAL.0), or(size.ws_col, USUAL.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_shown_as_far_as_it_fits_and_says_so() {
        let screen = Screen { rows: 24, columns: 80 };
        let list: Vec<_> = (0..37).map(|n| n.to_string()).collect();
        let (shown, more) = screen.part(&list, End::Last, "dates");
        assert_eq!(
            (shown.len(), &*shown[15], more.as_deref()),
            (16, "36", Some("… 21 dates before these: --all"))
        );
        let (shown, more) = screen.part(&list, End::First, "lines");
        assert_eq!((shown.len(), &*shown[0], more.as_deref()), (16, "0", Some("… and 21 more lines: --all")));
        assert_eq!(screen.part(&list[..17], End::First, "lines"), (&list[..17], None));
        // Two lines each.
        let long: Vec<_> = (0..10).map(|_| "x".repeat(81)).collect();
        assert_eq!(screen.part(&long, End::First, "lines").0.len(), 8);
    }

    #[test]
    fn facts_are_named_and_fit() {
        let screen = Screen { rows: 24, columns: 80 };
        let data = serde_json::json!({
            "free_bytes": 3_221_225_472_u64, "maintenance_ms": 812, "run_active": false, "none": null,
            "path": "x".repeat(200), "path_b64": "eA==", "steps": [{"step": "push"}],
        });
        let lines = screen.facts(data.as_object().unwrap());
        assert_eq!(lines[0], "  free         3.0 GiB");
        assert_eq!(lines[1], "  maintenance  812 ms");
        assert!(lines.iter().any(|l| l == "  run active   no"), "{lines:?}");
        assert!(lines.iter().all(|l| l.chars().count() <= 80) && lines.len() == 4, "{lines:?}");
    }
}
