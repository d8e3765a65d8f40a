//! `link-sync diff`: what differs between two snapshots.

use anyhow::Result;
use common::screen::End;
use common::status::{Report, text_bytes};
use serde_json::{Value, json};

use crate::cli::Diff;
use crate::far::Far;
use crate::meant;
use crate::paste::pasteable;
use crate::protocol::ReadIdle;

/// Does it.
pub fn diff(diff: &Diff, report: &mut Report) -> Result<()> {
    let mut far = Far::connect_reading(&diff.profile.options().settings()?)?;
    let request = ReadIdle::Diff {
        from: meant::at(&mut far, &diff.from)?,
        to: meant::at(&mut far, &diff.to)?,
        source: diff.source.clone(),
        limit: diff.limit,
    };
    let mut answer = far.ask_in_parts(&request, "changes", |_, _| ())?;
    let mut lines = Vec::new();
    for change in answer["changes"].as_array_mut().into_iter().flatten() {
        let mut entry = json!({"what": change[0], "path": change[1]});
        if change[2].is_string() {
            entry["path_b64"] = change[2].take();
        }
        lines.push(format!(
            "{:<10} {}",
            entry["what"].as_str().unwrap_or("?"),
            pasteable(&text_bytes(&entry, "path"))
        ));
        *change = entry;
    }
    report.show_list(&lines, End::First, "lines", diff.all);
    let counts = answer["counts"].as_object().into_iter().flatten();
    let counts: Vec<_> = counts.filter(|(_, n)| **n != 0).map(|(what, n)| format!("{n} {what}")).collect();
    let counts = if counts.is_empty() { "nothing differs".to_owned() } else { counts.join(", ") };
    let more = if answer["truncated"] == true { "; not all were told: see --limit" } else { "" };
    let text = |key: &str| answer[key].as_str().unwrap_or("?").to_owned();
    report.show(format!("{} to {}: {counts}{more}", text("from"), text("to")));
    if let Value::Object(fields) = answer {
        report.data.extend(fields);
    }
    Ok(())
}
