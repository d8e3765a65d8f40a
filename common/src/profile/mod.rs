//! The profile: `/etc/nc-backup/PROFILE.toml`, one file for all tools.
//!
//! Every tool validates the whole file and uses what concerns it. A file that root reads must be
//! root's, as must its directory, and writable by nobody else: what is judged is the opened file.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use crate::fault::Fault;

mod tables;
mod units;

pub use tables::{
    Database, Drill, Layout, Luks, Method, Nextcloud, Offsite, Profile, Snapshot, Source, Ssh, Sshfs, Store,
};
pub use units::{Bytes, Span, TimeOfDay};

/// Where profiles are.
pub const DIR: &str = "/etc/nc-backup";

impl Profile {
    /// Loads `/etc/nc-backup/NAME.toml`, or `config` whatever it is called. Neither: an empty profile
    /// called `manual`, for trying a tool with options alone.
    pub fn load(name: Option<&str>, config: Option<&Path>) -> Result<Profile> {
        let file = match (name, config) {
            (_, Some(file)) => file.to_owned(),
            (Some(name), None) => {
                check_name(name).map_err(Fault::usage)?;
                Path::new(DIR).join(format!("{name}.toml"))
            }
            (None, None) => return Ok(Profile { name: "manual".into(), ..Profile::default() }),
        };
        let stem = || file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.map_or_else(stem, str::to_owned);
        check_name(&name).map_err(Fault::usage)?;
        let mut profile = parse(&read_trusted(&file)?, &file)?;
        profile.name = name;
        profile.file = Some(file);
        Ok(profile)
    }

    /// `[nextcloud]`, or an error that says what to write.
    pub fn nextcloud(&self) -> Result<&Nextcloud> {
        self.nextcloud.as_ref().ok_or_else(|| {
            let file = self.file.as_ref().map_or("the profile".into(), |f| f.display().to_string());
            Fault::config(format!("{file} has no [nextcloud] table"))
                .hint("add [nextcloud] with root = \"/var/www/nextcloud\", or give --root")
                .into()
        })
    }
}

/// Names of profiles and sources: lower-case letters, digits and `-`, at most 32.
pub fn check_name(name: &str) -> Result<(), String> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !name.is_empty() && name.len() <= 32 && name.bytes().all(ok) && !name.starts_with('-') {
        return Ok(());
    }
    Err(format!("'{name}' is not a name: use 1 to 32 of a-z, 0-9 and '-', not starting with '-'"))
}

/// Reads a file whose content this program will obey: it and its directory must belong to root (or
/// to us, when we are not root) and be writable by nobody else.
pub fn read_trusted(path: &Path) -> Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
    let fd = open(path, flags, Mode::empty()).map_err(|e| {
        let fault = match e {
            nix::errno::Errno::ENOENT => Fault::config(format!("there is no profile {}", path.display()))
                .hint("`/usr/lib/nc-backup/setup` writes one; the name is the file's name without .toml"),
            nix::errno::Errno::EACCES => {
                Fault::denied(format!("{} cannot be read by this account", path.display()))
                    .hint("the profile is root's: put `sudo` before the command; on S2, where the store's account reads it, give it mode 0644")
            }
            e => Fault::config(format!("cannot open {}: {e}", path.display())),
        };
        anyhow::Error::from(fault)
    })?;
    let mut file = File::from(fd);
    let meta = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?;
    if !meta.is_file() {
        return Err(Fault::config(format!("{} is not a regular file", path.display())).into());
    }
    trusted(path, &meta)?;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir_meta = dir.metadata().with_context(|| format!("cannot look at {}", dir.display()))?;
    trusted(dir, &dir_meta)?;
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|e| Fault::config(format!("cannot read {} as UTF-8 text: {e}", path.display())))?;
    Ok(text)
}

fn trusted(path: &Path, meta: &std::fs::Metadata) -> Result<()> {
    let owner_ok = meta.uid() == 0 || meta.uid() == geteuid().as_raw();
    if owner_ok && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    let who = if geteuid().is_root() { "root".into() } else { format!("root or user id {}", geteuid()) };
    Err(Fault::denied(format!(
        "{} must belong to {who} and be writable by nobody else; it belongs to user id {} and has mode {:04o}",
        path.display(),
        meta.uid(),
        meta.mode() & 0o7777
    ))
    .hint(format!("chown root:root {0} && chmod go-w {0}", path.display()))
    .into())
}

