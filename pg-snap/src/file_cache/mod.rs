//! `verify --against TREE`: every row of `oc_filecache` against the files of a tree, and every file against the rows.
//!
//! Both come sorted by path, and are merged: whatever their number, one row and one folder of each level are in memory.
//! What a snapshot leaves out is not missed, and what Nextcloud keeps without a row is not called unlisted.

mod config;
mod files;
mod findings;
mod php;
mod places;
mod rows;
mod sizes;
mod storages;
mod tree;

use std::cmp::Ordering;

use anyhow::Result;
use common::exclude::Excludes;
use common::status::Report;
use serde_json::json;

use crate::manifest::Manifest;
use crate::psql::Psql;
use files::{Found, Kind, Walk};
use findings::Finding;
pub(crate) use findings::{Class, Findings};
use places::{LeftOut, Places};
use rows::{Row, Rows, Tables};
pub(crate) use tree::Tree;

/// How to compare.
#[derive(Debug)]
pub(crate) struct Options<'o> {
    /// What the snapshot leaves out of `data`.
    pub(crate) excludes: &'o Excludes,
    /// Findings of each class that are named.
    pub(crate) limit: usize,
}

/// Compares the restored `database`, which was dumped as `manifest` says, with `tree`.
pub(crate) fn compare(
    psql: &Psql,
    database: &str,
    manifest: &Manifest,
    tree: &Tree,
    options: &Options<'_>,
    report: &mut Report,
) -> Result<Findings> {
    let mut findings = Findings::new(options.limit);
    let config = config::Config::read(tree, report)?;
    config.against_dump(manifest, tree, &mut findings, report);
    let prefix = config.prefix();
    let Some(tables) = Tables::find(psql, database, &prefix)? else {
        findings.say(
            Class::Config,
            format!("the dump has no tables {prefix}filecache, {prefix}storages, …: nothing can be compared"),
        );
        return Ok(findings);
    };
    let overview = rows::overview(psql, database, &tables)?;
    let places = Places::find(psql, database, tree, &overview, config.data_directory())?;
    config.against_rows(tree, &overview, &mut findings, report)?;
    let walk = Walk::new(&tree.data, tree.snapshot.as_ref().is_some_and(|s| s.fake_super));
    let rows = Rows::begin(psql, database, &tables, &overview, &places.list)?;
    let merge = Merge {
        rows,
        walk,
        places: &places,
        left_out: LeftOut::new(options.excludes),
        findings: &mut findings,
        newest_row: overview.newest_mtime.unwrap_or(i64::MAX),
        seen: Seen::default(),
    };
    let seen = merge.run()?;
    seen.tell(report);
    let unchecked = places.unchecked.iter().map(|u| json!({ "storage": u.id, "rows": u.rows, "why": u.why }));
    report.set("unchecked", unchecked.collect::<Vec<_>>());
    for storage in &places.unchecked {
        report.warn(
            "storage-unchecked",
            format!("{} rows of the storage {} are not checked: {}", storage.rows, storage.id, storage.why),
        );
    }
    if seen.newer > 0 && seen.newer * 2 > findings.count(Class::FileWithoutRow) {
        report.warn(
            "dump-older-than-files",
            format!(
                "{} of the files without a row are newer than every row: the dump looks older than the files",
                seen.newer
            ),
        );
    }
    Ok(findings)
}

/// What was met.
#[derive(Debug, Default)]
struct Seen {
    rows: u64,
    encrypted_rows: u64,
    files: u64,
    folders: u64,
    /// Rows whose files the snapshot leaves out.
    left_out: u64,
    /// Rows that Nextcloud itself no longer uses.
    unused: u64,
    /// Files where Nextcloud keeps none in its index.
    not_indexed: u64,
    links: u64,
    /// Files without a row that are newer than every row.
    newer: u64,
}

impl Seen {
    fn tell(&self, report: &mut Report) {
        report.set("rows", self.rows);
        report.set("files", self.files);
        report.set("folders", self.folders);
        report.set("encrypted_rows", self.encrypted_rows);
        report.set("left_out_rows", self.left_out);
        report.set("unused_rows", self.unused);
        report.set("not_indexed_files", self.not_indexed);
        report.set("links", self.links);
        report.set("newer_than_rows", self.newer);
        if self.links > 0 {
            report.warn(
                "links",
                format!("{} rows are symbolic links or devices in the tree: not compared", self.links),
            );
        }
    }
}

/// The merge of two sorted lists.
struct Merge<'m> {
    rows: Rows,
    walk: Walk<'m>,
    places: &'m Places,
    left_out: LeftOut<'m>,
    findings: &'m mut Findings,
    newest_row: i64,
    seen: Seen,
}

