//! cryptsetup, and what its exit codes mean.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use common::fault::{Fault, Kind};
use common::run::Cmd;
use serde_json::Value;

use crate::watch::Watch;

/// What a key's stretching takes at most on a small machine, and the kernel to set up or end a mapping.
const LIMIT: Duration = Duration::from_secs(300);

/// "No key available with this passphrase."
const WRONG_KEY: i32 = 2;
/// How hard a key is made to guess; the default (argon2id) suits passphrases and is slow on small machines.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Pbkdf {
    /// As cryptsetup's --pbkdf.
    #[arg(long, hide = true, value_parser = ["pbkdf2", "argon2i", "argon2id"])]
    pub(crate) pbkdf: Option<String>,
    /// As cryptsetup's --pbkdf-force-iterations.
    #[arg(long, hide = true, requires = "pbkdf")]
    pub(crate) pbkdf_iterations: Option<u32>,
}

/// How cryptsetup is run.
#[derive(Debug)]
pub(crate) struct Cryptsetup {
    argv: Vec<String>,
}

impl Cryptsetup {
    /// From the profile's argv; empty is the default.
    pub(crate) fn new(argv: Vec<String>) -> Cryptsetup {
        Cryptsetup { argv: if argv.is_empty() { vec!["cryptsetup".into()] } else { argv } }
    }

    /// How it is run.
    pub(crate) fn argv(&self) -> &[String] {
        &self.argv
    }

    fn cmd<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Cmd> {
        Ok(without_udev(Cmd::from_argv(&self.argv)?).args(args).timeout(LIMIT))
    }

    /// Makes a LUKS2 header in the local file `file`: small metadata, room for four keys, data from `offset`
    /// (bytes) on.
    pub(crate) fn format(&self, file: &Path, key: &Path, offset: u64, pbkdf: &Pbkdf) -> Result<()> {
        let sectors = (offset / 512).to_string();
        let cmd = self.cmd([
            "luksFormat",
            "--batch-mode",
            "--type=luks2",
            "--cipher=aes-xts-plain64",
            "--key-size=512",
            "--sector-size=4096",
            "--luks2-metadata-size=16k",
            "--luks2-keyslots-size=1m",
        ])?;
        let cmd = cmd.args(pbkdf_args(pbkdf)).arg("--offset").arg(sectors);
        cmd.arg("--key-file").arg(key).arg(file).checked().context("cannot make the container's header")?;
        Ok(())
    }

    /// Copies the header of the opened image to `to`, which must not exist.
    pub(crate) fn header_backup(&self, image: BorrowedFd, to: &Path) -> Result<()> {
        // By descriptor: what was judged is what is read.
        let from = format!("/proc/self/fd/{}", image.as_raw_fd());
        let cmd = self.cmd(["luksHeaderBackup", "--batch-mode", &from, "--header-backup-file"])?;
        let cmd = cmd.arg(to).inherit(image.as_raw_fd());
        cmd.checked().map_err(|e| not_luks(e, "cannot copy the image's header"))?;
        Ok(())
    }

    /// The JSON of a LUKS2 header, as cryptsetup itself understands it.
    pub(crate) fn json_metadata(&self, file: &Path) -> Result<Value> {
        let out = self.cmd(["luksDump", "--dump-json-metadata"])?.arg(file).checked();
        let out = out.map_err(|e| not_luks(e, "cannot read the header"))?;
        serde_json::from_slice(&out.stdout).context("cryptsetup's JSON is no JSON")
    }

    /// The container's UUID.
    pub(crate) fn uuid(&self, file: &Path) -> Result<String> {
        let out = self.cmd(["luksUUID"])?.arg(file).checked();
        Ok(out.map_err(|e| not_luks(e, "cannot read the header"))?.text())
    }

    /// Whether `key` opens `header`.
    pub(crate) fn opens(&self, header: &Path, key: &Path) -> Result<bool> {
        let cmd = self.cmd(["open", "--batch-mode", "--test-passphrase", "--type=luks", "--key-file"])?;
        let cmd = cmd.arg(key).arg("--header").arg(header).arg(header);
        let out = cmd.output()?;
        match out.status.code() {
            Some(0) => Ok(true),
            Some(WRONG_KEY) => Ok(false),
            _ => Err(anyhow::Error::from(cmd.failure(&out)).context("cannot try the key")),
        }
    }