/// Parses and validates the text of a profile; `file` is for messages.
pub fn parse(text: &str, file: &Path) -> Result<Profile> {
    let profile: Profile = toml::from_str(text).map_err(|e| {
        let line = e.span().map(|s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        let at = line.map_or(String::new(), |l| format!(", line {l}"));
        let mut message = e.message().trim().to_owned();
        for number in ["u16", "u32", "u64"] {
            message = message.replace(&format!("expected {number}"), "expected a whole number");
        }
        if let Some(key) = e.span().and_then(|s| text.get(s)).filter(|_| message == "duplicate key") {
            message = format!("`{}` is written a second time", key.trim());
        }
        let mut fault = Fault::config(format!("{}{at}: {message}", file.display()));
        fault.hint = cure(&message);
        fault
    })?;
    let wrong = |key: &str, value: &str, right: &str| {
        Err(Fault::config(format!("{}: {key} = \"{value}\": {right}", file.display())).into())
    };
    let sources = &profile.snapshot.source;
    for (n, source) in sources.iter().enumerate() {
        if let Err(message) = check_name(&source.name) {
            return wrong("snapshot.source.name", &source.name, &message);
        }
        if sources[..n].iter().any(|other| other.name == source.name) {
            return wrong("snapshot.source.name", &source.name, "this name is used twice");
        }
        if source.path.is_none() && source.name != "database" {
            return wrong("snapshot.source.name", &source.name, "this source has no path");
        }
    }
    let store = profile.store.as_ref();
    let (sshfs, luks) = (profile.offsite.sshfs.as_ref(), profile.offsite.luks.as_ref());
    let paths = [
        ("state_dir", profile.state_dir.as_ref()),
        ("runtime_dir", profile.runtime_dir.as_ref()),
        ("nextcloud.root", profile.nextcloud.as_ref().map(|n| &n.root)),
        ("database.dumps", profile.database.dumps.as_ref()),
        ("database.password_file", profile.database.password_file.as_ref()),
        ("snapshot.ssh.identity", profile.snapshot.ssh.identity.as_ref()),
        ("snapshot.ssh.known_hosts", profile.snapshot.ssh.known_hosts.as_ref()),
        ("store.path", store.map(|s| &s.path)),
        ("store.mount", store.and_then(|s| s.mount.as_ref())),
        ("offsite.store", profile.offsite.store.as_ref()),
        ("offsite.image_dir", profile.offsite.image_dir.as_ref()),
        ("offsite.sshfs.identity", sshfs.and_then(|s| s.identity.as_ref())),
        ("offsite.sshfs.known_hosts", sshfs.and_then(|s| s.known_hosts.as_ref())),
        ("offsite.sshfs.mount_point", sshfs.and_then(|s| s.mount_point.as_ref())),
        ("offsite.luks.key_file", luks.map(|l| &l.key_file)),
        ("offsite.luks.header", luks.and_then(|l| l.header.as_ref())),
        ("offsite.luks.mount_point", luks.and_then(|l| l.mount_point.as_ref())),
    ];
    let of_sources = sources.iter().map(|s| ("snapshot.source.path", s.path.as_ref()));
    for (key, path) in paths.into_iter().chain(of_sources) {
        if let Some(path) = path.filter(|p| !p.is_absolute()) {
            return wrong(key, &path.to_string_lossy(), "this must be an absolute path, starting with /");
        }
    }
    if let Some(Store { path, mount: Some(mount), .. }) = store
        && !path.starts_with(mount)
    {
        return wrong(
            "store.mount",
            &mount.to_string_lossy(),
            "this must be store.path or a folder above it",
        );
    }
    if let Some(luks) = luks {
        let inside = luks.image.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if luks.image.is_relative() && (!inside || sshfs.is_none()) {
            let right = "this must be a path inside the folder of [offsite.sshfs], or an absolute path";
            return wrong("offsite.luks.image", &luks.image.to_string_lossy(), right);
        }
    }
    if let Some(sshfs) = sshfs {
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == ':';
        if sshfs.host.is_empty() || sshfs.host.starts_with('-') || sshfs.host.chars().any(odd) {
            return wrong("offsite.sshfs.host", &sshfs.host, "this must be user@host");
        }
        if !sshfs.directory.starts_with('/') || sshfs.directory.chars().any(char::is_control) {
            return wrong(
                "offsite.sshfs.directory",
                &sshfs.directory,
                "this must be an absolute path on that machine",
            );
        }
    }
    if let Some(url) = profile.nextcloud.as_ref().and_then(|n| n.url.as_ref())
        && !url.starts_with("http://")
        && !url.starts_with("https://")
    {
        return wrong("nextcloud.url", url, "this must start with http:// or https://");
    }
    Ok(profile)
}

/// What to do about what toml says.
fn cure(message: &str) -> Option<String> {
    match message {
        // The only table that needs one.
        "missing field `path`" => Some(
            "[store] is for the folder of snapshots on this machine, path = \"/…\"; where the store is on another machine, leave out \
             [store] and its retention: they belong into the profile there"
                .into(),
        ),
        _ if message.ends_with("is written a second time") => {
            Some("each key and each [table] once: put the lines of both into the first one".into())
        }
        _ => nearest_key(message),
    }
}

/// "unknown field `stor`, expected one of `store`, `mount`": which was meant?
fn nearest_key(message: &str) -> Option<String> {
    let mut words = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let given = words.next()?;
    let nearest = words.min_by_key(|known| strsim::damerau_levenshtein(given, known))?;
    Some(format!("did you mean '{nearest}'?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fails(text: &str) -> (String, Option<String>) {
        let error = parse(text, Path::new("/etc/nc-backup/home.toml")).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Config);
        (error.to_string(), error.downcast_ref::<Fault>().and_then(|f| f.hint.clone()))
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_nearest_known_one() {
        let (message, hint) = fails("[snapshot]\nstoer = \"/b\"\n");
        assert!(message.starts_with("/etc/nc-backup/home.toml, line 2: unknown field `stoer`"), "{message}");
        assert_eq!(hint.as_deref(), Some("did you mean 'store'?"));
    }

    #[test]
    fn what_toml_says_has_its_cure() {
        let (message, hint) = fails("[snapshot]\nstore = \"/b\"\n[store.retention]\nkeep_daily = 3\n");
        assert!(message.contains("missing field `path`"), "{message}");
        assert!(hint.unwrap().contains("the profile there"));
        for twice in
            ["[store]\npath = \"/b\"\n[store]\nmount = \"/b\"\n", "[store]\npath = \"/b\"\npath = \"/c\"\n"]
        {
            let (message, hint) = fails(twice);
            assert!(message.contains(" is written a second time") && message.contains("line 3"), "{message}");
            assert!(message.contains("`store`") || message.contains("`path`"), "{message}");
            assert!(hint.unwrap().contains("once"));
        }
        let (message, _) = fails("[store.retention]\nkeep_daily = \"3\"\n");
        assert!(message.ends_with("expected a whole number"), "{message}");
    }

    #[test]
    fn bytes_of_the_profile_may_have_a_suffix_and_be_none() {
        let store = |text: &str| {
            let text = format!("[store]\npath = \"/b\"\n{text}");
            parse(&text, Path::new("p")).unwrap().store.unwrap()
        };
        assert_eq!(store("").reserve_bytes, None);
        assert_eq!(store("reserve_bytes = 0").reserve_bytes, Some(0));
        assert_eq!(store("reserve_bytes = \"2G\"").reserve_bytes, Some(2 << 30));
        assert_eq!(store("max_bytes_per_day = 4096").max_bytes_per_day, Some(4096));
        let (message, _) = fails("[offsite]\nreserve_bytes = \"much\"");
        assert!(message.contains("'much' is not a number of bytes"), "{message}");
        fails("[offsite]\nreserve_bytes = -1");
    }

    #[test]
    fn the_containers_layout_is_one_of_two() {
        let layout = |text: &str| parse(text, Path::new("p")).unwrap().offsite.layout;
        assert_eq!(layout(""), Layout::Layers);
        assert_eq!(layout("[offsite]\nlayout = \"hardlink\""), Layout::Hardlink);
        let (message, _) = fails("[offsite]\nlayout = \"layer\"");
        assert!(message.contains("`layer`") && message.contains("`hardlink` or `layers`"), "{message}");
    }

    #[test]
    fn wrong_values_name_key_value_and_what_would_be_right() {
        for (text, key) in [
            ("[store]\npath = \"backup\"", "store.path"),
            ("[store]\npath = \"/a\"\nmount = \"/b\"", "store.mount"),
            ("[[snapshot.source]]\nname = \"Data\"\npath = \"/d\"", "snapshot.source.name"),
            ("[[snapshot.source]]\nname = \"data\"", "snapshot.source.name"),
            ("[nextcloud]\nroot = \"/n\"\nurl = \"cloud.example\"", "nextcloud.url"),
            ("[snapshot]\nmax = \"soon\"", "soon"),
            ("[offsite.luks]\nimage = \"../x\"\nkey_file = \"/k\"", "offsite.luks.image"),
            ("[offsite.luks]\nimage = \"x\"\nkey_file = \"/k\"", "offsite.luks.image"),
            ("[offsite.sshfs]\nhost = \"-oProxyCommand=x\"\ndirectory = \"/d\"", "offsite.sshfs.host"),
            ("[offsite.sshfs]\nhost = \"a@b\"\ndirectory = \"d\"", "offsite.sshfs.directory"),
            ("[offsite.sshfs]\nhost = \"a@b\"\ndirectory = \"/d\"\nbwlimit = \"fast\"", "'fast'"),
        ] {
            let (message, _) = fails(text);
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn a_profile_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home.toml");
        std::fs::write(&path, "").unwrap();
        Profile::load(None, Some(&path)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let error = Profile::load(None, Some(&path)).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Denied);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Profile::load(None, Some(&path)).is_err());
    }

    #[test]
    fn a_name_that_would_leave_the_folder_is_usage() {
        let error = Profile::load(Some("../passwd"), None).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Usage);
    }
}
