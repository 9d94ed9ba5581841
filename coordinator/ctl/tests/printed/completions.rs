//! Completions load in each shell, and offer what there is.

use super::prepared::{self, ID, Mood, PLAN};
use std::{
    path::Path,
    process::{Command, Stdio},
};

const TCCCTL: &str = env!("CARGO_BIN_EXE_tccctl");

/// A shell with `tccctl` on its path. Nothing, if there is no such shell.
fn shell(shell: &str, args: &[&str], server: &str) -> Option<String> {
    let folder = Path::new(TCCCTL).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(shell);
    command.args(args).env("PATH", path).env("TCC_SERVER", server).env_remove("TCC_CONTEXT");
    let output = command.stdin(Stdio::null()).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: {shell} is not there");
        return None;
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shell}: {errors}");
    Some(String::from_utf8(output.stdout).unwrap() + &errors)
}

/// What bash offers after these words.
fn in_bash(words: &str, server: &str) -> String {
    let count = words.split(' ').count();
    let script = format!(
        "source <(tccctl completions bash); COMP_WORDS=({words} ''); COMP_CWORD={count}; COMP_TYPE=9
         complete -p tccctl >/dev/null && _clap_complete_tccctl tccctl '' '' && echo \"${{COMPREPLY[@]}}\""
    );
    shell("bash", &["--norc", "-c", &script], server).expect("bash is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_offers_commands_and_what_the_server_has() {
    let server = prepared::start(Mood::Willing).await;

    let commands = in_bash("tccctl holds", &server);
    assert!(["describe", "force-cancel", "import"].iter().all(|verb| commands.contains(verb)), "{commands}");
    for (words, offered) in [
        ("tccctl shards drain", "shard-1"),
        ("tccctl holds describe", ID),
        ("tccctl parked requeue", ID),
        ("tccctl plan execute", PLAN),
        ("tccctl instances drain", prepared::INSTANCE),
        ("tccctl -o", "jsonl"),
    ] {
        let found = in_bash(words, &server);
        assert!(found.contains(offered), "{words}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_offered_and_nothing_said_when_no_server_answers() {
    let found = in_bash("tccctl shards drain", "http://127.0.0.1:1");

    assert!(!found.contains("shard-") && !found.contains("cannot connect"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_load_in_zsh_and_fish() {
    let server = prepared::start(Mood::Willing).await;

    let zsh = "autoload -U compinit && compinit -u -D && source <(tccctl completions zsh) && print -- $_comps[tccctl]";
    if let Some(found) = shell("zsh", &["-fc", zsh], &server) {
        assert!(found.contains("_clap_dynamic_completer_tccctl"), "{found}");
    }
    let fish = "tccctl completions fish | source; complete -C 'tccctl shards drain '";
    if let Some(found) = shell("fish", &["--no-config", "-c", fish], &server) {
        assert!(found.contains("shard-1"), "{found}");
    }
}
