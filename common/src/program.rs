//! Programs of ours, held by descriptor: with what a run has begun, it ends.
//!
//! An upgrade puts new files in the place of the tools, or takes them away for a while, and a push takes hours. So a tool
//! opens the tools it will need before it does anything, and starts them from those descriptors: what lies under their
//! names by then does not matter, and an old tool never meets a new one. (Files that are written over in place are
//! not safe from that; packages and `install` replace them.)

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};

use crate::fault::Fault;
use crate::mutant;
use crate::run::{Cmd, by_descriptor};

/// Names the folder in which a script that runs several tools holds those it began with.
const HELD: &str = "NC_BACKUP_TOOLS";

/// A program that stays what it was when it was opened.
#[derive(Clone, Debug)]
pub struct Program {
    file: Arc<OwnedFd>,
    path: PathBuf,
}

impl Program {
    /// The program that is running.
    pub fn own() -> Result<&'static Program> {
        static OWN: OnceLock<Program> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        let what = "cannot find this program's own file";
        let path = std::env::current_exe().context(what)?;
        // What the kernel adds to the name of a file that has been replaced since.
        let bytes = path.as_os_str().as_bytes();
        let path = PathBuf::from(OsStr::from_bytes(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes)));
        let file = open(Path::new("/proc/self/exe")).context(what)?;
        Ok(OWN.get_or_init(|| Program { file: Arc::new(file.into()), path }))
    }

    /// The tool `name` that lies beside this program. It must be as safe as this program is: of root, or of whom this
    /// one belongs to, and not writable by anybody who could not write to this one.
    pub fn beside(name: &str) -> Result<Program> {
        let own = Program::own()?;
        let path = held(own, name).unwrap_or_else(|| own.path.with_file_name(name));
        let file = match open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let ours = own.path.file_name().unwrap_or_default().display();
                return Err(Fault::unavailable(format!("{} is not there", path.display()))
                    .hint(format!("install {name} beside {ours}"))
                    .into());
            }
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let (it, ours) = (file.metadata()?, std::fs::metadata("/proc/self/exe")?);
        let refuse = |why: String, hint: String| {
            Err(Fault::denied(format!("{} {why}", path.display())).hint(hint).into())
        };
        if !it.is_file() || it.mode() & 0o111 == 0 {
            return refuse("is no program".into(), format!("install {name} there"));
        }
        let foreign = it.uid() != 0 && it.uid() != ours.uid();
        let open =
            it.mode() & 0o022 & !(if it.gid() == ours.gid() { ours.mode() } else { ours.mode() & 0o002 });
        if (foreign || open != 0) && !mutant::active("a-tool-of-anybodys-is-run") {
            let whose = if foreign {
                format!("belongs to user {}", it.uid())
            } else {
                "can be written to by others".into()
            };
            let hint = format!("chown root:root {0}; chmod 755 {0}", path.display());
            return refuse(format!("{whose}, and is not run"), hint);
        }
        Ok(Program { file: Arc::new(file.into()), path })
    }

    /// A command that runs it.
    pub fn cmd(&self) -> Cmd {
        if mutant::active("tools-by-name") {
            return Cmd::new(&self.path);
        }
        Cmd::held(self.path.clone(), Arc::clone(&self.file))
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name for a program that inherits [`Program::fd`].
    pub fn inherited(&self) -> PathBuf {
        by_descriptor(&self.file)
    }

    /// Its descriptor.
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Does not read it, waits for nothing, and follows links: a name in /usr/sbin may be one.
fn open(path: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}

/// The tool that the script which started us holds: if it holds us, too.
fn held(own: &Program, name: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os(HELD)?);
    if mutant::active("tools-held-by-no-script") {
        return None;
    }
    let ours = std::fs::metadata("/proc/self/exe").ok()?;
    let told = std::fs::metadata(dir.join(own.path.file_name()?)).ok()?;
    let path = dir.join(name);
    ((told.dev(), told.ino()) == (ours.dev(), ours.ino()) && path.exists()).then_some(path)
}

/// Gives this process the name of its program: one that was started from a descriptor is named after the number.
pub(crate) fn take_name() {
    let Ok(own) = Program::own() else { return };
    let mut name = own.path.file_name().map(OsStr::to_owned).unwrap_or_else(OsString::new).into_vec();
    name.truncate(15);
    if let Ok(name) = std::ffi::CString::new(name) {
        // It only tells.
        nix::sys::prctl::set_name(&name).ok();
    }
}
