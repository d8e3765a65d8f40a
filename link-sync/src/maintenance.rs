//! Is Nextcloud in maintenance, and in whose run? What a seal rests on.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::program::Program;
use common::record::RunRecord;
use serde_json::Value;

use crate::settings::Settings;

/// Long enough for an occ on a busy Raspberry Pi.
const LIMIT: Duration = Duration::from_secs(120);

/// The nc-maint that lay beside us when this was called first: at the beginning, by whatever will need it.
pub fn nc_maint() -> Result<&'static Program> {
    static NC_MAINT: OnceLock<Program> = OnceLock::new();
    if let Some(program) = NC_MAINT.get() {
        return Ok(program);
    }
    let program = Program::beside("nc-maint")?;
    Ok(NC_MAINT.get_or_init(|| program))
}

/// nc-maint's record of the run that is under way. It is there from after the switch was proven to before it is
/// thrown back.
pub fn record(settings: &Settings) -> Result<Option<RunRecord>> {
    RunRecord::load(&settings.profile)
}

/// The run whose maintenance is on now: nc-maint's `record` says which, and Nextcloud itself, asked by
/// nc-maint, says that it is. `Err` holds the reason why not, for people.
pub fn proof(settings: &Settings, record: Option<RunRecord>) -> Result<Result<RunRecord, String>> {
    let Some(record) = record else {
        return Ok(Err("no nc-maint run is under way".into()));
    };
    let mut cmd = nc_maint()?.cmd().arg("status").timeout(LIMIT);
    if settings.profile.file.is_none() {
        return Ok(Err("there is no profile, so Nextcloud cannot be asked".into()));
    }
    cmd = cmd.arg(&settings.profile.name);
    if let Some(file) = &settings.profile.file {
        cmd = cmd.arg("--config").arg(file);
    }
    if let Some(dir) = &settings.profile.state_dir {
        cmd = cmd.arg("--state-dir").arg(dir);
    }
    let output = cmd.output().context("cannot ask nc-maint")?;
    let status: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| anyhow::Error::from(cmd.failure(&output)).context("nc-maint status gave no answer"))?;
    if !output.status.success() {
        let code = output.status.code().unwrap_or(1);
        return Err(anyhow::Error::from(Fault::relay(code, status["error"].clone()))
            .context("cannot ask Nextcloud for its state"));
    }
    match status["data"]["maintenance"].as_bool() {
        // Its record stays until somebody clears up, and whoever has switched on since is somebody else.
        Some(true)
            if record.pid.is_some()
                && status["data"]["run_active"] == false
                && !mutant::active("a-killed-run-seals") =>
        {
            Ok(Err(format!("run {} was killed", record.run_id)))
        }
        Some(true) => Ok(Ok(record)),
        Some(false) => {
            Ok(Err(format!("run {} is recorded, but Nextcloud is not in maintenance", record.run_id)))
        }
        None => Err(Fault::failed("nc-maint status did not say whether maintenance is on").into()),
    }
}

/// Has nc-maint write maintenance into the configuration of the instance in `dir`, which is not in its place yet.
pub fn close(dir: &File) -> Result<()> {
    let cmd = nc_maint()?.cmd().args(["close", "--dir"]);
    // What arrived, and not what lies under its name by now. The dot: a link of /proc is followed only on the way.
    let cmd = cmd.arg(format!("/proc/self/fd/{}/.", dir.as_raw_fd())).inherit(dir.as_raw_fd()).timeout(LIMIT);
    let output = cmd.output().context("cannot run nc-maint")?;
    if output.status.success() {
        return Ok(());
    }
    match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(status) => {
            Err(anyhow::Error::from(Fault::relay(output.status.code().unwrap_or(1), status["error"].clone()))
                .context("the configuration that came could not be closed"))
        }
        Err(_) => Err(cmd.failure(&output).into()),
    }
}
