//! What `tccctl` says and how it exits when nobody listens, or when the command line is wrong.

use serde_json::Value;
use std::{
    net::TcpListener,
    process::{Command, Output},
};

const ID: &str = "019b2c3d-4e5f-7a6b-8c9d-0e1f2a3b4c5d";

/// An address where nobody listens: the port was free a moment ago.
fn deserted() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn tccctl(server: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tccctl")).args(args).env("TCC_SERVER", server).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_exits_with_4_and_says_where_nobody_listens() {
    let server = deserted();
    for args in [
        &["status"][..],
        &["accounts", "create", "alice", "GOLD"],
        &["accounts", "get", "alice"],
        &["accounts", "postings", "alice"],
        &["holds", "get", ID],
        &["holds", "get", ID, "--watch"],
        &["holds", "cancel", ID],
        &["audit", "run"],
    ] {
        let output = tccctl(&server, args);

        assert_eq!(output.status.code(), Some(4), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let text = stderr(&output);
        let (what, advice) = text.trim_end().split_once('\n').expect("two lines");
        assert!(what.starts_with(&format!("tccctl: cannot connect to {server}: ")), "{what}");
        assert!(what.ends_with(" (UNAVAILABLE)"), "{what}");
        assert_eq!(
            advice,
            format!("tccctl: is tccd running at {server}? Otherwise set --server or TCC_SERVER")
        );
    }
}

#[test]
fn a_participant_that_does_not_answer_exits_with_4() {
    let address = deserted();

    let output = tccctl("http://127.0.0.1:1", &["participants", "verify", &address, "--payload", "x"]);

    assert_eq!(output.status.code(), Some(4));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains(&format!("the participant at {address} does not answer")));
}

#[test]
fn an_issue_tells_its_id_whatever_happens() {
    let output = tccctl(&deserted(), &["accounts", "issue", "alice", "5", "GOLD"]);

    assert_eq!(output.status.code(), Some(4));
    let told =
        stderr(&output).lines().find_map(|line| Some(line.split_once("id of this issue is ")?.1.to_owned()));
    assert_eq!(told.expect("an id is made and told").len(), ID.len());
}

#[test]
fn errors_for_scripts_are_one_json_object_on_stderr() {
    let server = deserted();
    let output = tccctl(&server, &["accounts", "issue", "alice", "5", "GOLD", "--id", ID, "-o", "json"]);

    let said: Value = serde_json::from_slice(&output.stderr).unwrap();

    assert_eq!(output.status.code(), Some(4));
    assert_eq!(said["id"], ID);
    assert_eq!(said["error"]["code"], "UNAVAILABLE");
    assert_eq!(said["error"]["reason"], Value::Null);
    assert!(said["error"]["message"].as_str().unwrap().contains(&server));
}

#[test]
fn a_wrong_command_line_exits_with_2_before_anything_is_sent() {
    for args in [
        &[][..],
        &["acounts"],
        &["accounts", "issue", "alice", "-5", "GOLD"],
        &["accounts", "postings", "alice", "--limit", "0"],
        &["holds", "get", "7"],
        &["status", "--timeout", "0"],
        &["status", "--server", "127.0.0.1:7070"],
    ] {
        let output = tccctl(&deserted(), args);

        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}