    /// [`Cryptsetup::opens`], as an error if not.
    pub(crate) fn must_open(&self, header: &Path, key: &Path) -> Result<()> {
        if self.opens(header, key)? { Ok(()) } else { Err(wrong_key(header, key)) }
    }

    /// Maps `device` as `name`, by our own header.
    pub(crate) fn open(
        &self,
        header: &Path,
        key: &Path,
        device: &Path,
        name: &str,
        read_only: bool,
        watch: &mut Watch,
    ) -> Result<()> {
        let cmd = self.cmd(["open", "--batch-mode", "--type=luks", "--header"])?;
        let cmd = cmd.arg(header).arg("--key-file").arg(key);
        let cmd = cmd.args(read_only.then_some("--readonly")).arg(device).arg(name);
        let out = watch.output(&cmd)?;
        match out.status.code() {
            Some(0) => return Ok(()),
            Some(WRONG_KEY) => return Err(wrong_key(header, key)),
            _ => {}
        }
        let mut failure = cmd.failure(&out);
        if String::from_utf8_lossy(&out.stderr).contains("device-mapper") {
            failure.kind = Kind::Unavailable;
            failure.hint = Some("the kernel needs dm_mod and dm_crypt: `modprobe dm_crypt`".into());
        }
        Err(anyhow::Error::from(failure).context("cannot open the container"))
    }

    /// Lets mapping `name` take all of its device, which has grown.
    pub(crate) fn resize(&self, header: &Path, key: &Path, name: &str, watch: &mut Watch) -> Result<()> {
        let cmd = self.cmd(["resize", "--batch-mode", "--header"])?;
        watch.checked(&cmd.arg(header).arg("--key-file").arg(key).arg(name))?;
        Ok(())
    }

    /// Adds `new` to the keys of the local header file `header`.
    pub(crate) fn add_key(&self, header: &Path, key: &Path, new: &Path, pbkdf: &Pbkdf) -> Result<()> {
        let cmd = self.cmd(["luksAddKey", "--batch-mode"])?.args(pbkdf_args(pbkdf));
        let cmd = cmd.arg("--key-file").arg(key).arg("--header").arg(header).arg(header).arg(new);
        cmd.checked().context("cannot add the key; perhaps there is no room for one more")?;
        Ok(())
    }
}

fn wrong_key(header: &Path, key: &Path) -> anyhow::Error {
    let what = format!("the key {} does not open the header {}", key.display(), header.display());
    let hint = "are both of this container? The other key file, or the header backup, may be on the stick; every byte of \
                a key file counts, a newline at its end too";
    Fault::config(what).hint(hint).into()
}

/// Without udev nobody answers the device mapper's cookies, and it would wait for ever.
pub(crate) fn without_udev(cmd: Cmd) -> Cmd {
    if Path::new("/run/udev/control").exists() { cmd } else { cmd.env("DM_DISABLE_UDEV", "1") }
}

fn pbkdf_args(pbkdf: &Pbkdf) -> Vec<String> {
    let mut args = Vec::new();
    if let Some(kind) = &pbkdf.pbkdf {
        args.push(format!("--pbkdf={kind}"));
    }
    if let Some(iterations) = pbkdf.pbkdf_iterations {
        args.push(format!("--pbkdf-force-iterations={iterations}"));
    }
    args
}

/// cryptsetup refuses what is no LUKS container with exit code 1: that is the image's fault, not a failed try.
fn not_luks(error: anyhow::Error, doing: &'static str) -> anyhow::Error {
    match error.downcast::<common::fault::Failure>() {
        Ok(mut failure) => {
            if failure.exit_code == Some(1) {
                failure.kind = Kind::Config;
                failure.hint = Some("is this file a LUKS container?".into());
            }
            anyhow::Error::from(failure).context(doing)
        }
        Err(other) => other.context(doing),
    }
}
