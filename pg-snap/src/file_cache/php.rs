//! config.php, read and never run: it belongs to the web server, and we may be root.
//!
//! Nextcloud writes it as `$CONFIG = array ( 'key' => value, … );` with plain values, and that is what is understood: strings,
//! numbers, true, false, null, and lists of these, in both ways of writing lists. What is computed is `Unknown`, for that key alone.

use std::collections::HashMap;

/// A value as it stands there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Text(String),
    /// A number, true, false or null, as written.
    Word(String),
    List(Vec<(Option<String>, Value)>),
    /// An expression.
    Unknown,
}

/// The keys of `$CONFIG`; `None` if there is no such list in `text`.
pub(crate) fn config(text: &str) -> Option<HashMap<String, Value>> {
    match assigned(text, "$CONFIG")? {
        Value::List(list) => Some(list.into_iter().filter_map(|(key, value)| Some((key?, value))).collect()),
        _ => None,
    }
}

/// The numbers of `$OC_Version = [32, 0, 1, 2];` in version.php.
pub(crate) fn version(text: &str) -> Option<String> {
    match assigned(text, "$OC_Version")? {
        Value::List(list) => {
            let numbers = list.into_iter().map(|(_, value)| match value {
                Value::Word(number) => Some(number),
                _ => None,
            });
            Some(numbers.collect::<Option<Vec<_>>>()?.join("."))
        }
        _ => None,
    }
}

/// The value first assigned to `name`.
fn assigned(text: &str, name: &str) -> Option<Value> {
    let mut reader = Reader { rest: text, depth: 0 };
    loop {
        reader.blanks();
        if let Some(rest) = reader.rest.strip_prefix(name) {
            let mut after = Reader { rest, depth: 0 };
            after.blanks();
            if after.rest.starts_with('=') && !after.rest.starts_with("==") && !after.rest.starts_with("=>") {
                after.rest = &after.rest[1..];
                return Some(after.value());
            }
        }
        // A string or one character more: a name inside a string is none.
        if reader.text().is_none() {
            let next = reader.rest.chars().next()?;
            reader.rest = &reader.rest[next.len_utf8()..];
        }
    }
}

/// Lists in lists that are followed; a hostile file must not exhaust the stack.
const DEEPEST: u32 = 32;

struct Reader<'t> {
    rest: &'t str,
    depth: u32,
}

