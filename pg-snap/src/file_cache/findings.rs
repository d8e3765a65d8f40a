//! What does not fit: counted exactly, named up to a limit, and what would be lost by it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use common::status::put_text;
use serde_json::{Map, Value, json};

/// How something does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// A row whose file is not there.
    MissingFile,
    /// A row whose folder is not there.
    MissingFolder,
    /// A file that has another size than its row.
    SizeDiffers,
    /// A folder where the row has a file, or the other way round.
    TypeDiffers,
    /// A file without a row: unlisted until `occ files:scan`.
    FileWithoutRow,
    /// config.php and the database do not belong together.
    Config,
    /// The dump and the files are not of one moment, or the dump lacks tables.
    Dump,
}

impl Class {
    const ALL: [Class; 7] = [
        Class::MissingFile,
        Class::MissingFolder,
        Class::SizeDiffers,
        Class::TypeDiffers,
        Class::FileWithoutRow,
        Class::Config,
        Class::Dump,
    ];

    /// The word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Class::MissingFile => "missing-file",
            Class::MissingFolder => "missing-folder",
            Class::SizeDiffers => "size-differs",
            Class::TypeDiffers => "type-differs",
            Class::FileWithoutRow => "file-without-row",
            Class::Config => "config",
            Class::Dump => "dump",
        }
    }
}

/// Users that are named with what they would lose; the rest is in the sum.
const MOST_USERS: usize = 100;

/// All findings of one comparison.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    limit: usize,
    counts: BTreeMap<Class, u64>,
    examples: BTreeMap<Class, Vec<Value>>,
    lost_files: u64,
    lost_bytes: u64,
    users: BTreeMap<String, (u64, u64)>,
}

/// One finding about a file.
#[derive(Debug)]
pub(crate) struct Finding<'f> {
    pub(crate) class: Class,
    pub(crate) user: Option<&'f str>,
    /// Below `data/`.
    pub(crate) path: &'f [u8],
    /// What the row promises; `None` without a row, or for a folder.
    pub(crate) row_bytes: Option<u64>,
    /// What is there; `None` if nothing is, or a folder.
    pub(crate) file_bytes: Option<u64>,
    /// Whether a file's content is gone or cut, and how much of it.
    pub(crate) lost_bytes: Option<u64>,
}

impl Findings {
    /// None yet; `limit` of each class will be named.
    pub(crate) fn new(limit: usize) -> Findings {
        Findings { limit, ..Findings::default() }
    }

    /// Adds one about a file.
    pub(crate) fn add(&mut self, finding: &Finding<'_>) {
        if let Some(bytes) = finding.lost_bytes {
            self.lost_files += 1;
            self.lost_bytes = self.lost_bytes.saturating_add(bytes);
            let user = finding.user.unwrap_or("");
            if self.users.len() < MOST_USERS || self.users.contains_key(user) {
                let lost = self.users.entry(user.to_owned()).or_default();
                *lost = (lost.0 + 1, lost.1.saturating_add(bytes));
            }
        }
        self.note(finding.class, || {
            let mut example = Map::new();
            example.insert("user".into(), json!(finding.user));
            put_text(&mut example, "path", OsStr::from_bytes(finding.path));
            example.insert("row_bytes".into(), json!(finding.row_bytes));
            example.insert("file_bytes".into(), json!(finding.file_bytes));
            example.insert("problem".into(), Value::Null);
            example
        });
    }

    /// Adds one that a sentence says.
    pub(crate) fn say(&mut self, class: Class, problem: impl Into<String>) {
        let problem = problem.into();
        self.note(class, || {
            let keys = ["user", "path", "row_bytes", "file_bytes"].map(|key| (key.to_owned(), Value::Null));
            keys.into_iter().chain([("problem".to_owned(), json!(problem))]).collect()
        });
    }

    fn note(&mut self, class: Class, example: impl FnOnce() -> Map<String, Value>) {
        *self.counts.entry(class).or_default() += 1;
        let list = self.examples.entry(class).or_default();
        if list.len() < self.limit {
            let mut example = example();
            example.insert("class".into(), json!(class.word()));
            list.push(example.into());
        }
    }

    /// How many there are.
    pub(crate) fn count(&self, class: Class) -> u64 {
        self.counts.get(&class).copied().unwrap_or(0)
    }

    /// How many there are in all.
    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// `findings`: a number for each class.
    pub(crate) fn counts(&self) -> Value {
        Class::ALL
            .iter()
            .map(|c| (c.word().replace('-', "_"), json!(self.count(*c))))
            .collect::<Map<_, _>>()
            .into()
    }

    /// `examples`.
    pub(crate) fn examples(&self) -> Vec<Value> {
        self.examples.values().flatten().cloned().collect()
    }

    /// `would_lose`.
    pub(crate) fn would_lose(&self) -> Value {
        let users = self.users.iter().map(|(user, (files, bytes))| {
            json!({ "user": Some(user).filter(|u| !u.is_empty()), "files": files, "bytes": bytes })
        });
        json!({ "files": self.lost_files, "bytes": self.lost_bytes, "users": users.collect::<Vec<_>>() })
    }

    /// A few lines for people.
    pub(crate) fn tell(&self, tool: &str) {
        for (class, list) in &self.examples {
            let shown = list.len().min(5);
            for example in &list[..shown] {
                let text = |key: &str| example[key].as_str().map(|t| t.escape_debug().to_string());
                let bytes = |key: &str| example[key].as_u64().map_or("-".to_owned(), |b| b.to_string());
                let what = match (text("problem"), text("path")) {
                    (Some(problem), _) => example["problem"].as_str().map_or(problem, str::to_owned),
                    (None, path) => format!(
                        "{} (row {}, file {} bytes{})",
                        path.unwrap_or_default(),
                        bytes("row_bytes"),
                        bytes("file_bytes"),
                        text("user").map(|u| format!("; user {u}")).unwrap_or_default()
                    ),
                };
                common::say!(tool, "{}: {what}", class.word());
            }
            let more = self.count(*class).saturating_sub(shown as u64);
            if more > 0 {
                common::say!(tool, "{}: and {more} more", class.word());
            }
        }
    }

    /// What it amounts to, in a sentence.
    pub(crate) fn sentence(&self) -> String {
        let counts = Class::ALL.iter().filter(|c| self.count(**c) > 0);
        let counts =
            counts.map(|c| format!("{} {}", self.count(*c), c.word())).collect::<Vec<_>>().join(", ");
        let lost = match self.lost_files {
            0 => "no content of a listed file would be lost".to_owned(),
            files => format!("{files} files would be lost or cut, {} bytes", self.lost_bytes),
        };
        format!("the dump and the files do not fit: {counts}; {lost}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_and_lists_bounded() {
        let mut findings = Findings::new(2);
        for n in 0..5u64 {
            let path = format!("anna/files/{n}");
            findings.add(&Finding {
                class: Class::MissingFile,
                user: Some("anna"),
                path: path.as_bytes(),
                row_bytes: Some(n),
                file_bytes: None,
                lost_bytes: Some(n),
            });
        }
        findings.say(Class::Config, "the instance is another one");
        assert_eq!((findings.total(), findings.examples().len()), (6, 3));
        assert_eq!(findings.counts()["missing_file"], 5);
        assert_eq!(
            findings.would_lose(),
            json!({"files": 5, "bytes": 10, "users": [{"user": "anna", "files": 5, "bytes": 10}]})
        );
        assert!(
            findings.sentence().contains("5 missing-file, 1 config; 5 files would be lost or cut, 10 bytes")
        );
    }
}
