//! `status`, `on` and `off`: every way the switch is known to lie, hang or fail.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::{bin, run, scratch, script, tool};

use crate::world::World;

#[test]
fn on_and_off_are_proven_recorded_and_idempotent() {
    let world = World::new();
    let first = world.ask("on", &[]).expect(0);
    assert!(world.maintenance());
    assert_eq!(first.json["changed"], true);
    let id = first.json["data"]["run_id"].as_str().unwrap();
    let record = std::fs::read_to_string(world.record()).unwrap();
    assert!(record.contains(id), "{record}");

    assert_eq!(world.ask("on", &[]).expect(0).json["changed"], false);
    let status = world.ask("status", &[]).expect(0).json;
    assert_eq!((&status["data"]["maintenance"], &status["data"]["ours"]), (&true.into(), &true.into()));
    assert_eq!(status["data"]["record"]["run_id"], id);

    assert_eq!(world.ask("off", &[]).expect(0).json["changed"], true);
    world.is_clean();
    assert_eq!(world.ask("off", &[]).expect(0).json["changed"], false);
    assert_eq!(world.ask("status", &[]).expect(0).json["data"]["maintenance"], false);
}

#[test]
fn exit_code_0_of_an_occ_that_cannot_write_is_not_believed() {
    let world = World::new();
    std::fs::set_permissions(world.config(), PermissionsExt::from_mode(0o440)).unwrap();
    let ran = world.ask("on", &[]).expect(77);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("cannot write config.php"));
    assert!(!world.maintenance());
    // It is off, and that is proven without occ.
    let ran = world.ask("off", &[]).expect(0);
    assert!(ran.json["warnings"].to_string().contains("occ could not switch"), "{:#}", ran.json);
    world.is_clean();
}

#[test]
fn an_occ_run_by_the_wrong_user_is_not_believed() {
    let world = World::new();
    let occ = world.root().join("occ");
    let mut command = world.nc_maint("on");
    for word in ["sudo", "-u", "nobody", "php", occ.to_str().unwrap()] {
        command.args(["--occ", word]);
    }
    run(&mut command).expect(77);
    assert!(!world.maintenance());
}

#[test]
fn any_argv_reaches_occ_as_docker_exec_would() {
    let world = World::new();
    let docker = world.path().join("docker");
    let text = format!(
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'exec -u www-data' ] || exit 125\nshift 4\nexec sudo -u www-data php {}/\"$@\"\n",
        world.root().display()
    );
    script(&docker, &text);
    let mut command = world.nc_maint("on");
    for word in [docker.to_str().unwrap(), "exec", "-u", "www-data", "nextcloud", "occ"] {
        command.args(["--occ", word]);
    }
    run(&mut command).expect(0);
    assert!(world.maintenance());
}

#[test]
fn an_occ_that_says_done_and_does_nothing_is_found_out() {
    let world = World::new();
    world.misbehave("lie = on");
    let ran = world.ask("on", &[]).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("and then that it is not"));
    world.is_clean();

    world.misbehave("");
    world.ask("on", &[]).expect(0);
    world.misbehave("lie = off");
    // Then config.php is written without it.
    let ran = world.ask("off", &[]).expect(0);
    assert_eq!(ran.json["warnings"][0]["kind"], "occ-failed");
    world.is_clean();
    // Unless something else holds it on.
    world.misbehave("");
    world.ask("on", &[]).expect(0);
    let theirs = world.root().join("config/zz.config.php");
    std::fs::write(&theirs, "<?php $CONFIG = array('maintenance' => true);").unwrap();
    let ran = world.ask("off", &[]).expect(4);
    assert!(ran.json["left_behind"][0]["clear"].as_str().unwrap().contains("nc-maint off --root"));
    assert!(world.state().join("switch.json").exists());
    // The claim is still there, so what cleans up later knows that it is ours.
    std::fs::remove_file(theirs).unwrap();
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();
}

