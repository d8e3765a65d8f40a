//! What a run works with: the profile, the options that win over it, and where everything is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use common::fault::Fault;
use common::lock::Lock;
use common::profile::{Profile, Span};
use common::{offsite, places};

/// Room that stays free in the container, if nothing is said.
const RESERVE: u64 = 64 << 20;

/// How long the one before may take to go: a push that was killed is gone within this time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// What all actions understand.
#[derive(Args, Debug)]
pub(crate) struct Place {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    pub(crate) profile: Option<String>,
    /// Another file as the profile.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder of the snapshots. Default: offsite.store of the profile, or its
    /// store.path.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// What must outlive a reboot. Default: /var/lib/nc-backup/PROFILE.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Locks and mount points. Default: /run/nc-backup/PROFILE, or 'run' in
    /// --state-dir.
    #[arg(long, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// How long nothing may move before it is given up.
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub(crate) patience: Span,
    /// How often the container's lease is renewed.
    #[arg(long, value_name = "TIME", default_value = "5m", hide = true)]
    pub(crate) renew_every: Span,
}

/// One run's settings.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The profile.
    pub(crate) profile: Profile,
    /// The local store, if one is known.
    store: Option<PathBuf>,
    /// What every sibling is told: the profile, and where state is.
    pub(crate) words: Vec<OsString>,
    /// Where the container is mounted.
    pub(crate) container: PathBuf,
    /// Where S3's folder is mounted; `None` if the container lies on this machine.
    pub(crate) s3: Option<PathBuf>,
    /// What outlives a reboot.
    pub(crate) state: PathBuf,
    /// What does not.
    pub(crate) runtime: PathBuf,
    /// How long S3 may be silent, or a step get nowhere.
    pub(crate) patience: Duration,
    /// How often the container's lease is renewed.
    pub(crate) renew_every: Duration,
}

impl Settings {
    /// Loads the profile and puts the options over it.
    pub(crate) fn load(place: &Place) -> Result<Settings> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Fault::denied("mounting S3 and opening the container need root")
                .hint("run it as root, or through sudo with a rule of exactly these words")
                .into());
        }
        let mut profile = Profile::load(place.profile.as_deref(), place.config.as_deref())?;
        let mut words: Vec<OsString> = place.profile.iter().map(OsString::from).collect();
        let absolute = |path: &PathBuf| std::path::absolute(path);
        if let Some(config) = &place.config {
            // Siblings do not start where we did.
            words.extend(["--config".into(), absolute(config)?.into()]);
        }
        if let Some(dir) = &place.state_dir {
            let dir = absolute(dir)?;
            words.extend(["--state-dir".into(), dir.clone().into()]);
            profile.state_dir = Some(dir);
        }
        if let Some(dir) = &place.runtime_dir {
            let dir = absolute(dir)?;
            words.extend(["--runtime-dir".into(), dir.clone().into()]);
            profile.runtime_dir = Some(dir);
        }
        offsite::luks(&profile)?;
        let of_profile = profile.offsite.store.clone().or(profile.store.as_ref().map(|s| s.path.clone()));
        let remote = offsite::image_is_remote(&profile)?;
        Ok(Settings {
            store: place.store.as_ref().map(absolute).transpose()?.or(of_profile),
            words,
            container: offsite::container_mount_point(&profile)?,
            s3: if remote { Some(offsite::sshfs_mount_point(&profile)?) } else { None },
            state: places::state(&profile)?,
            runtime: places::runtime(&profile)?,
            patience: place.patience.0,
            renew_every: place.renew_every.0,
            profile,
        })
    }

    /// The local store, which must be there: the disk it is on may be missing.
    pub(crate) fn store(&self) -> Result<&Path> {
        let Some(store) = self.store.as_deref() else {
            return Err(Fault::config("no store is named")
                .hint("say where the snapshots are: path in [store], store in [offsite], or --store")
                .into());
        };
        let configured = self.profile.store.as_ref().filter(|s| s.path == store);
        if let Some(mount) = configured.and_then(|s| s.mount.as_ref())
            && !common::mounts::is_mount_point(mount)?
        {
            return Err(Fault::config(format!("nothing is mounted at {} (store.mount)", mount.display()))
                .hint("mount the disk of the store")
                .into());
        }
        Ok(store)
    }

    /// The container's lock: one push or one `view` at a time.
    pub(crate) fn lock(&self, patience: Duration) -> Result<Lock> {
        let what = format!("the off-site copy of {}", self.profile.name);
        Lock::exclusive_within(&self.state.join("offsite.lock"), &what, patience)
    }

    /// S2's record.
    pub(crate) fn record(&self) -> PathBuf {
        self.state.join("offsite.json")
    }

    /// Room that must stay free in the container.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.profile.offsite.reserve_bytes.unwrap_or(RESERVE)
    }

    /// S3's folder, as people write it; the image's path if it is on this machine.
    pub(crate) fn far_name(&self) -> String {
        match (&self.s3, &self.profile.offsite.sshfs) {
            (Some(_), Some(sshfs)) => format!("{}:{}", sshfs.host, sshfs.directory),
            _ => "this machine".into(),
        }
    }

    /// What a person types to run a sibling's action.
    pub(crate) fn command(&self, tool: &str, action: &str) -> String {
        let words = self.words.iter().map(|w| w.to_string_lossy());
        words.fold(format!("{tool} {action}"), |line, word| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
            let word = if word.chars().all(plain) { word.into() } else { format!("'{word}'") };
            line + " " + &word
        })
    }
}
