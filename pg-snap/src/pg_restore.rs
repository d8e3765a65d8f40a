//! pg_restore: the table of contents of a dump, and its way back into a database.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use common::fault::Fault;
use common::run::Cmd;

use crate::connect::Server;
use crate::programs::Program;

/// How long nothing may come from the server: it can work on one index for hours, and says nothing meanwhile.
const INDEX: Duration = Duration::from_secs(12 * 3600);

/// The data entries of a table of contents: dump id to the table's OID. Fails if it cannot be read.
pub(crate) fn table_data(program: &Program, dir: &Path) -> Result<HashMap<u32, u32>> {
    let output = program.cmd()?.arg("--list").arg(dir).checked()?;
    Ok(parse_list(&String::from_utf8_lossy(&output.stdout)))
}

/// `3345; 0 16386 TABLE DATA public oc_accounts oc_admin`: names can hold blanks, numbers cannot.
fn parse_list(text: &str) -> HashMap<u32, u32> {
    let lines = text.lines().filter(|l| !l.starts_with(';'));
    lines
        .filter_map(|line| {
            let (id, rest) = line.split_once("; ")?;
            let mut words = rest.splitn(3, ' ');
            let (_, oid) = (words.next()?, words.next()?);
            words.next().filter(|w| w.starts_with("TABLE DATA "))?;
            Some((id.parse().ok()?, oid.parse().ok()?))
        })
        .collect()
}

/// Restores the files in `dir` into the empty `database`, and stops at the first error. `more` are options.
pub(crate) fn restore(
    program: &Program,
    server: &Server,
    database: &str,
    dir: &Path,
    jobs: u32,
    more: &[&str],
) -> Result<()> {
    let passfile = server.passfile()?;
    let cmd: Cmd = program
        .cmd()?
        .args(["--exit-on-error", "--no-password"])
        .args(more)
        .arg(format!("--jobs={jobs}"))
        .arg("--dbname")
        .arg(server.conninfo(database))
        .arg(dir);
    let cmd = passfile.lend(cmd).quiet_limit(INDEX);
    let output = cmd.output()?;
    if output.status.success() {
        return Ok(());
    }
    let mut failure = cmd.failure(&output);
    let said = &failure.stderr_tail;
    failure.hint = if said.contains("must be owner") || said.contains("permission denied") {
        Some("restore as an administrator: --admin-user postgres".into())
    } else if said.contains("No space left on device") {
        Some("the server's disk is full".into())
    } else if said.contains("extension") && said.contains("not available") {
        Some("install the extension's package on the server first".into())
    } else if said.contains("unrecognized configuration parameter") {
        Some(
            "this pg_restore is newer than the server: name one of its version in [database] pg_restore"
                .into(),
        )
    } else if said.contains("No such file or directory") && !dir.join("toc.dat").exists() {
        return Err(Fault::failed("the dump went away while it was restored").into());
    } else {
        None
    };
    Err(failure.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_table_data_counts_whatever_the_names() {
        let text = ";\n; Archive created at 2026-11-22\n;\n\
            3345; 0 16386 TABLE DATA public oc_accounts oc_admin\n\
            215; 1259 16385 TABLE public TABLE DATA oc_admin\n\
            3346; 0 16390 TABLE DATA public with blanks; and more oc admin\n\
            3360; 0 0 SEQUENCE SET public s oc_admin\n";
        let map = parse_list(text);
        assert_eq!(map, HashMap::from([(3345, 16386), (3346, 16390)]));
    }
}
