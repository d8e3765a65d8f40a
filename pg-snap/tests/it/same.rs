//! The database that is held is the one that Nextcloud writes to.

use testkit::postgres::{Cluster, identifier};

use crate::hold::{lab, nextcloud, nothing_is_left};
use crate::lab::{Lab, PASSWORD};

#[test]
fn a_standby_is_refused_before_the_switch() {
    let mut cluster = Cluster::start();
    cluster.create_role("cloud", PASSWORD);
    cluster.create_database("cloud", "cloud");
    cluster.make_standby();
    let lab = Lab::empty();
    let host = format!("{}:{}", Cluster::HOST, cluster.port);
    let ran = lab.run("drain", ["--look", "--host", &host, "--user", "cloud", "--name", "cloud"]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("standby"), "{}", ran.json);
    nothing_is_left(&lab);
}

#[test]
fn a_copy_of_the_database_is_not_taken_for_it() {
    let lab = lab("");
    let copy = format!("{} copy", lab.database);
    lab.cluster.create_database(&copy, &lab.role);
    // The same server by another address is the same database.
    let host = format!("localhost:{}", lab.cluster.port);
    nextcloud(&lab, &host, &lab.database);
    let ran = lab.run("drain", ["--look"]).expect(0);
    assert_eq!(ran.json["warnings"], serde_json::json!([]));
    lab.run("release", []).expect(0);
    // Another one on it is not, nor is one of the same name on another server.
    nextcloud(&lab, &host, &copy);
    let ran = lab.run("drain", ["--look"]).expect(78);
    assert!(ran.json["error"]["message"].as_str().unwrap().contains("not the one"), "{}", ran.json);
    nothing_is_left(&lab);
    let other = Cluster::start();
    other.create_role(&lab.role, PASSWORD);
    other.create_database(&lab.database, &lab.role);
    nextcloud(&lab, &format!("{}:{}", Cluster::HOST, other.port), &lab.database);
    lab.run("drain", ["--look"]).expect(78);
    nothing_is_left(&lab);
    // What cannot be reached from here cannot be compared, and that is said.
    nextcloud(&lab, "no-such-host.invalid", &lab.database);
    let ran = lab.run("drain", ["--look"]).expect(0);
    assert_eq!(ran.json["warnings"][0]["kind"], "database-not-compared");
    lab.run("release", []).expect(0);
    lab.cluster.psql("postgres", &format!("DROP DATABASE {};", identifier(&copy)));
}
