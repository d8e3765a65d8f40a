//! What a verification is asked to look at, and what it came to.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::findings::{Damage, Finding, list};

/// What is to be checked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Scope {
    /// A date, `latest`, or `all`.
    pub date: String,
    /// Percent of the distinct inodes whose bytes are read; names and attributes are always checked.
    pub sample: f64,
    /// Which ones: the same seed chooses the same.
    pub seed: u64,
    /// Findings that are listed; all are counted.
    pub limit: usize,
}

impl Scope {
    /// Whether the bytes of this inode are to be read.
    pub fn reads(&self, ino: u64) -> bool {
        // splitmix64: inode numbers are anything but random.
        let mut x = self.seed.wrapping_add(ino.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        #[expect(clippy::cast_precision_loss, reason = "a share of all numbers")]
        let share = x as f64 / u64::MAX as f64;
        share < self.sample / 100.0 || self.sample >= 100.0
    }
}

/// What a verification came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The snapshots checked.
    pub dates: Vec<String>,
    /// Those without a manifest, or (of a copy) with a part of one only.
    pub weaker: Vec<String>,
    /// Those that are being removed, or were meanwhile.
    pub skipped: Vec<String>,
    /// Names checked, in all dates.
    pub paths: u64,
    /// Distinct files.
    pub inodes: u64,
    /// Of them read.
    pub inodes_read: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// How many things of each kind are wrong: all.
    pub counts: BTreeMap<Damage, u64>,
    /// What is wrong; of more than [`KEPT`](super::findings::KEPT) places, not all.
    pub findings: Vec<Finding>,
    /// Not all that is wrong is in `findings`.
    pub truncated: bool,
}

impl Outcome {
    /// How many things are wrong.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// For the status object.
    pub fn describe(&self, scope: &Scope) -> Result<Value> {
        let listed = list(&self.findings, scope.limit);
        let truncated = self.truncated || (listed.len() as u64) < self.total();
        let counts: Map<_, _> = self
            .counts
            .iter()
            .map(|(kind, n)| Ok((serde_json::from_value::<String>(json!(kind))?, json!(n))))
            .collect::<Result<_>>()?;
        Ok(json!({
            "dates": self.dates, "weaker_dates": self.weaker, "skipped_dates": self.skipped,
            "sample_percent": scope.sample, "seed": scope.seed,
            "paths": self.paths, "inodes": self.inodes,
            "inodes_read": self.inodes_read, "bytes_read": self.bytes_read,
            "findings": listed, "findings_total": self.total(), "findings_truncated": truncated,
            "counts": counts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::store::scan::ManifestLine;

    #[test]
    fn what_is_listed_fits_a_message_whatever_the_limit() {
        let missing = |n| Finding {
            kind: Damage::Missing,
            places: BTreeSet::from([(
                "2026-01-01T00-00-00Z".to_owned(),
                format!("docs/{n:07}").into_bytes(),
            )]),
            ino: None,
            expected: ManifestLine::default(),
            found: "it is not there".into(),
        };
        let (counts, findings) =
            (BTreeMap::from([(Damage::Missing, 50_000)]), (0..50_000).map(missing).collect());
        let outcome = Outcome { counts, findings, truncated: false, ..Outcome::default() };
        let scope = Scope { date: "all".into(), sample: 100.0, seed: 1, limit: usize::MAX };
        let told = outcome.describe(&scope).unwrap();
        assert!(told.to_string().len() < 5 << 20);
        assert_eq!((&told["findings_total"], &told["findings_truncated"]), (&50_000.into(), &true.into()));
        let few = outcome.describe(&Scope { limit: 3, ..scope }).unwrap();
        assert_eq!(few["findings"].as_array().unwrap().len(), 3);
        assert_eq!(few["findings_truncated"], true);
    }
}
