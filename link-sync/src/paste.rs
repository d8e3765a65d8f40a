//! A path of a snapshot as it can be pasted behind `link-sync restore PROFILE --path `.

use std::str;

use common::show;

/// `SOURCE/PATH`, quoted for the shell where it must be, without its source if that is `data`, and with `--source` if not.
pub fn pasteable(full: &[u8]) -> String {
    let at = full.iter().position(|b| *b == b'/').unwrap_or(full.len());
    let (source, path) = (&full[..at], full.get(at + 1..).unwrap_or_default());
    // An option it is not.
    let path = if path.starts_with(b"-") { [b"./", path].concat() } else { path.to_vec() };
    match source {
        b"data" => quoted(&path),
        _ => format!("{} --source {}", quoted(&path), String::from_utf8_lossy(source)),
    }
}

/// A word of a command line. What a terminal would obey, or could not show, is written by the numbers of its bytes: bash, zsh
/// and ksh read that.
fn quoted(word: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(b);
    let text = str::from_utf8(word).ok().filter(|text| show::escaped(text) == *text);
    match text {
        Some(text) if !word.is_empty() && text.bytes().all(|b| plain(&b) || b >= 0x80) => text.to_owned(),
        Some(text) => format!("'{}'", text.replace('\'', "'\\''")),
        None => {
            let mut out = String::from("$'");
            for chunk in word.utf8_chunks() {
                chunk.valid().chars().for_each(|c| add(&mut out, c));
                chunk.invalid().iter().for_each(|b| add_byte(&mut out, *b));
            }
            out + "'"
        }
    }
}

fn add(out: &mut String, c: char) {
    let text = c.to_string();
    match c {
        '\'' | '\\' => out.extend(['\\', c]),
        _ if show::escaped(&text) == text => out.push(c),
        _ => text.bytes().for_each(|b| add_byte(out, b)),
    }
}

fn add_byte(out: &mut String, b: u8) {
    use std::fmt::Write as _;
    write!(out, "\\{b:03o}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_quoted_where_it_must_be() {
        for (path, pasted) in [
            (&b"data/alice/files/report.odt"[..], "alice/files/report.odt"),
            (b"data/alice/files/Fotos \xc3\xbcber.jpg", "'alice/files/Fotos \u{fc}ber.jpg'"),
            ("data/alice/\u{fc}ber.jpg".as_bytes(), "alice/\u{fc}ber.jpg"),
            (b"data/alice/it's $(me)", "'alice/it'\\''s $(me)'"),
            (b"data/~root", "'~root'"),
            (b"data/-rf", "./-rf"),
            (b"html/config/config.php", "config/config.php --source html"),
            (b"data/a\nb\x1b]0;\x07'\\", "$'a\\012b\\033]0;\\007\\'\\\\'"),
            (b"data/\xff\xe2\x80\xaex", "$'\\377\\342\\200\\256x'"),
            (b"data", "''"),
        ] {
            assert_eq!(pasteable(path), pasted);
        }
    }

    #[test]
    fn a_shell_reads_every_byte_back() {
        let every: Vec<u8> = b"data/".iter().copied().chain(1..=255).collect();
        let word = pasteable(&every);
        assert!(word.chars().all(|c| !c.is_control()), "{word:?}");
        let script = format!("printf %s {word}");
        let read = common::run::Cmd::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(read.stdout, every[5..], "{word}");
    }
}
