//! `link-sync find`: in which snapshots something is, and where it changed.

use anyhow::Result;
use common::fault::Fault;
use common::figures;
use common::screen::End;
use common::status::{Report, text_bytes};
use serde_json::Value;

use crate::cli::Find;
use crate::far::Far;
use crate::paste::pasteable;
use crate::protocol::ReadIdle;
use crate::store::find::{Wanted, is_user};

/// Does it.
pub fn find(find: &Find, report: &mut Report) -> Result<()> {
    if let Some(user) = find.user.as_deref().filter(|u| !is_user(u)) {
        return Err(Fault::usage(format!("--user '{user}' is not the name of a user")).into());
    }
    let wanted = Wanted {
        pattern: find.name.clone(),
        source: find.source.clone(),
        user: find.user.clone(),
        limit: find.limit,
    };
    let mut far = Far::connect_reading(&find.profile.options().settings()?)?;
    let answer = far.ask_in_parts(&ReadIdle::Find(wanted), "paths", |_, _| ())?;
    let paths: Vec<&Value> = answer["paths"].as_array().into_iter().flatten().collect();
    let lines: Vec<String> = paths.iter().flat_map(|path| lines(path)).collect();
    report.show_list(&lines, End::First, "lines", find.all);
    if answer["found"] == 0 {
        report.show("no snapshot holds it");
    } else if answer["truncated"] == true {
        report.show(format!("{} paths found, {} of them told: see --limit", answer["found"], paths.len()));
    }
    if let Some((path, date)) = paths.first().and_then(|path| Some((path, newest_with(path)?))) {
        report.show(format!(
            "back: link-sync restore {} --to DIR --date {date} --path {}",
            find.profile.words(),
            pasteable(&text_bytes(path, "path"))
        ));
    }
    if let Value::Object(fields) = answer {
        report.data.extend(fields);
    }
    Ok(())
}

/// The date of the last state of a path.
fn newest_with(path: &Value) -> Option<&str> {
    let events = path["events"].as_array()?;
    events.iter().rev().find(|event| event["what"] != "gone")?["date"].as_str()
}

/// A path, as `restore --path` takes it, and what happened to it.
fn lines(path: &Value) -> Vec<String> {
    let mut lines = vec![pasteable(&text_bytes(path, "path"))];
    for event in path["events"].as_array().into_iter().flatten() {
        let text = |key: &str| event[key].as_str().unwrap_or("");
        let size = event["size_bytes"].as_u64().map(figures::bytes).unwrap_or_default();
        lines.push(format!("    {}  {:<9} {size:>10}  {}", text("date"), text("what"), text("mtime")));
    }
    lines
}