impl Merge<'_> {
    fn run(mut self) -> Result<Seen> {
        let mut row = self.next_row()?;
        let mut file = self.next_file()?;
        // Two storages can hold the same folder: a file goes only when no further row has its path.
        let mut has_row = false;
        loop {
            let order = match (&row, &file) {
                (None, None) => return Ok(self.seen),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(row), Some(file)) => files::order(&row.path, &file.path),
            };
            match (order, &row, &file) {
                (Ordering::Less, Some(missing), _) => {
                    self.missing(missing);
                    row = self.next_row()?;
                }
                (Ordering::Equal, Some(r), Some(f)) => {
                    has_row |= self.pair(r, f)?;
                    row = self.next_row()?;
                }
                (_, _, Some(found)) => {
                    if !has_row {
                        self.unlisted(found)?;
                    }
                    has_row = false;
                    file = self.next_file()?;
                }
                _ => return Ok(self.seen),
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>> {
        let row = self.rows.next()?;
        if let Some(row) = &row {
            self.seen.rows += 1;
            self.seen.encrypted_rows += u64::from(row.promised.encrypted && !row.is_folder);
        }
        Ok(row)
    }

    fn next_file(&mut self) -> Result<Option<Found>> {
        let file = self.walk.next()?;
        match file.as_ref().map(|f| f.kind) {
            Some(Kind::Folder) => self.seen.folders += 1,
            Some(_) => self.seen.files += 1,
            None => {}
        }
        Ok(file)
    }

    /// Whether the row is one of the top storage's about users' homes, which old versions' scans left. Nextcloud reaches
    /// a home by its own storage only (lib/private/Files/Cache/LocalRootScanner.php).
    fn is_unused(&mut self, row: &Row) -> bool {
        let top = self.places.list.get(row.place).is_some_and(|p| p.prefix.is_empty());
        let used = row.path.is_empty()
            || row.path.starts_with(b"appdata_")
            || row.path.starts_with(b"__groupfolders");
        self.seen.unused += u64::from(top && !used);
        top && !used
    }

    fn missing(&mut self, row: &Row) {
        if self.is_unused(row) {
            return;
        }
        if self.left_out.matches(&row.path, row.is_folder) {
            self.seen.left_out += 1;
            return;
        }
        let bytes = (!row.is_folder).then(|| row.promised.bytes());
        let class = if row.is_folder { Class::MissingFolder } else { Class::MissingFile };
        self.add(class, row, bytes, None, bytes);
    }

    /// Compares; whether the file has its row by this one.
    fn pair(&mut self, row: &Row, file: &Found) -> Result<bool> {
        if self.is_unused(row) {
            return Ok(false);
        }
        let is_folder = file.kind == Kind::Folder;
        let fits = row.is_folder == is_folder
            && (is_folder || file.kind == Kind::File && row.promised.fits(file.size));
        if fits {
            return Ok(true);
        }
        match (row.is_folder, self.walk.real_kind(file)?) {
            // What it leads to, or is, cannot be told from the row.
            (_, Kind::Link) | (false, Kind::Other) => self.seen.links += 1,
            (false, Kind::File) => {
                let promised = row.promised.bytes();
                let lost = (file.size < promised).then(|| promised - file.size);
                self.add(Class::SizeDiffers, row, Some(promised), Some(file.size), lost);
            }
            (false, Kind::Folder) => {
                let promised = row.promised.bytes();
                self.add(Class::TypeDiffers, row, Some(promised), None, Some(promised));
            }
            (true, _) => self.add(Class::TypeDiffers, row, None, Some(file.size), None),
        }
        Ok(true)
    }

    fn add(
        &mut self,
        class: Class,
        row: &Row,
        row_bytes: Option<u64>,
        file_bytes: Option<u64>,
        lost_bytes: Option<u64>,
    ) {
        let user = self.places.list.get(row.place).and_then(|p| p.user.as_deref());
        self.findings.add(&Finding { class, user, path: &row.path, row_bytes, file_bytes, lost_bytes });
    }

    fn unlisted(&mut self, file: &Found) -> Result<()> {
        if file.kind == Kind::Folder {
            return Ok(());
        }
        let Some(user) = self.places.indexed(&file.path) else {
            self.seen.not_indexed += 1;
            return Ok(());
        };
        if self.left_out.matches(&file.path, false) {
            self.seen.not_indexed += 1;
            return Ok(());
        }
        // Nextcloud passes over a link that leads nowhere, and whether this one does cannot be told from the tree; and over
        // what is neither file nor folder.
        if matches!(self.walk.real_kind(file)?, Kind::Link | Kind::Other) {
            self.seen.links += 1;
            return Ok(());
        }
        self.seen.newer += u64::from(file.mtime > self.newest_row);
        self.findings.add(&Finding {
            class: Class::FileWithoutRow,
            user: user.as_deref(),
            path: &file.path,
            row_bytes: None,
            file_bytes: Some(file.size),
            lost_bytes: None,
        });
        Ok(())
    }
}
