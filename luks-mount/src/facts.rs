//! `data` of the status object, the same keys for every action; and the action that only looks.

use std::time::Instant;

use anyhow::Result;
use common::fuse::{self, Health};
use common::run::Cmd;
use common::status::Report;
use serde_json::{Value, json};

use crate::header::Header;
use crate::record::Record;
use crate::settings::Settings;
use crate::stack::{self, Stack, State};
use crate::watch::PROBE;
use crate::{image, writeback};

const KEYS: [&str; 23] = [
    "state",
    "foreign",
    "image",
    "image_bytes",
    "link",
    "loop",
    "mapping",
    "mount_point",
    "read_only",
    "uuid",
    "luks_version",
    "cipher",
    "data_offset_sectors",
    "file_system",
    "size_bytes",
    "free_bytes",
    "inodes_free",
    "written_bytes",
    "read_bytes",
    "dirty_limit",
    "header",
    "key_slots",
    "recorded",
];

/// `status`: changes nothing, and does not wait for a link that hangs.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let record = Record::load(settings)?;
    let stack = stack::look(settings, record.as_ref())?;
    tell(settings, record.as_ref(), &stack, report)?;
    let what = report.data["foreign"].as_str().map_or_else(String::new, |f| format!(": {f}"));
    common::say!(crate::TOOL, "{} is {}{what}", settings.name, stack.state.word());
    Ok(())
}

/// The same for what is up and stays up: an error is a warning.
pub(crate) fn tell_what_can_be(settings: &Settings, record: &Record, report: &mut Report) {
    let stack = stack::look(settings, Some(record));
    if let Err(error) = stack.and_then(|stack| tell(settings, Some(record), &stack, report)) {
        report.warn("not-told", format!("not all of data is known: {error:#}"));
    }
}

/// Fills `data`. What is not known stays null.
pub(crate) fn tell(
    settings: &Settings,
    record: Option<&Record>,
    stack: &Stack,
    report: &mut Report,
) -> Result<()> {
    for key in KEYS {
        report.data.entry(key).or_insert(Value::Null);
    }
    report.set("state", stack.state.word());
    report.set("foreign", stack.foreign.clone());
    report.set_text("image", settings.image.as_os_str());
    report.set_text("header", settings.header.as_os_str());
    report.set_text("mount_point", settings.mount_point.as_os_str());
    report.set("recorded", record.is_some());
    let mut watch = settings.watch(false)?;
    watch.device = stack.loops.first().map(|l| l.name.clone());
    let begin = Instant::now();
    let health = watch.health(PROBE)?;
    // On a slow link every question waits behind what is on its way: one is enough.
    let quick = begin.elapsed() < PROBE / 3;
    let answers = matches!(health, None | Some(Health::Healthy));
    report.set(
        "link",
        health.map(|h| match h {
            Health::Healthy => "healthy",
            Health::Dead(_) => "dead",
            Health::Hung => "hung",
        }),
    );
    if answers && quick {
        report.set("image_bytes", image::size(settings)?);
    }
    if let Some(record) = record {
        report.set("uuid", record.uuid.clone());
        report.set("luks_version", record.luks_version);
        report.set("cipher", record.cipher.clone());
        report.set("file_system", record.file_system.clone());
        if let Ok(header) = Header::read(&settings.cryptsetup, &settings.header) {
            report.set("key_slots", header.key_slots);
            report.set("data_offset_sectors", header.data_offset / 512);
        }
    }
    layers(stack, answers, report)
}

/// What the layers that are up tell.
fn layers(stack: &Stack, answers: bool, report: &mut Report) -> Result<()> {
    report.set("loop", stack.loops.first().map(|l| l.device().to_string_lossy().into_owned()));
    if let Some((read, written)) = stack.traffic() {
        report.set("read_bytes", read);
        report.set("written_bytes", written);
    }
    report.set("mapping", stack.mapping.as_ref().map(|m| m.device().to_string_lossy().into_owned()));
    report.set("read_only", stack.mapping.as_ref().map(|m| m.read_only));
    let (Some(mapping), Some(mount)) = (&stack.mapping, stack.mounts.last()) else {
        report.set("dirty_limit", Value::Null);
        return Ok(());
    };
    if stack.state == State::MountedElsewhere {
        let places: Vec<_> = stack.mounts.iter().map(|m| m.target.to_string_lossy()).collect();
        report.set("mounted_on", json!(places));
    }
    report.set("dirty_limit", if mapping.read_only { Value::Null } else { writeback::read(mapping, mount) });
    if answers {
        let cmd = Cmd::new("stat").args(["-f", "-c", "%S %b %a %d", "--"]).arg(&mount.target);
        let out = fuse::ask(&cmd.uninterruptible(), PROBE)?;
        let text = out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        let numbers: Vec<u64> = text.split(' ').filter_map(|n| n.parse().ok()).collect();
        if let [block, blocks, free, inodes] = numbers[..] {
            report.set("size_bytes", block * blocks);
            report.set("free_bytes", block * free);
            report.set("inodes_free", inodes);
        }
    }
    Ok(())
}