#[test]
fn an_occ_that_hangs_is_ended_and_the_switch_goes_back() {
    let world = World::new();
    let limit = ["--occ-timeout", "400ms"];
    for fault in ["hang = on", "hang_after = on"] {
        world.misbehave(fault);
        let begin = Instant::now();
        let ran = world.ask("on", &limit).expect(1);
        assert!(ran.stderr.contains("did not finish within 400ms"), "{fault}: {}", ran.stderr);
        assert!(begin.elapsed() < Duration::from_secs(10));
        world.is_clean();
    }
    world.misbehave("");
    world.ask("on", &[]).expect(0);
    world.misbehave("hang = all");
    world.ask("off", &limit).expect(0);
    world.is_clean();
}

#[test]
fn a_slow_occ_is_waited_for() {
    let world = World::new();
    world.misbehave("delay_ms = 400");
    world.ask("on", &[]).expect(0);
    assert!(world.maintenance());
    world.ask("off", &[]).expect(0);
    world.is_clean();
}

#[test]
fn a_read_only_configuration_a_missing_ncdata_and_a_dead_database_change_nothing() {
    let world = World::new();
    world.configure("'config_is_read_only' => true,");
    world.ask("on", &[]).expect(78);
    world.is_clean();

    world.configure("");
    world.misbehave("fail = all\nfail_message = 'Exception: SQLSTATE[08006] [7] s3cret: Connection refused'");
    let ran = world.ask("on", &[]).expect(1);
    let tail = ran.json["error"]["command"]["stderr_tail"].as_str().unwrap();
    assert_eq!(tail, "SQLSTATE[08006]: the database cannot be reached, or refuses the login");
    world.is_clean();

    world.misbehave("");
    std::fs::remove_file(world.data().join(".ncdata")).unwrap();
    let ran = world.ask("on", &[]).expect(1);
    assert!(ran.stderr.contains("Your data directory is invalid"), "{}", ran.stderr);
    world.is_clean();
}

#[test]
fn with_a_url_the_switch_counts_when_clients_see_it() {
    let mut world = World::new();
    let url = world.serve();
    world.misbehave("url_delay_ms = 1000");
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!world.clients(&url));
    let begin = Instant::now();
    world.ask("on", &["--url", &url]).expect(0);
    assert!(begin.elapsed() > Duration::from_millis(900), "it waited for the cache to notice");
    assert!(world.clients(&url));
    world.ask("off", &["--url", &url]).expect(0);
    assert!(!world.clients(&url));
}

#[test]
fn clients_that_never_see_it_mean_failure_and_the_switch_goes_back() {
    let mut world = World::new();
    let url = world.serve();
    world.misbehave("url_stuck = true");
    assert!(!world.clients(&url));
    let limit = ["--url", &url, "--url-timeout", "600ms"];
    let ran = world.ask("on", &limit).expect(1);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("do not see maintenance on"));
    world.is_clean();

    // The same on the way back: off for occ, but clients are still refused.
    std::fs::remove_file(world.root().join("standin.cache")).unwrap();
    world.ask("on", &[]).expect(0);
    assert!(world.clients(&url));
    let ran = world.ask("off", &limit).expect(4);
    assert!(ran.json["left_behind"][0]["what"].as_str().unwrap().contains("do not see maintenance off"));
}

#[test]
fn a_url_that_does_not_answer_is_noticed_before_anybody_is_kept_out() {
    let world = World::new();
    let ran = world.ask("on", &["--url", "http://127.0.0.1:9"]).expect(69);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not begun"), "{}", ran.stderr);
    assert!(!std::fs::read_to_string(world.config()).unwrap().contains("maintenance"), "occ never wrote");
    world.is_clean();
}

#[test]
fn a_drop_in_of_somebody_else_is_not_mistaken_for_off() {
    let world = World::new();
    world.ask("on", &[]).expect(0);
    let drop_in = world.root().join("config/zz.config.php");
    std::fs::write(&drop_in, "<?php $CONFIG = array('maintenance' => true);").unwrap();
    let ran = world.ask("off", &[]).expect(4);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("config/zz.config.php"));
    std::fs::remove_file(drop_in).unwrap();
    world.ask("off", &[]).expect(0);
    world.is_clean();
}

