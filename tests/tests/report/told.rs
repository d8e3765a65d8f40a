//! What the page tells: the judgement of `status`, each night, each date with its commands.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::run;

use crate::world::{World, at, page, ran};

/// How the nights were, from the oldest on.
fn nights(told: &Value) -> Vec<(String, String)> {
    let all = told["data"]["nights"].as_array().unwrap();
    all.iter().map(|n| (n["night"].as_str().unwrap().into(), n["state"].as_str().unwrap().into())).collect()
}

/// The values of an attribute, as they are in the page.
fn all<'a>(page: &'a str, before: &str) -> Vec<&'a str> {
    page.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

#[test]
fn it_is_one_page_in_order_that_loads_nothing_and_says_what_status_says() {
    for machine in ["s1", "s2", "one"] {
        let world = World::new(&["--nights", "200", "--machine", machine]);
        let page = world.page();
        assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">\n") && page.ends_with("</html>\n"));
        assert!(page.contains("<title>home on ") && page.contains("<h1>All is well.</h1>"), "{machine}");
        for foreign in [
            "http:", "https:", "//", "<script", "src=", "url(", "@import", "<link", "<img", "<iframe",
            "<form",
        ] {
            assert!(!page.contains(foreign), "{machine}: {foreign}");
        }
        assert!(!page.contains(" style="), "the policy would not let it count");
        let policy = all(&page, "Content-Security-Policy\" content=\"")[0];
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        // Each heading is one deeper than the one before, at most; and each link leads somewhere.
        let level = |(i, _): (usize, &str)| match page.as_bytes()[i + 2] {
            n @ b'1'..=b'6' => Some(n - b'0'),
            _ => None,
        };
        let levels: Vec<u8> = page.match_indices("<h").filter_map(level).collect();
        assert_eq!(levels[0], 1);
        assert!(
            levels.windows(2).all(|w| w[1] <= w[0] + 1) && levels[1..].iter().all(|l| *l > 1),
            "{levels:?}"
        );
        for link in all(&page, "href=\"") {
            assert!(page.contains(&format!(" id=\"{}\"", link.strip_prefix('#').expect(link))), "{link}");
        }
        let mut ids = all(&page, " id=\"");
        ids.sort_unstable();
        assert!(ids.windows(2).all(|w| w[0] != w[1]), "two of an id: {ids:?}");
    }
}

#[test]
fn the_judgement_is_that_of_status_with_its_limits_and_its_findings() {
    let world = World::new(&["--nights", "30"]);
    for (options, says) in [
        (vec![], "<h1>All is well.</h1>"),
        (vec!["--max-drill-age", "1d"], "<h1>Nothing is broken, but 1 thing should be looked at soon.</h1>"),
        (vec!["--max-backup-age", "0h"], "<h1>Not well: <bdi>S2: the newest snapshot is "),
    ] {
        let told = page(world.report(&options).output().unwrap());
        assert!(told.contains(says), "{says}");
        let status = run(&mut world.script("status", &options));
        for finding in status.json["data"]["findings"].as_array().unwrap() {
            assert!(told.contains(finding["what"].as_str().unwrap()), "{finding}");
            assert!(told.contains(finding["cure"].as_str().unwrap()), "{finding}");
        }
    }
    // A store that does not answer is on the page, too.
    world.answers("link-sync.list", |object| {
        *object = json!({"schema": 1, "tool": "link-sync", "action": "list", "status": "unavailable", "exit_code": 69, "data": {},
            "warnings": [], "left_behind": [], "error": {"kind": "unavailable", "message": "S2 is away", "hint": null}});
    });
    let told = world.page();
    assert!(
        told.contains("Not well: <bdi>S2: S2 is away</bdi>")
            && told.contains("There is no date to restore from, as far as")
    );
    // What cannot be understood is not taken for a good one, here nor there.
    world.answers("link-sync.list", |object| {
        object["data"] = json!({"snapshots": [], "pinned": [7], "room": 7})
    });
    let status = run(&mut world.script("status", &[])).expect(1);
    assert!(status.json["error"]["message"].as_str().unwrap().contains("is not known"), "{:#}", status.json);
    let told = world.page();
    assert!(
        told.contains("<h1>Whether all is well is not known: <bdi>an answer is not as it should be"),
        "{told}"
    );
}

#[test]
fn each_night_is_what_its_last_runs_were_and_a_night_without_a_backup_is_seen() {
    let world = World::empty();
    world.history(&[
        ran("backup", &at(6, 3), 0, ""),
        ran("backup", &at(5, 3), 69, "S2 is away"),
        ran("backup", &at(4, 3), 69, "S2 is away"),
        ran("backup", &at(4, 5), 0, ""),
        ran("verify", &at(3, 9), 0, ""),
        ran("backup", &at(2, 3), 3, "two paths were left out"),
        ran("backup", &at(1, 3), 0, ""),
        ran("drill", &at(1, 9), 1, "a file would be lost"),
        "{\"kind\":\"backup\",\"started_at\":\"2026-1".into(),
        "\u{1}\u{2} none of it".into(),
        "[1,2]".into(),
        "{\"kind\":\"backup\",\"data\":[],\"error\":\"x\",\"exit_code\":1e400,\"started_at\":7}".into(),
        ran("backup", "2099-01-01T03:30:00Z", 69, "by a clock that was wrong"),
    ]);
    let told = world.told().json;
    let states: Vec<_> = nights(&told).into_iter().map(|n| n.1).collect();
    assert_eq!(states, ["ok", "failed", "warned", "nothing", "warned", "failed", "to-come"], "{told:#}");
    let night = &told["data"]["nights"][2];
    assert_eq!((&night["downtime_ms"], &night["store_sent_bytes"]), (&json!(1800), &json!(24)), "{night}");
    let history = &told["data"]["history"];
    assert_eq!((&history["runs"], &history["ahead"]), (&json!(9), &json!(1)), "{history}");
    assert!(history["unreadable"].as_u64().unwrap() >= 3, "{history}");
    let page = world.page();
    for says in [
        "<b>Drill</b> failed (exit code 1): <bdi>a file would be lost</bdi>",
        "lines of it could not be read.",
        "1 run of it lie in the future",
    ] {
        assert!(page.contains(says), "{says}");
    }
}