impl Reader<'_> {
    /// Goes over blanks and comments.
    fn blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            let comment = [("/*", "*/"), ("//", "\n"), ("#", "\n")];
            // `#[` begins an attribute, which no configuration has.
            let Some((_, end)) = comment.into_iter().find(|(begin, _)| self.rest.starts_with(begin)) else {
                return;
            };
            self.rest = self.rest.split_once(end).map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, token: &str) -> bool {
        self.blanks();
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// A value and nothing more, up to the comma or the bracket after it; else `Unknown`, and goes there.
    fn value(&mut self) -> Value {
        self.blanks();
        let value = self.simple();
        self.blanks();
        if value.is_some() && matches!(self.rest.chars().next(), None | Some(',' | ')' | ']' | ';')) {
            return value.unwrap_or(Value::Unknown);
        }
        self.skip(false);
        Value::Unknown
    }

    fn simple(&mut self) -> Option<Value> {
        if let Some(text) = self.text() {
            return text.map(Value::Text);
        }
        if self.rest.starts_with('[') {
            self.take("[");
            return self.list("]");
        }
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
        let end = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return None;
        }
        self.rest = rest;
        if name.eq_ignore_ascii_case("array") && self.take("(") {
            return self.list(")");
        }
        let known = ["true", "false", "null"].iter().any(|w| name.eq_ignore_ascii_case(w));
        (known || name.parse::<f64>().is_ok()).then(|| Value::Word(name.to_ascii_lowercase()))
    }

    fn list(&mut self, end: &str) -> Option<Value> {
        if self.depth == DEEPEST {
            return None;
        }
        self.depth += 1;
        let mut list = Vec::new();
        loop {
            if self.take(end) {
                self.depth -= 1;
                return Some(Value::List(list));
            }
            let first = self.element();
            if self.take("=>") {
                let key = match first {
                    Value::Text(key) | Value::Word(key) => Some(key),
                    _ => None,
                };
                list.push((key, self.value()));
            } else {
                list.push((None, first));
            }
            if !self.take(",") && !self.rest.starts_with(end) {
                self.depth -= 1;
                return None;
            }
        }
    }

    /// A key or a value of a list.
    fn element(&mut self) -> Value {
        self.blanks();
        let value = self.simple();
        self.blanks();
        let ends = matches!(self.rest.chars().next(), Some(',' | ')' | ']')) || self.rest.starts_with("=>");
        match value {
            Some(value) if ends => value,
            _ => {
                self.skip(true);
                Value::Unknown
            }
        }
    }

    /// Goes to the comma, the bracket or the semicolon that ends an expression; to the arrow, if it is a `key`.
    fn skip(&mut self, key: bool) {
        let mut open = 0u32;
        loop {
            self.blanks();
            if self.text().is_some() {
                continue;
            }
            let Some(next) = self.rest.chars().next() else { return };
            match next {
                '(' | '[' | '{' => open += 1,
                ')' | ']' | '}' if open > 0 => open -= 1,
                ')' | ']' | '}' | ',' | ';' if open == 0 => return,
                _ if key && open == 0 && self.rest.starts_with("=>") => return,
                _ => {}
            }
            self.rest = &self.rest[next.len_utf8()..];
        }
    }

    /// A string: `None` if there is none here, `Some(None)` if it is one that PHP would compute.
    fn text(&mut self) -> Option<Option<String>> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (mut out, mut plain) = (String::new(), true);
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[at + 1..];
                return Some(plain.then_some(out));
            }
            if c != '\\' {
                plain &= quote == '\'' || c != '$';
                out.push(c);
                continue;
            }
            match chars.next() {
                Some((_, e)) if e == '\\' || e == quote => out.push(e),
                Some((_, '$')) if quote == '"' => out.push('$'),
                Some((_, e)) => {
                    plain &= quote == '\'';
                    out.push('\\');
                    out.push(e);
                }
                None => break,
            }
        }
        self.rest = "";
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(text: &str, key: &str) -> Value {
        config(text).unwrap().remove(key).unwrap()
    }

    #[test]
    fn what_nextcloud_writes_is_understood() {
        let text = r#"<?php
/* $CONFIG = 1 */ // $CONFIG = 2
$CONFIG = array (
  'instanceid' => 'oc1',
  'a\'b' => 'it\'s \\ \n',
  'installed' => true,
  'trusted_domains' => array ( 0 => 'localhost', 1 => 'cloud.example', ),
  'port' => -5,
  'apps_paths' => [ [ 'path' => '/a', 'writable' => false ], ],
  "double" => "plain \"text\"",
);
"#;
        assert_eq!(get(text, "instanceid"), Value::Text("oc1".into()));
        assert_eq!(get(text, "a'b"), Value::Text(r"it's \ \n".into()));
        assert_eq!(get(text, "installed"), Value::Word("true".into()));
        assert_eq!(get(text, "port"), Value::Word("-5".into()));
        assert_eq!(get(text, "double"), Value::Text("plain \"text\"".into()));
        assert!(matches!(get(text, "trusted_domains"), Value::List(list) if list.len() == 2));
        assert!(matches!(get(text, "apps_paths"), Value::List(list) if list.len() == 1));
    }

    #[test]
    fn what_is_computed_is_unknown_for_its_key_alone() {
        let text = r#"<?php $CONFIG = [
  'a' => getenv('A') ?: ['x' => ')'], 'b' => 'b' . "c", 'c' => "$x", 'd' => __DIR__ . '/data', 'e' => 'fine',
  getenv('K') => 1, 'f' => fn () => 1, 'g' => 7 ];"#;
        for key in ["a", "b", "c", "d"] {
            assert_eq!(get(text, key), Value::Unknown, "{key}");
        }
        assert_eq!(get(text, "e"), Value::Text("fine".into()));
        assert_eq!(get(text, "g"), Value::Word("7".into()));
    }

    #[test]
    fn what_is_no_configuration_is_none_and_ends() {
        for text in [
            "",
            "<?php",
            "<?php $CONFIG = ",
            "<?php $CONFIG = 5;",
            "$CONFIG = array( 'a' => ",
            "'$CONFIG = []",
            "$CONFIG['a'] = 1;",
            "$CONFIG == []",
        ] {
            assert_eq!(config(text), None, "{text}");
        }
        assert_eq!(config("$CONFIG = [];"), Some(HashMap::new()));
        assert_eq!(config(&format!("$CONFIG = {}", "[".repeat(100_000))), None);
    }

    #[test]
    fn the_version_of_the_code() {
        let text = "<?php\n$OC_Version = [32, 0, 1, 2];\n$OC_VersionString = '32.0.1';";
        assert_eq!(version(text).as_deref(), Some("32.0.1.2"));
        assert_eq!(version("<?php $OC_Version = array(31,0,5,1);").as_deref(), Some("31.0.5.1"));
    }
}
