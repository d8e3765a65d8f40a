//! File names for the data of tables: `SCHEMA.TABLE.dat.gz` instead of pg_dump's running numbers.
//!
//! pg_dump numbers its files by dump id, so one new table renames them all. Named by table, an unchanged
//! table is the same file in every dump. A name says only which table it is; what counts is the map from
//! stored to original name in `dump.json`.

use std::collections::HashSet;

/// Longest name given, in bytes; file systems allow 255.
const LONGEST: usize = 200;

/// The names already given in one dump.
#[derive(Debug, Default)]
pub(crate) struct Names {
    used: HashSet<String>,
}

impl Names {
    /// Takes `name` as it is: files that keep the name pg_dump gave them.
    pub(crate) fn keep(&mut self, name: &str) -> String {
        self.used.insert(name.to_owned());
        name.to_owned()
    }

    /// A name for the data of `schema.table`, ending in `suffix` (`.dat.gz`), and never given twice.
    pub(crate) fn table(&mut self, schema: &str, table: &str, suffix: &str) -> String {
        let full = format!("{}.{}", escape(schema), escape(table));
        let stem = if full.len() + suffix.len() <= LONGEST {
            full
        } else {
            // Escaped text is ASCII, so any cut is a character's.
            let cut = LONGEST - suffix.len() - 17;
            format!("{}~{:016x}", &full[..cut], fnv1a(full.as_bytes()))
        };
        let mut name = format!("{stem}{suffix}");
        let mut count = 2;
        while !self.used.insert(name.clone()) {
            name = format!("{stem}~{count}{suffix}");
            count += 1;
        }
        name
    }
}

/// Lower-case letters, digits, `_`, `-` and `$` stay; every other byte becomes `%XX`. Upper case too, so
/// that a file system that ignores case keeps them apart.
fn escape(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'$' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// FNV-1a, 64 bits: the same in every version of this program.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Splits `1234.dat.gz` into dump id and suffix; `None` for every other name (`toc.dat`, `blob_7.dat.gz`).
pub(crate) fn dump_id(file: &str) -> Option<(u32, &str)> {
    let (digits, suffix) = file.split_at(file.find('.')?);
    Some((digits.parse().ok()?, suffix)).filter(|(_, s)| s.starts_with(".dat"))
}

/// A name for `blobs_ID.toc`, in which PostgreSQL 17 lists some of the large objects: by the first of them. `None` for every
/// other file; `text` is how it begins.
pub(crate) fn objects(file: &str, text: &[u8]) -> Option<String> {
    let id = file.strip_prefix("blobs_")?.strip_suffix(".toc")?;
    let first = std::str::from_utf8(text.split(|b| *b == b' ').next()?).ok()?;
    let (_, first): (u32, u32) = (id.parse().ok()?, first.parse().ok()?);
    Some(format!("blobs.{first}.toc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(Names::default().table("public", "oc_filecache", ".dat.gz"), "public.oc_filecache.dat.gz");
    }

    #[test]
    fn odd_names_are_safe_and_stay_apart() {
        let mut names = Names::default();
        assert_eq!(names.table("public", "a/../b", ".dat"), "public.a%2F%2E%2E%2Fb.dat");
        assert_eq!(names.table("public", "A", ".dat"), "public.%41.dat");
        assert_eq!(names.table("public", "a", ".dat"), "public.a.dat");
        assert_eq!(names.table("a.b", "c", ".dat"), "a%2Eb.c.dat");
        assert_eq!(names.table("a", "b.c", ".dat"), "a.b%2Ec.dat");
        assert_eq!(names.table("public", "é\n", ".dat"), "public.%C3%A9%0A.dat");
    }

    #[test]
    fn long_names_are_cut_the_same_way_every_time() {
        let (schema, table) = ("é".repeat(31), "ü".repeat(31));
        let one = Names::default().table(&schema, &table, ".dat.gz");
        let two = Names::default().table(&schema, &table, ".dat.gz");
        assert_eq!(one, two);
        assert!(one.len() <= LONGEST && one.ends_with(".dat.gz"), "{one}");
        let other = Names::default().table(&schema, &"ü".repeat(30), ".dat.gz");
        assert_ne!(one, other);
    }

    #[test]
    fn a_name_is_never_given_twice() {
        let mut names = Names::default();
        names.keep("public.a.dat");
        assert_eq!(names.table("public", "a", ".dat"), "public.a~2.dat");
    }

    #[test]
    fn only_numbered_data_files_are_renamed() {
        assert_eq!(dump_id("3345.dat.gz"), Some((3345, ".dat.gz")));
        assert_eq!(dump_id("3345.dat"), Some((3345, ".dat")));
        for other in ["toc.dat", "blobs.toc", "blob_16400.dat.gz", "blobs_12.toc", "3345", "3345.toc"] {
            assert_eq!(dump_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_list_of_large_objects_is_named_by_its_first() {
        assert_eq!(objects("blobs_3504.toc", b"17105 blob_17105.dat\n17"), Some("blobs.17105.toc".into()));
        for (file, text) in [
            ("blobs.toc", "17105 blob_17105.dat"),
            ("blobs_.toc", "17105 blob"),
            ("blobs_3.toc", ""),
            ("blobs_3.toc", "../x y"),
            ("blobs_3.dat", "17105 blob"),
        ] {
            assert_eq!(objects(file, text.as_bytes()), None, "{file}: {text}");
        }
    }
}
