//! The programs as people run them: `tccd`'s messages, and the demo, which kills it.
//!
//! They need `tccd` beside the test's own programs: `make test` builds it first.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

fn tccd() -> Command {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).with_file_name("tccd");
    assert!(beside.exists(), "build tccd first: cargo build --workspace");
    Command::new(beside)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder with programs that say they are a PostgreSQL of some version.
fn fake_postgres(version: &str) -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    for program in ["postgres", "initdb"] {
        let path = folder.path().join(program);
        std::fs::write(&path, format!("#!/bin/sh\necho \"{program} (PostgreSQL) {version}\"\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

#[test]
fn postgres_missing_or_too_old_is_one_clear_line_that_says_what_to_do() {
    let missing = tccd().arg("dev").env("PG_BIN", "/nonexistent").output().unwrap();
    let old = fake_postgres("14.9");
    let too_old = tccd().arg("dev").env("PG_BIN", old.path()).output().unwrap();

    assert!(!missing.status.success());
    assert!(stderr(&missing).contains("apt-get install postgresql"), "{}", stderr(&missing));
    assert!(!too_old.status.success());
    assert!(stderr(&too_old).contains("PostgreSQL 14.9 in"), "{}", stderr(&too_old));
    assert!(stderr(&too_old).contains("version 15 or newer"), "{}", stderr(&too_old));
    assert_eq!((stderr(&missing).lines().count(), stderr(&too_old).lines().count()), (1, 1));
}

#[test]
fn a_wrong_configuration_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tccd.toml");
    std::fs::write(&path, "listen = \"127.0.0.1:0\"\nshards = 2\n").unwrap();

    let wrong = tccd().args(["serve", "--config"]).arg(&path).output().unwrap();
    let absent = tccd().args(["serve", "--config"]).arg(Path::new("/nonexistent.toml")).output().unwrap();

    assert!(
        stderr(&wrong).contains("line 2: unknown key `shards`; did you mean `shard`?"),
        "{}",
        stderr(&wrong)
    );
    assert!(
        stderr(&absent).contains("cannot read the configuration /nonexistent.toml"),
        "{}",
        stderr(&absent)
    );
}

#[test]
fn the_demo_holds_with_a_kill_in_the_middle() {
    let demo = Command::new(env!("CARGO_BIN_EXE_tcc-demo")).args(["--holds", "600"]).output().unwrap();

    let stdout = String::from_utf8_lossy(&demo.stdout).into_owned();
    let last = stdout.lines().last().unwrap_or_default().to_owned();
    assert!(demo.status.success(), "{stdout}\n{}", stderr(&demo));
    assert!(last.starts_with("demo: ok holds=600 "), "{last}");
    assert!(last.ends_with("lost=0 created=0") && last.contains("restarts=1"), "{last}");
    assert!(!last.contains("in_flight_at_kill=0"), "{last}");
}

#[test]
fn the_demo_pays_a_file_of_orders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("orders.csv");
    let mut orders = String::from("order,payer,payee,amount,category\n");
    for n in 0..200 {
        orders.push_str(&format!("{n},payer-{},payee-{},{},rent\n", n % 60, n % 7, 100 + n));
    }
    std::fs::write(&path, orders).unwrap();

    let demo = Command::new(env!("CARGO_BIN_EXE_tcc-demo")).arg("--input").arg(&path).output().unwrap();

    let stdout = String::from_utf8_lossy(&demo.stdout).into_owned();
    let last = stdout.lines().last().unwrap_or_default().to_owned();
    assert!(demo.status.success(), "{stdout}\n{}", stderr(&demo));
    assert!(last.starts_with("demo: ok holds=200 "), "{last}");
}