#[test]
fn off_if_ours_ends_only_what_nc_maint_began() {
    let world = World::new();
    world.occ(&["maintenance:mode", "--on"]);
    let ran = world.ask("off", &["--if-ours"]).expect(0);
    assert_eq!(
        (&ran.json["data"]["kept_because"], &ran.json["changed"]),
        (&"not-ours".into(), &false.into())
    );
    assert!(world.maintenance());
    world.ask("off", &[]).expect(0);

    world.ask("on", &[]).expect(0);
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();

    // A record that got damaged is ours all the same.
    world.ask("on", &[]).expect(0);
    std::fs::write(world.record(), "{").unwrap();
    std::fs::remove_file(world.state().join("switch.json")).unwrap();
    world.ask("off", &["--if-ours"]).expect(0);
    world.is_clean();
}

#[test]
fn wrong_input_is_told_apart() {
    let dir = scratch();
    let empty = dir.path().to_str().unwrap();
    tool("nc-maint", ["status"]).expect(78);
    let ran = tool("nc-maint", ["status", "--root", empty, "--state-dir", empty]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("there is no Nextcloud in"));
    tool("nc-maint", ["status", "no-such-profile"]).expect(78);
    tool("nc-maint", ["run", "home"]).expect(2);
    tool("nc-maint", ["status", "home", "--method", "magic"]).expect(2);

    let world = World::new();
    world.ask("status", &["--url", "cloud.example"]).expect(78);
    for max in ["0s", "10ms", "9999h"] {
        world.run(&["--max", max], "true").expect(78);
    }
    world.is_clean();
    std::fs::remove_file(world.root().join("occ")).unwrap();
    world.ask("status", &[]).expect(69);
    world.ask("status", &["--occ", "no-such-program"]).expect(69);
}

#[test]
fn a_profile_is_enough_and_options_win_over_it() {
    let world = World::new();
    let profile = world.path().join("home.toml");
    let text = format!(
        "state_dir = \"{}\"\n[nextcloud]\nroot = \"{}\"\nmax = \"5m\"\nocc_timeout = \"20s\"\n",
        world.state().display(),
        world.root().display()
    );
    std::fs::write(&profile, text).unwrap();
    let with = |args: &[&str]| run(Command::new(bin("nc-maint")).args(args).arg("--config").arg(&profile));
    assert_eq!(with(&["on"]).expect(0).json["profile"], "home");
    assert!(world.maintenance());
    with(&["off", "--root", "/nonexistent"]).expect(78);
    with(&["off"]).expect(0);
    world.is_clean();
}

#[test]
fn nobody_listening_changes_nothing_about_the_work() {
    let world = World::new();
    let quiet = |redirect: &str, action: &str| {
        let line = format!(
            "{} {action} --root {} --state-dir {} {redirect}",
            bin("nc-maint").display(),
            world.root().display(),
            world.state().display()
        );
        Command::new("bash").args(["-c", &line]).output().unwrap().status.code()
    };
    assert_eq!(quiet(">&-", "on"), Some(0));
    assert!(world.maintenance());
    assert_eq!(quiet(">&- 2>&-", "off"), Some(0));
    world.is_clean();
}

#[test]
fn with_the_database_down_maintenance_ends_all_the_same() {
    let world = World::new();
    world.ask("on", &[]).expect(0);
    world.misbehave("fail = all");
    // What the boot unit does, perhaps before PostgreSQL is up.
    let ran = world.ask("off", &["--if-ours"]).expect(0);
    assert_eq!(
        (&ran.json["changed"], &ran.json["warnings"][0]["kind"]),
        (&true.into(), &"occ-failed".into())
    );
    world.is_clean();
}

