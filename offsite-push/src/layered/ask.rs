//! Asking the child that works in the container: one request, one answer. It is watched as the siblings are, so that what hangs is
//! ended, what is only slow is waited for, and nothing is written any more once the lease is lost.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::program::Program;
use common::signals;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::{Value, json};

use crate::TOOL;
use crate::siblings::{Call, Siblings};

/// What the child says when it has failed, for who asked.
pub(crate) fn failed(error: &anyhow::Error) -> Vec<u8> {
    let full = error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        io.is_some_and(|errno| [nix::libc::ENOSPC, nix::libc::EDQUOT].contains(&errno))
    });
    json!({"error": format!("{error:#}"), "full": full}).to_string().into_bytes()
}

/// Asks for `request` in the open container; the answer.
pub(crate) fn ask(siblings: &mut Siblings, step: &'static str, request: &Value) -> Result<Value> {
    signals::check()?;
    siblings.doing = step;
    let (mut stdin, stdout) = (memory(c"request")?, memory(c"answer")?);
    stdin.write_all(request.to_string().as_bytes()).and_then(|()| stdin.rewind())?;
    let settings = siblings.settings;
    let cmd = Program::own()?.cmd().args(["inside", "layers", "--container"]).arg(&settings.container);
    let mut child = cmd.start_streams(stdin.into(), stdout.try_clone()?.into(), Stdio::inherit())?;
    let call = Call { step, tool: TOOL, action: "inside", args: &[], limit: None, cleanup: false };
    let (status, stop) = siblings.wait(&mut child, &call)?;
    if let Some(stop) = stop.filter(|_| !status.success()) {
        return Err(siblings.stopped(stop, step));
    }
    let answer = read(stdout);
    if status.success() {
        return answer.context("the answer about what is in the container is damaged");
    }
    let place = settings.container.display();
    let answer = answer.unwrap_or_default();
    let said = answer["error"].as_str().map_or_else(|| format!("{step} ended with {status}"), str::to_owned);
    let fault = Fault::failed(format!("the container at {place}: {said}"));
    let fault = if answer.is_null() { fault } else { fault.already_said() };
    Err(match answer["full"] == true {
        true => fault.hint(full(&settings.profile.name)).into(),
        false => fault.into(),
    })
}

/// What to do about a container that is full.
pub(crate) fn full(name: &str) -> String {
    format!(
        "the container is full. Let less stay in it: [offsite.retention], then `offsite-push prune {name}`. Or make \
         it larger: `sshfs-mount mount {name}`, `luks-mount grow {name} --size SIZE`, `sshfs-mount unmount {name}`"
    )
}

fn memory(name: &std::ffi::CStr) -> Result<File> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC).context("cannot make a memory file")?.into())
}

fn read(mut stdout: File) -> Result<Value> {
    let mut text = Vec::new();
    stdout.rewind().and_then(|()| stdout.read_to_end(&mut text))?;
    Ok(serde_json::from_slice(&text)?)
}
