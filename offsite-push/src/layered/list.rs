//! The list of a date: a text file that a person can read and mount by.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::{durable, offsite};

use crate::store;

/// The first line, with the format's number.
const FIRST: &str = "nc-backup layers 1";
/// The last line: without it, something is missing.
const LAST: &str = "end";

/// What an overlay takes, less the two that the view adds.
const MOST: usize = 498;

/// What begins the name of a date that lies in the container as a tree, of the layout before this one.
pub(super) const TREES: &str = "snapshots/";

/// What begins the name of a large content.
pub(super) const LARGE: &str = "big/";

/// What an image's name ends with.
const SUFFIX: &str = ".sqfs";

/// One layer of a date, or a large content that its images need.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Layer {
    /// An image, by its name.
    Image(String),
    /// The tree of a date.
    Tree(String),
    /// A large content, by its hash.
    Big(String),
}

/// A date's layers, the newest first, and then the large contents that they need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    /// The date.
    pub(super) date: String,
    /// Its layers.
    pub(super) layers: Vec<Layer>,
}

impl Layer {
    /// The layer of this name.
    pub(super) fn parse(name: &str) -> Result<Layer> {
        if is_image(name) {
            return Ok(Layer::Image(name.to_owned()));
        }
        if let Some(hash) = name.strip_prefix(LARGE).filter(|hash| is_hash(hash)) {
            return Ok(Layer::Big(hash.to_owned()));
        }
        let tree = name.strip_prefix(TREES).and_then(|rest| rest.strip_suffix('/'));
        match tree.filter(|date| store::is_date(date)) {
            Some(date) => Ok(Layer::Tree(date.to_owned())),
            None => anyhow::bail!("{name:?} names no layer"),
        }
    }

    /// As it is written in a list.
    fn name(&self) -> String {
        match self {
            Layer::Image(name) => name.clone(),
            Layer::Tree(date) => format!("{TREES}{date}/"),
            Layer::Big(hash) => format!("{LARGE}{hash}"),
        }
    }

    /// Where it lies in the container.
    pub(super) fn path(&self, container: &Path) -> std::path::PathBuf {
        match self {
            Layer::Image(name) => container.join(super::LAYERS).join(super::IMAGES).join(name),
            Layer::Tree(date) => offsite::store(container).join(date),
            Layer::Big(hash) => container.join(super::LAYERS).join(super::BIG).join(super::HIDDEN).join(hash),
        }
    }
}

/// Whether this is a SHA-256 as hexadecimal digits.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether this is the name of an image: a date, perhaps what tells it from others of that date, and the suffix.
pub(super) fn is_image(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(SUFFIX) else { return false };
    let (Some(date), Some(rest)) = (stem.get(..20), stem.get(20..)) else { return false };
    let more = rest.strip_prefix('.');
    let plain =
        |more: &str| more.len() <= 20 && !more.is_empty() && more.bytes().all(|b| b.is_ascii_alphanumeric());
    store::is_date(date) && (rest.is_empty() || more.is_some_and(plain))
}

impl List {
    /// A list of layers by name.
    pub(super) fn new(date: String, names: &[String]) -> Result<List> {
        anyhow::ensure!(store::is_date(&date), "{date:?} is no date");
        let layers = names.iter().map(|name| Layer::parse(name)).collect::<Result<Vec<_>>>()?;
        let list = List { date, layers };
        list.check()?;
        Ok(list)
    }

    fn check(&self) -> Result<()> {
        let date = &self.date;
        let laid = self.laid().count();
        anyhow::ensure!(laid > 0, "{date} has no layers");
        anyhow::ensure!(laid <= MOST, "{date} has more than {MOST} layers");
        let mut sorted = self.layers.clone();
        sorted.sort_unstable();
        anyhow::ensure!(sorted.windows(2).all(|w| w[0] != w[1]), "{date} has a layer twice");
        let tree = self.layers.iter().position(|layer| matches!(layer, Layer::Tree(_)));
        anyhow::ensure!(tree.is_none_or(|at| at + 1 == laid), "{date} has a tree above another layer");
        let first = self.layers.iter().take(laid).all(|layer| !matches!(layer, Layer::Big(_)));
        anyhow::ensure!(first, "{date} has a large content above a layer");
        Ok(())
    }

    /// What is laid over each other.
    pub(super) fn laid(&self) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(|layer| !matches!(layer, Layer::Big(_)))
    }

    /// The names of its layers.
    pub(super) fn names(&self) -> Vec<String> {
        self.layers.iter().map(Layer::name).collect()
    }

    /// Reads the list of `date` in the file at `path`; `None` if there is none.
    pub(super) fn read(path: &Path, date: &str) -> Result<Option<List>> {
        let Some(text) = durable::read(path)? else { return Ok(None) };
        let list = String::from_utf8(text).context("it is no text").and_then(|text| {
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            match &lines[..] {
                [first, names @ .., last] if first == FIRST && last == LAST => {
                    List::new(date.to_owned(), names)
                }
                _ => anyhow::bail!("it does not begin with \"{FIRST}\" and end with \"{LAST}\""),
            }
        });
        list.map(Some).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Puts it at `path`, wholly and durably.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        durable::write(path, self.text().as_bytes(), 0o600)
    }

    /// Puts it at `path`, wholly, when all that was written to the container before is durable. It is so itself when something
    /// that comes next is, or the container is closed.
    pub(super) fn write_after_all(&self, path: &Path) -> Result<()> {
        durable::write_after_all(path, self.text().as_bytes(), 0o600)
    }

    fn text(&self) -> String {
        let lines = [FIRST.to_owned()].into_iter().chain(self.names()).chain([LAST.to_owned()]);
        lines.map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: &str = "2026-11-22T03-30-00Z";

    #[test]
    fn a_list_comes_back_as_it_was_written_and_a_cut_one_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        assert_eq!(List::read(&path, DATE).unwrap(), None);
        let names = [format!("{DATE}.sqfs"), format!("{DATE}.2.sqfs"), format!("snapshots/{DATE}/")];
        let list = List::new(DATE.into(), &names).unwrap();
        list.write(&path).unwrap();
        assert_eq!(List::read(&path, DATE).unwrap(), Some(list));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().nth(1), Some(&names[0][..]));
        for cut in [0, 10, FIRST.len() + 1, FIRST.len() + 2 + names[0].len(), text.len() - 4] {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert!(List::read(&path, DATE).is_err(), "{cut}");
        }
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let names = |names: &[&str]| {
            List::new(DATE.into(), &names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())
        };
        for bad in [
            "../x.sqfs",
            "2026-11-22T03-30-00Z.a/b.sqfs",
            "2026-11-22T03-30-00Z..sqfs",
            "2026-11-22T03-30-00Z",
            "snapshots/../x/",
            "snapshots/2026-11-22T03-30-00Z",
            "/etc/",
            "",
        ] {
            assert!(names(&[bad]).is_err(), "{bad}");
        }
        assert!(names(&[]).is_err());
        let tree = "snapshots/2026-11-22T03-30-00Z/";
        let image = "2026-11-22T03-30-00Z.sqfs";
        assert!(
            names(&[image, tree]).is_ok()
                && names(&[tree, image]).is_err()
                && names(&[image, image]).is_err()
        );
    }
}