#[test]
fn before_the_first_night_it_says_so_and_what_begins() {
    let world = World::empty();
    for rm in [false, true] {
        if rm {
            std::fs::remove_dir_all(world.path("state")).unwrap();
        }
        let page = world.page();
        assert!(
            page.contains("There is no history yet") && page.contains("There is no date to restore from"),
            "{page}"
        );
        assert!(
            page.contains("<h1>Not well: <bdi>S2: there is no sealed snapshot yet</bdi>.</h1>")
                || page.contains("snapshot yet</bdi>.</h1>")
        );
    }
}

#[test]
fn each_date_has_the_commands_that_bring_it_back_from_this_machine() {
    let world = World::new(&["--nights", "20", "--machine", "one"]);
    let told = world.told().json;
    let date = told["data"]["dates"][3]["date"].as_str().unwrap().to_owned();
    let config = world.path("home.toml").display().to_string();
    let page = world.page();
    for command in [
        format!(
            "nc-backup restore home --config {config} --date {date} --path alice/files/letter.odt --in-place"
        ),
        format!(
            "nc-backup restore home --config {config} --date {date} --admin-user postgres --admin-host /run/postgresql"
        ),
        format!("nc-backup find home --config {config} --name &#39;letter*&#39;"),
    ] {
        assert!(page.contains(&format!("<code>{command}</code>")), "{command}");
    }
    // Where Nextcloud is not, a file goes into a folder, and all of it is not restored here.
    let world = World::new(&["--nights", "60", "--machine", "s2"]);
    let told = world.told().json;
    let elsewhere = told["data"]["dates_elsewhere"][0].as_str().unwrap().to_owned();
    let page = world.page();
    assert!(page.contains("--path alice/files/letter.odt --to /root/back</code>"));
    assert!(page.contains(
        "<strong>on the machine that runs Nextcloud</strong>:</p><pre><code>nc-backup restore home --date "
    ));
    assert!(
        page.contains(&format!("--store /run/nc-backup/home/view/snapshots --date {elsewhere} --path")),
        "{elsewhere}"
    );
}

#[test]
fn no_name_and_no_message_gets_out_of_the_text() {
    let evil = "</title></style><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\u{202e}txt.exe\u{1b}[31m\u{7}\u{200b}\u{feff}";
    let world = World::new(&["--nights", "40", "--machine", "one", "--hostile"]);
    world.answers("link-sync.list", |object| {
        let data = &mut object["data"];
        data["store"] = evil.into();
        data["damaged"] = json!([evil]);
        data["snapshots"][0]["odd"] = evil.into();
        data["snapshots"][1]["consistency"] = evil.into();
        data["snapshots"][2]["date"] = evil.into();
        data["snapshots"][3]["sources"] = json!([{"name": evil, "bytes": evil, "paths": -1}]);
        data["pinned"] = json!([{"date": evil, "by": evil}, 7]);
        data["last_drill"] = json!({"at": evil, "ok": false, "date": evil, "findings": evil, "error": evil});
        data["last_verify"]["sample_percent"] = evil.into();
    });
    world.answers("nc-maint.status", |object| object["data"]["root"] = evil.into());
    world.answers("offsite-push.status", |object| {
        object["data"]["dates"] = json!([evil, 5, "2026-01-01T00-00-00Z"]);
        object["data"]["container"]["state"] = evil.into();
    });
    let mut lines =
        vec![ran(evil, &at(1, 3), 1, evil), ran("backup", evil, 1, evil), ran("backup", &at(2, 3), 3, evil)];
    lines.push(ran("backup", &at(3, 3), 69, &evil.repeat(2000)));
    world.history(&lines);
    let page = world.page();
    assert!(
        page.contains(
            "&lt;/title&gt;&lt;/style&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;&lt;img"
        ),
        "{page}"
    );
    for raw in ["<script", "<img", "\u{202e}", "\u{1b}", "\u{7}", "\u{200b}", "\u{feff}"] {
        assert!(!page.contains(raw), "{raw:?}");
    }
    assert_eq!(page.matches("</title>").count(), page.matches("<title>").count());
    assert_eq!(page.matches("</style>").count(), 1);
    assert!(page.len() < 600_000, "{}", page.len());
}

#[test]
fn years_of_runs_take_seconds_and_a_history_that_is_no_file_is_not_waited_for() {
    let world = World::new(&["--nights", "4000", "--machine", "one"]);
    let lines = std::fs::read_to_string(world.path("state/history.jsonl")).unwrap().lines().count();
    assert!(lines > 9000, "{lines}");
    let begun = Instant::now();
    let page = world.page();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(page.len() < 1_000_000, "{}", page.len());
    std::fs::remove_file(world.path("state/history.jsonl")).unwrap();
    nix::unistd::mkfifo(&world.path("state/history.jsonl"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // (`status` reads it, too.)
    let begun = Instant::now();
    world.page();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}
