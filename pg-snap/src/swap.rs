//! What a restore is beyond its rehearsal: the new database takes the name, and the old one goes, or is kept.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::profile::Profile;
use common::status::Report;

use crate::admin::{Admin, MARK, drop_sql, is_ours};
use crate::psql::{identifier, literal};
use crate::refusal::sqlstate;
use crate::target::Target;

/// The database that is being made.
pub(crate) const NEW: &str = "_pgsnap_new";
/// The one that was replaced.
pub(crate) const OLD: &str = "_pgsnap_old";
/// Followed by the time, in UTC.
const KEPT: &str = "_pgsnap_";
pub(crate) const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Bytes of such a time.
const TIME_LEN: usize = 16;

/// Gives the new database the name; the one that has it, if there is one, is called `old` from the same moment on.
pub(crate) fn swap(admin: &Admin, name: &str, new: &str, old: Option<&str>) -> Result<()> {
    let (name_id, new_id) = (identifier(name), identifier(new));
    let mut sql = Vec::new();
    if old.is_some() {
        // Nextcloud may connect again between the two: the rename then waits, fails, and is tried again.
        sql.push(format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = {}
             AND backend_type = 'client backend'",
            literal(name)
        ));
    }
    sql.push("BEGIN".into());
    if let Some(old) = old {
        let old_id = identifier(old);
        sql.push(format!("COMMENT ON DATABASE {name_id} IS '{MARK} replaced'"));
        sql.push(format!("ALTER DATABASE {name_id} RENAME TO {old_id}"));
    }
    sql.push(format!("ALTER DATABASE {new_id} RENAME TO {name_id}"));
    sql.push(format!("COMMENT ON DATABASE {name_id} IS NULL"));
    sql.push("COMMIT".into());
    let mut tries = 0;
    loop {
        match admin.run(&sql) {
            Ok(_) => return Ok(()),
            // object_in_use
            Err(e) if tries < 4 && sqlstate(&e) == Some("55006") => tries += 1,
            Err(e) => {
                return Err(e)
                    .with_context(|| format!("cannot put the restored database in place of {name}"));
            }
        }
    }
}

/// Drops the database that was replaced.
pub(crate) fn drop_old(admin: &Admin, old: &str, report: &mut Report) {
    if let Err(e) = admin.drop_database(old) {
        report.warn(
            "old-database-kept",
            format!("the replaced database is still there as {old}; {} ({e:#})", drop_sql(old)),
        );
    }
}

/// The databases of the name `name` that restores have kept, the oldest first.
pub(crate) fn kept(admin: &Admin, name: &str) -> Result<Vec<String>> {
    let (begins, mark) = (kept_name(name, ""), literal(MARK));
    admin.query(&format!(
        "SELECT coalesce(json_agg(datname ORDER BY datname COLLATE \"C\"), '[]') FROM pg_database
             WHERE left(datname, {}) = {} AND substr(datname, {} + 1) ~ '^[0-9]{{8}}T[0-9]{{6}}Z$'
               AND left(shobj_description(oid, 'pg_database'), length({mark})) = {mark};",
        begins.chars().count(),
        literal(&begins),
        begins.chars().count(),
    ))
}

/// Drops a database that `restore --keep-replaced` kept.
pub(crate) fn drop_replaced(
    profile: &Profile,
    target: &Target,
    database: &str,
    report: &mut Report,
) -> Result<()> {
    report.set("database", database);
    let admin = Admin::connect(profile, target)?;
    let found: Vec<(String, Option<String>)> = admin.query(&format!(
        "SELECT coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'))), '[]')
               FROM pg_database WHERE datname = {};",
        literal(database)
    ))?;
    let Some((_, comment)) = found.first() else {
        common::say!("pg-snap", "there is no database {database}");
        return Ok(());
    };
    if !database.contains(KEPT) || !is_ours(comment.as_deref()) {
        return Err(Fault::config(format!("the database {database} is none that a restore has kept"))
            .hint("data.kept_database of `pg-snap restore --keep-replaced` says its name")
            .into());
    }
    admin.drop_database(database).with_context(|| format!("cannot drop the database {database}"))?;
    report.changed = true;
    common::say!("pg-snap", "dropped {database}");
    Ok(())
}

/// `name` with `ending`, within the 63 bytes of an identifier.
pub(crate) fn temporary(name: &str, ending: &str) -> String {
    format!("{}{ending}", cut(name, 63 - ending.len()))
}

/// What `name` is called when it was replaced at `time`; without a time, how all of these names begin.
pub(crate) fn kept_name(name: &str, time: &str) -> String {
    format!("{}{KEPT}{time}", cut(name, 63 - KEPT.len() - TIME_LEN))
}

/// At most so many bytes of `name`.
fn cut(name: &str, most: usize) -> &str {
    let mut cut = name.len().min(most);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    &name[..cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    pub(crate) fn temporary_names_fit() {
        assert_eq!(temporary("nextcloud", NEW), "nextcloud_pgsnap_new");
        assert!(temporary(&"ü".repeat(31), OLD).len() <= 63);
        let long = kept_name(&"ü".repeat(31), "20260101T000000Z");
        assert!(long.len() <= 63 && long.starts_with(&kept_name(&"ü".repeat(31), "")), "{long}");
    }
}
