//! Whether anything has been written to the database between two moments, from outside of every transaction.
//!
//! The text of a snapshot (`xmin:xmax:running`) changes with each transaction that ends after having written, in any database
//! of the server, and with nothing else. (One that is still running does not show: its session does.) What moved it may have
//! been another database, or autovacuum. From version 15 on, the counters of this database tell: they grow by each row that is
//! written in it, and a session adds its own before it goes from pg_stat_activity. Earlier versions count by messages that may
//! be late or lost, so there the text alone decides.

use anyhow::{Context as _, Result};
use common::mutant;
use serde::{Deserialize, Serialize};

use crate::session::Session;

/// The first version whose counters can be relied on.
const COUNTS_SINCE: i32 = 150_000;

/// One moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Horizon {
    /// As `pg_current_snapshot()` gives it.
    snapshot: String,
    /// Rows written in this database so far; null where that cannot be relied on.
    rows: Option<String>,
}

impl Horizon {
    /// Now.
    pub(crate) fn now(session: &mut Session) -> Result<Horizon> {
        // Before version 13 it has another name.
        let sql = format!(
            "SELECT json_build_object('snapshot', {snapshot}::text, 'rows', (SELECT concat_ws(' ', tup_inserted, tup_updated, \
             tup_deleted, stats_reset) FROM pg_stat_database WHERE datname = current_database() \
             AND current_setting('track_counts')::boolean AND {version} >= {COUNTS_SINCE}))",
            version = session.version,
            snapshot =
                if session.version >= 130_000 { "pg_current_snapshot()" } else { "txid_current_snapshot()" },
        );
        serde_json::from_str(&session.query(&sql)?).context("psql answered something odd")
    }

    /// Whether a transaction that wrote in this database may have ended since `earlier`.
    pub(crate) fn moved_since(&self, earlier: &Horizon) -> bool {
        let elsewhere = self.rows.is_some() && self.rows == earlier.rows;
        !mutant::active("horizon-moved") && self.snapshot != earlier.snapshot && !elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(snapshot: &str, rows: Option<&str>) -> Horizon {
        Horizon { snapshot: snapshot.into(), rows: rows.map(str::to_owned) }
    }

    #[test]
    fn other_databases_do_not_count_where_rows_are_counted() {
        let before = at("10:10:", Some("1 2 3"));
        assert!(!at("10:10:", Some("1 2 3")).moved_since(&before));
        assert!(!at("10:12:", Some("1 2 3")).moved_since(&before));
        assert!(at("10:12:", Some("2 2 3")).moved_since(&before));
        assert!(at("10:12:", None).moved_since(&at("10:10:", None)));
    }
}
