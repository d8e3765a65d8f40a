//! The first command where Rust is missing or too old: `scripts/demo` and `scripts/test` begin so.
#![expect(clippy::disallowed_methods, reason = "tests start what they test by hand")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use testkit::{scratch, script, scripts};

/// A machine whose cargo is 1.85 and whose archive has rustup if `rustup`; the folder of its programs is `bin`.
fn machine(bin: &Path, rustup: bool) {
    script(&bin.join("cargo"), "#!/bin/sh\necho 'cargo 1.85.0 (of the distribution)'\n");
    let candidate = if rustup { "1.27.1-3" } else { "(none)" };
    script(&bin.join("apt-cache"), &format!("#!/bin/sh\necho '  Candidate: {candidate}'\n"));
}

/// What `find_cargo` does there; with an answer, on a terminal.
fn find_cargo(bin: &Path, answer: Option<&str>) -> Output {
    let ready = bin.join("ready.sh");
    let text = format!(
        "repo='{}'\n. '{}'\n. '{}'\nfind_cargo\necho \"found $have\"\n",
        testkit::repo().display(),
        scripts().join("lib.sh").display(),
        testkit::lab("ready.sh").display()
    );
    std::fs::write(&ready, text).unwrap();
    let mut command = Command::new("sh");
    match answer {
        None => command.arg(&ready),
        Some(answer) => command
            .args(["-c", "printf '%s\\n' \"$1\" | script -qec \"sh '$2'\" /dev/null", "sh", answer])
            .arg(&ready),
    };
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    command.env_clear().env("PATH", path).env("HOME", "/nonexistent").stdin(Stdio::null()).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn nobody_to_ask_gets_the_one_line_that_brings_it() {
    let dir = scratch();
    for (rustup, line) in [
        (true, "This brings it: apt-get install rustup && rustup toolchain install stable"),
        (false, "This brings it: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"),
    ] {
        machine(dir.path(), rustup);
        let output = find_cargo(dir.path(), None);
        assert_eq!(output.status.code(), Some(69), "{}", told(&output));
        assert!(told(&output).contains("here is 1.85.0"), "{}", told(&output));
        assert!(told(&output).contains(line), "{}", told(&output));
    }
}

#[test]
fn it_is_fetched_only_after_a_yes() {
    let dir = scratch();
    let bin = dir.path();
    machine(bin, true);
    // The distribution's rustup, installed already; what it fetches is a cargo of the day.
    let rustup = format!(
        "#!/bin/sh\necho \"$*\" >>'{log}'\nprintf '#!/bin/sh\\necho cargo 9.9.0\\n' >'{cargo}'\n",
        log = bin.join("log").display(),
        cargo = bin.join("cargo").display()
    );
    script(&bin.join("rustup"), &rustup);
    let no = find_cargo(bin, Some("n"));
    assert_eq!(no.status.code(), Some(69), "{}", told(&no));
    assert!(told(&no).contains("Fetch it now?"), "{}", told(&no));
    assert!(!bin.join("log").exists(), "fetched although the answer was no");
    let yes = find_cargo(bin, Some("y"));
    assert!(yes.status.success() && told(&yes).contains("found 9.9.0"), "{}", told(&yes));
    let asked = std::fs::read_to_string(bin.join("log")).unwrap();
    assert!(asked.starts_with("toolchain install stable --profile minimal"), "{asked}");
}
