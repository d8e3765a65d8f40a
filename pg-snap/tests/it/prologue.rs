//! What lies in a database or is set for it takes no part in what we ask of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::postgres::{Cluster, identifier};

use crate::lab::{Lab, wait_for};

/// Functions and operators that suit our questions better than the server's own, found first, and limits that end
/// everything; each call ends in an error.
fn trap(lab: &Lab) {
    let name = identifier(&lab.database);
    lab.sql(
        "CREATE FUNCTION public.sprung(int, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''sprung''; END';
         CREATE FUNCTION public.sprung(text, text) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''sprung''; END';
         CREATE FUNCTION public.sprung(name, name) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''sprung''; END';
         CREATE FUNCTION public.sprung(oid, oid) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RAISE ''sprung''; END';
         CREATE OPERATOR public.|| (FUNCTION = public.sprung, LEFTARG = int, RIGHTARG = text);
         CREATE OPERATOR public.|| (FUNCTION = public.sprung, LEFTARG = text, RIGHTARG = text);
         CREATE OPERATOR public.= (FUNCTION = public.sprung, LEFTARG = name, RIGHTARG = name);
         CREATE OPERATOR public.= (FUNCTION = public.sprung, LEFTARG = oid, RIGHTARG = oid);
         CREATE FUNCTION public.pg_export_snapshot() RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE ''sprung''; END';",
    );
    lab.cluster.psql(
        "postgres",
        &format!(
            "ALTER DATABASE {name} SET search_path = public, pg_catalog; ALTER DATABASE {name} SET statement_timeout = 1;
             ALTER DATABASE {name} SET lock_timeout = 1;"
        ),
    );
}

#[test]
fn nothing_that_a_database_brings_with_it_runs_when_it_is_asked() {
    let lab = Lab::filled();
    lab.profile(&format!("{}:{}", Cluster::HOST, lab.cluster.port), "wait = \"2s\"");
    trap(&lab);
    wait_for("the database is quiet", || lab.sessions("true") == 0);
    lab.run("drain", ["--look"]).expect(0);
    lab.run("status", []).expect(0);
    lab.run("release", []).expect(0);
    // Each session, pg_dump's too, is free of limits before its first statement.
    let (port, without) = between(lab.cluster.port, false);
    lab.profile(&format!("{}:{port}", Cluster::HOST), "wait = \"2s\"");
    lab.run("dump", []).expect(0);
    assert_eq!(without.load(Ordering::SeqCst), 0);
}

/// Passes everything on, and counts who comes without `options`. As a pooler it refuses who comes with them.
fn between(port: u16, pooler: bool) -> (u16, Arc<AtomicUsize>) {
    let without = Arc::new(AtomicUsize::new(0));
    let count = without.clone();
    let listener = TcpListener::bind((Cluster::HOST, 0)).unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, count) = (client.unwrap(), count.clone());
            std::thread::spawn(move || serve(client, port, pooler, &count));
        }
    });
    (own, without)
}

fn serve(mut client: TcpStream, port: u16, pooler: bool, without: &AtomicUsize) -> Option<()> {
    let mut first = packet(&mut client)?;
    // A wish for encryption, of one kind or the other.
    while first.len() == 8 {
        client.write_all(b"N").ok()?;
        first = packet(&mut client)?;
    }
    let options = first.windows(8).any(|w| w == b"options\0");
    if !options {
        without.fetch_add(1, Ordering::SeqCst);
    } else if pooler {
        let text = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        client.write_all(&[b"E", &(text.len() as u32 + 4).to_be_bytes()[..], text].concat()).ok()?;
        return None;
    }
    let mut server = TcpStream::connect((Cluster::HOST, port)).ok()?;
    server.write_all(&first).ok()?;
    let (mut up, mut down) = (client.try_clone().ok()?, server.try_clone().ok()?);
    std::thread::spawn(move || {
        std::io::copy(&mut up, &mut server).ok();
        server.shutdown(Shutdown::Write).ok();
    });
    std::io::copy(&mut down, &mut client).ok();
    client.shutdown(Shutdown::Both).ok()
}

/// A packet without a type, as the first ones are: its length, and the rest.
fn packet(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 4];
    from.read_exact(&mut bytes).ok()?;
    let length = u32::from_be_bytes(bytes[..].try_into().ok()?) as usize;
    bytes.resize(length.clamp(4, 10_000), 0);
    from.read_exact(&mut bytes[4..]).ok()?;
    Some(bytes)
}

#[test]
fn a_pooler_that_refuses_options_is_known_as_one_and_gets_the_prologue_as_statements() {
    let lab = Lab::filled();
    trap(&lab);
    // One that takes no options cannot beat this one.
    lab.cluster
        .psql("postgres", &format!("ALTER DATABASE {} RESET statement_timeout;", identifier(&lab.database)));
    lab.profile(&format!("{}:{}", Cluster::HOST, between(lab.cluster.port, true).0), "wait = \"2s\"");
    wait_for("the database is quiet", || lab.sessions("true") == 0);
    let looked = lab.run("drain", ["--look"]).expect(0);
    assert_eq!(looked.json["data"]["settle_fallback"], true, "{}", looked.json);
    lab.run("release", []).expect(0);
    lab.run("dump", []).expect(0);
}
