//! A short chaos run in every test run; `make chaos SECONDS=600` is the long one.

use std::process::Command;

#[test]
fn everything_fails_for_a_while_and_every_promise_is_kept() {
    let mut chaos = Command::new(env!("CARGO_BIN_EXE_tcc-chaos"));
    let output = chaos.args(["--seconds", "15", "--seed", "3", "--clients", "24"]).output().unwrap();

    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(last.starts_with("chaos: ok faults="), "{last}");
    assert!(last.contains(" lost=0 created=0 broken_promises=0 keys_forgotten=0 "), "{last}");
    for failover in
        ["shard's server lost, its standby promoted", "coordinator's server lost, its late standby promoted"]
    {
        let count = text.lines().find_map(|line| line.strip_suffix(failover)?.trim().parse::<u32>().ok());
        assert!(count >= Some(1), "{failover}: {text}");
    }
}
