//! What a killed push or view left mounted, and whether a view is open: looked at before anything is put up.

use std::time::Duration;

use anyhow::Result;
use common::fault::Fault;
use common::status::Report;
use serde_json::Value;

use crate::layers::Up;
use crate::open_view::Record;
use crate::shown;
use crate::siblings::{Answer, Call, Limit, Siblings};

/// The longest a look may take: it asks a file system that may hang.
const LOOK: Duration = Duration::from_secs(60);

/// How S3 and the container are.
#[derive(Debug)]
pub(crate) struct Look {
    /// `luks-mount status`.
    pub(crate) container: Answer,
    /// `sshfs-mount status`; `None` if the container lies on this machine.
    pub(crate) s3: Option<Answer>,
}

impl Look {
    /// Asks both.
    pub(crate) fn take(siblings: &mut Siblings, cleanup: bool) -> Result<Look> {
        let limit = Some(Limit::Time(LOOK));
        let call = Call {
            step: "status-container",
            tool: "luks-mount",
            action: "status",
            args: &[],
            limit,
            cleanup,
        };
        let container = siblings.run(&call)?.checked()?;
        let s3 = match siblings.settings.s3 {
            Some(_) => {
                let call = Call { step: "status-s3", tool: "sshfs-mount", ..call };
                Some(siblings.run(&call)?.checked()?)
            }
            None => None,
        };
        Ok(Look { container, s3 })
    }

    /// Some layer of the container is up. What is not ours is not: attach refuses it with a reason.
    pub(crate) fn container_up(&self) -> bool {
        !matches!(state(&self.container), "detached" | "foreign")
    }
    /// S3's folder is mounted, well or not.
    pub(crate) fn s3_up(&self) -> bool {
        !matches!(self.s3_state(), "unmounted" | "foreign")
    }
    /// `unmounted` if there is nothing to mount.
    pub(crate) fn s3_state(&self) -> &str {
        self.s3.as_ref().map_or("unmounted", state)
    }
    /// Both are as an open view needs them.
    pub(crate) fn serves_a_view(&self) -> bool {
        state(&self.container) == "attached" && (self.s3.is_none() || self.s3_state() == "healthy")
    }
}

fn state(answer: &Answer) -> &str {
    match answer.data("state") {
        Value::String(state) => state,
        // Not told: then it must be asked to go.
        _ => "unknown",
    }
}

/// The error that an open view is.
pub(crate) fn view_is_open(record: &Record, siblings: &Siblings) -> anyhow::Error {
    Fault::busy(format!("the container is open to look at since {}", record.since))
        .hint(format!("`{}` closes it", siblings.settings.command(crate::TOOL, "unview")))
        .into()
}

/// The open view, if there is one that is of use to somebody.
pub(crate) fn open_view(look: &Look, record: Option<Record>) -> Option<Record> {
    record.filter(|r| r.is_open() && look.s3_state() != "dead" && (look.container_up() || look.s3_up()))
}

/// Takes down what is up, for which nobody is there any more. True if there was something.
pub(crate) fn clear(look: &Look, siblings: &mut Siblings, report: &mut Report) -> Result<bool> {
    // What is shown of it goes first, whatever became of the container below.
    let container = look.container_up() || shown::is_up(siblings.settings)?;
    let s3 = look.s3_up();
    if s3 || container {
        let what = match (container, s3) {
            (true, true) => "the container was open and S3 mounted",
            (true, false) => "the container was open",
            _ => "S3 was mounted",
        };
        report.warn(
            "leftovers",
            format!("{what}, though no push is at work and no view is open: cleared first"),
        );
        let down = Up::found(siblings, s3, container).down();
        if let Some(error) = down.error.filter(|_| !down.nothing_up) {
            return Err(error);
        }
    }
    Record::remove(siblings.settings)?;
    Ok(s3 || container)
}
