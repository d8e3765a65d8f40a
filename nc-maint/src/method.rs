//! Which way the switch is thrown, and why.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::profile::Method;
use serde::{Deserialize, Serialize};

use crate::dropin::Folder;
use crate::instance::is_php;

/// The PHP that runs occ, and the configuration folder as it sees it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Php {
    pub(crate) argv: Vec<OsString>,
    pub(crate) config_dir: OsString,
}

/// The method, and the reason for it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    pub(crate) reason: String,
    /// Nobody asked for this one.
    pub(crate) automatic: bool,
}

impl Php {
    /// From occ's argv, if that is a PHP with a path to occ: `docker exec nextcloud php /var/www/html/occ`.
    pub(crate) fn behind(occ: &[OsString]) -> Option<Php> {
        let (script, argv) = occ.split_last()?;
        let script = Path::new(script);
        if script.file_name() != Some(OsStr::new("occ")) || !is_php(argv.last()?) {
            return None;
        }
        let config_dir = script.parent().map_or_else(PathBuf::new, Path::to_owned).join("config");
        Some(Php { argv: argv.to_vec(), config_dir: config_dir.into() })
    }

    /// It runs on this machine, on the very folder we see.
    fn is_local(&self, root: &Path) -> bool {
        let program = self.argv.first().and_then(|p| Path::new(p).file_name()).unwrap_or_default();
        let here = is_php(program) || ["sudo", "runuser"].iter().any(|p| program == *p);
        here && Path::new(&self.config_dir) == root.join("config")
    }
}

/// What was asked for, or the drop-in where it is possible. If what was asked for is not, only `on` and `run`
/// fail, when they try: `off` has to work all the same.
pub(crate) fn choose(wanted: Option<Method>, root: Option<&Path>, php: Option<&Php>) -> Choice {
    let possible = possible(root);
    let automatic = wanted.is_none();
    let (method, reason) = match (wanted, possible) {
        (Some(Method::DropIn), Err(e)) => (Method::DropIn, format!("asked for, but not possible: {e:#}")),
        (Some(method), _) => (method, "asked for in the profile or with --method".into()),
        (None, Err(e)) => (Method::Occ, format!("{e:#}")),
        (None, Ok(())) if root.is_some_and(|root| php.is_some_and(|p| p.is_local(root))) => {
            (Method::DropIn, "config/ can be written, and PHP here reads what is in it".into())
        }
        (None, Ok(())) => (
            Method::Occ,
            "occ does not run by this machine's own PHP, which may see another folder; if it is the same, \
             `method = \"drop-in\"` is faster"
                .into(),
        ),
    };
    Choice { method, reason, automatic }
}

fn possible(root: Option<&Path>) -> Result<()> {
    Folder::open(root.context("Nextcloud's folder is not known")?)?.usable()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_php_behind_occ() {
        let root = Path::new("/nc");
        let local = |text: &str| Php::behind(&words(text)).map(|p| p.is_local(root));
        assert_eq!(local("php /nc/occ"), Some(true));
        assert_eq!(local("sudo -u www-data /usr/bin/php8.2 /nc/occ"), Some(true));
        assert_eq!(local("php /other/occ"), Some(false));
        assert_eq!(local("docker exec -u www-data nextcloud php /nc/occ"), Some(false));
        assert_eq!(local("docker exec -u www-data nextcloud php occ"), Some(false));
        assert_eq!(local("/usr/local/bin/nextcloud.occ"), None);
        assert_eq!(local("sudo -u www-data /nc/occ"), None);
        assert_eq!(Php::behind(&words("docker exec nc php occ")).unwrap().config_dir, "config");
    }

    #[test]
    fn what_cannot_be_is_avoided_and_said_if_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let php = Php { argv: words("php"), config_dir: dir.path().join("config").into() };
        let choice = choose(None, Some(dir.path()), Some(&php));
        assert_eq!(choice.method, Method::Occ);
        assert!(choice.reason.contains("config"), "{}", choice.reason);
        let asked = choose(Some(Method::DropIn), Some(dir.path()), Some(&php));
        assert!(asked.method == Method::DropIn && asked.reason.contains("not possible"), "{}", asked.reason);

        std::fs::create_dir(dir.path().join("config")).unwrap();
        std::fs::write(dir.path().join("config/config.php"), "<?php").unwrap();
        assert_eq!(choose(None, Some(dir.path()), Some(&php)).method, Method::DropIn);
        assert_eq!(choose(None, Some(dir.path()), None).method, Method::Occ);
    }
}