#[test]
fn a_restored_configuration_that_is_read_only_opens_with_a_new_fingerprint() {
    for method in ["occ", "drop-in"] {
        for saved in ["", "'maintenance' => true,"] {
            let world = World::new();
            world.configure(&format!("'config_is_read_only' => true, 'data-fingerprint' => 'old', {saved}"));
            let before = std::fs::read_to_string(world.config()).unwrap();
            let close = || run(Command::new(bin("nc-maint")).args(["close", "--dir"]).arg(world.root()));
            assert_eq!(close().expect(0).json["changed"], true);
            assert!(world.maintenance());
            let off = ["--data-fingerprint", "--method", method];
            world.ask_plainly("off", &off).expect(0);
            world.is_clean();
            let after = std::fs::read_to_string(world.config()).unwrap();
            let lines: Vec<&str> = after.strip_prefix(before.trim_end()).unwrap().trim().lines().collect();
            assert!(lines[0].starts_with("$CONFIG['data-fingerprint'] = '"), "{after}");
            assert_eq!(
                lines.len(),
                if saved.is_empty() { 1 } else { 2 },
                "as it was saved, but for that: {after}"
            );
            // Another restore renews it again.
            world.ask_plainly("off", &off).expect(0);
            let again = std::fs::read_to_string(world.config()).unwrap();
            assert!(again != after && again.matches("data-fingerprint'] =").count() == 1, "{again}");
        }
    }
    // Where another file has the last word, nothing is opened.
    let world = World::new();
    world.configure("'config_is_read_only' => true, 'maintenance' => true,");
    std::fs::write(world.root().join("config/z.config.php"), "<?php $CONFIG = ['data-fingerprint' => 'x'];")
        .unwrap();
    let ran = world.ask("off", &["--data-fingerprint"]).expect(1);
    assert!(ran.json["error"]["hint"].as_str().unwrap().contains("overrides config.php"), "{:#}", ran.json);
    assert!(world.maintenance());
}

#[test]
fn what_is_reported_as_maintenance_is_what_clients_see() {
    let mut world = World::new();
    let url = world.serve();
    // occ takes its time before it throws the switch, and to tell the state.
    world.misbehave("delay_on_ms = 900\ndelay_off_ms = 900\ndelay_mode_ms = 500");
    for with_url in [false, true] {
        let mut options = Vec::new();
        if with_url {
            options.extend(["--url", &url]);
        }
        let mut child = world.spawn(&options, "sleep 0.5");
        let (mut first, mut last) = (None, None);
        while child.try_wait().unwrap().is_none() {
            if world.clients(&url) {
                first.get_or_insert_with(Instant::now);
                last = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let out = child.wait_with_output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert!(first.is_some(), "{json:#}");
        let polled = i64::try_from((last.unwrap() - first.unwrap()).as_millis()).unwrap();
        let reported = json["data"]["maintenance_ms"].as_i64().unwrap();
        // Without occ's times, which are ordered here, the two differ by well over a second.
        assert!((reported - polled).abs() < 800, "reported {reported} ms, polled {polled} ms");
        world.is_clean();
    }
}

/// A web server of one answer, which this writes.
fn answers(write: fn(&mut std::net::TcpStream) -> std::io::Result<()>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // The other end hangs up when it has had enough.
            std::thread::spawn(move || write(&mut stream).ok());
        }
    });
    url
}

#[test]
fn a_web_server_that_never_ends_its_answer_costs_seconds_and_is_not_believed() {
    use std::io::Write as _;
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let endless_body = answers(|s| {
        s.write_all(&[OK, b"\r\n{\"maintenance\":true}".as_slice()].concat())?;
        loop {
            s.write_all(&[b' '; 65536])?;
        }
    });
    let slow_body = answers(|s| {
        s.write_all(&[OK, b"\r\n".as_slice()].concat())?;
        loop {
            s.write_all(b" ")?;
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let endless_headers = answers(|s| {
        s.write_all(OK)?;
        loop {
            s.write_all(b"X-More: 0123456789012345678901234567890123456789\r\n")?;
        }
    });
    let elsewhere = answers(|s| {
        s.write_all(b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n")
    });
    let world = World::new();
    for (what, url) in [
        ("endless body", endless_body),
        ("slow body", slow_body),
        ("endless headers", endless_headers),
        ("elsewhere", elsewhere),
    ] {
        let begin = Instant::now();
        let ran = world.ask("on", &["--url", &url, "--url-timeout", "2s"]).expect(69);
        assert!(begin.elapsed() < Duration::from_secs(8), "{what}: {:?}", begin.elapsed());
        assert!(ran.json.to_string().len() < 8000 && ran.stderr.len() < 8000, "{what}");
        world.is_clean();
    }
}
