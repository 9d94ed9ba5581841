//! The conversations in README.md and in the manual, run as they stand: each command through a shell, its output compared but for
//! ids and times.
//!
//! They need `tccd`, `tccctl` and `grpcurl`, which `make test` builds and installs first, and `curl` and `python3`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A command of the conversation, and what it prints.
#[derive(Debug, Default, PartialEq, Eq)]
struct Exchange {
    command: String,
    output: String,
}

/// The exchanges of all blocks marked `console`. A command goes on over lines that are indented, until one is complete.
fn exchanges(text: &str) -> Vec<Exchange> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    let blocks = text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    for line in blocks.flat_map(str::lines) {
        if let Some(command) = line.strip_prefix("$ ") {
            exchanges.push(Exchange { command: command.to_owned(), output: String::new() });
            continue;
        }
        let last = exchanges.last_mut().expect("a block starts with a command");
        let open_quote = last.command.matches('\'').count() % 2 == 1;
        if last.output.is_empty() && (open_quote || last.command.ends_with(['\\', '|'])) {
            last.command.push('\n');
            last.command.push_str(line);
        } else {
            last.output.push_str(line);
            last.output.push('\n');
        }
    }
    exchanges
}

/// Ids and times, which differ each time, as `<id>` and `<time>`; runs of blanks as one.
fn normal(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_id = bare.len() == 36 && bare.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let is_time = bare.len() >= 20 && bare.ends_with('Z') && bare.as_bytes()[10] == b'T';
        let kind = if is_id {
            "<id>"
        } else if is_time {
            "<time>"
        } else {
            return word.to_owned();
        };
        word.replace(bare, kind)
    };
    let parts = |text: &str| text.split_inclusive('/').map(word).collect::<String>();
    let line = |line: &str| line.split_whitespace().map(parts).collect::<Vec<_>>().join(" ");
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

fn programs() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).parent().expect("a folder").to_owned()
}

fn start_tccd_dev() -> Daemon {
    let mut child = Command::new(programs().join("tccd"))
        .arg("dev")
        .stdout(Stdio::piped())
        .spawn()
        .expect("build tccd first: cargo build --workspace");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let daemon = Daemon(child);
    let first = lines.next().expect("tccd says something").expect("text");
    assert_eq!(first, "tccd: ready on http://127.0.0.1:7070");
    // Read on, so that it never waits for its reader.
    std::thread::spawn(move || lines.for_each(drop));
    daemon
}

/// Both need the same port, so they are one test.
#[test]
fn the_conversations_in_the_manual_go_as_they_stand() {
    goes_as_it_stands(include_str!("../../README.md"));
    goes_as_it_stands(include_str!("../../coordinator/docs/http.md"));
    goes_as_it_stands(include_str!("../../coordinator/docs/transactions.md"));
}

fn goes_as_it_stands(text: &str) {
    let _daemon = start_tccd_dev();
    let conversation = exchanges(text);
    assert!(conversation.len() >= 10, "{conversation:#?}");
    let tools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path =
        format!("{}:{}:{}", programs().display(), tools.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("bash")
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut input = shell.stdin.take().expect("piped");
    let mut output = BufReader::new(shell.stdout.take().expect("piped")).lines();

    for exchange in &conversation {
        writeln!(input, "{}\necho '-- end --'", exchange.command).expect("the shell reads");
        let mut printed = String::new();
        for line in output.by_ref() {
            let line = line.expect("text");
            if line == "-- end --" {
                break;
            }
            printed.push_str(&line);
            printed.push('\n');
        }
        assert_eq!(normal(&printed), normal(&exchange.output), "{}", exchange.command);
    }
    drop(input);
    assert!(shell.wait().expect("the shell ends").success());
}

#[test]
fn a_command_goes_on_until_its_quotes_are_closed() {
    let text = "x\n```console\n$ a 'b\n  c' \\\n  d\nout\n$ e\n```\n```sh\nignored\n```\n";

    let found = exchanges(text);

    assert_eq!(found[0], Exchange { command: "a 'b\n  c' \\\n  d".into(), output: "out\n".into() });
    assert_eq!(found[1], Exchange { command: "e".into(), output: String::new() });
    assert_eq!(normal("x  01a1fe02-becf-7788-9ccf-327f4d54d825, 2026-11-21T12:09:15Z"), "x <id>, <time>");
    assert_eq!(normal("at: /holds/01a1fe02-becf-7788-9ccf-327f4d54d825\r"), "at: /holds/<id>");
}
