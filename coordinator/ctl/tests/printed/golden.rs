//! What every command prints: without a terminal, and at terminals of 80 and of 200 columns; when the server answers, when it says
//! no, and when there is none.
//!
//! The expected is in the folder `golden`. `TCC_WRITE_GOLDEN=1` writes it anew, for somebody to read the difference.

use super::prepared::{self, ID, INSTANCE, Mood, PLAN};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const TCCCTL: &str = env!("CARGO_BIN_EXE_tccctl");
const STYLES: [&str; 6] = ["table", "wide", "json", "jsonl", "yaml", "name"];
/// As `holds import` reads it; see [`prepared`] for what becomes of the lines.
const IMPORT: &str = "payer,payee,amount,currency,due_at,on_maturity
alice,bob,5,GOLD,2031-01-01T00:00:00Z,CONFIRM
alice,bob,6,GOLD,2031-01-01T00:00:00Z,CONFIRM
alice,bob,7,GOLD,2031-01-01T00:00:00Z,CONFIRM
alice,bob,1.5,GOLD,2031-01-01T00:00:00Z,CONFIRM
";

/// Every command, as somebody would type it. What draws progress at a terminal is marked: that is not the same each time.
fn commands() -> Vec<(String, bool)> {
    let still = [
        "status",
        "status --exit-code",
        "stuck",
        "stuck --exit-code",
        "parked list",
        "parked describe ID",
        "parked requeue ID --reason mended",
        "parked requeue --attention parked --reason mended",
        "parked acknowledge ID --reason settled",
        "plan show PLAN",
        "plan show PLAN --refused",
        "plan list",
        "plan execute PLAN --reason mended",
        "actions list",
        "actions export",
        "instances list",
        "instances drain INSTANCE --reason upgrade",
        "accounts create alice GOLD",
        "accounts get alice",
        "accounts issue alice 5 GOLD --id ID",
        "accounts burn alice 5 GOLD --id ID",
        "accounts block alice",
        "accounts unblock alice",
        "accounts close alice",
        "accounts balance alice",
        "accounts holdings alice",
        "accounts postings alice",
        "holds get ID",
        "holds get ID --watch",
        "holds describe ID",
        "holds list --payer alice",
        "holds watch ID",
        "holds retry ID --reason impatient",
        "holds pause ID --reason looking",
        "holds resume ID --reason looked",
        "holds force-cancel ID",
        "holds confirm ID",
        "holds cancel ID",
        "audit show",
        "audit watch",
        "shards list",
        "shards describe shard-1",
        "shards drain shard-1 --reason migration",
        "shards resume shard-1 --reason migrated",
        "explain INSUFFICIENT_FUNDS",
        "context list",
        "context add test",
        "context use test",
        "context remove test",
        "config check missing.toml",
        "sql SELECT",
    ];
    let moving = [
        "plan execute PLAN --reason mended --yes",
        "audit run",
        "audit replay --shard shard-0",
        "holds import holds.csv --name payroll",
    ];
    let still = still.iter().map(|command| ((*command).to_owned(), false));
    still.chain(moving.iter().map(|command| ((*command).to_owned(), true))).collect()
}

/// What is wrong with a command line is told before any server is asked.
const WRONG: &[&str] = &[
    "",
    "hold get ID",
    "holds get 7",
    "holds retry ID",
    "holds force-cancel",
    "shards drain shard-0",
    "instances drain INSTANCE",
    "plan execute PLAN",
    "accounts issue alice -5 GOLD",
    "status --context nowhere",
    "status --watch --exit-code",
    "holds import missing.csv",
    "context use nowhere",
    "holds get 7 -o json",
    "holds get 7 -o yaml",
    "shards drain shard-0 -o json",
];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("holds.csv"), IMPORT).unwrap();
        let contexts = "current = \"prod\"\n[context.prod]\nserver = \"https://tcc.example\"\n[context.test]\nserver = \"http://127.0.0.1:1\"\n";
        fs::write(folder.path().join("contexts.toml"), contexts).unwrap();
        Self { folder }
    }

    fn command(&self, program: &str, server: &str) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TCC_") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.folder.path()).env("USER", "carol").env("TERM", "xterm");
        command.env("TCC_SERVER", server).env("TCC_CONTEXTS", self.folder.path().join("contexts.toml"));
        command.stdin(Stdio::null());
        command
    }

    fn plain(&self, server: &str, args: &[String]) -> Output {
        self.command(TCCCTL, server).args(args).output().unwrap()
    }

    /// At a terminal of so many columns.
    fn at_terminal(&self, server: &str, args: &[String], columns: u16) -> Output {
        let words: Vec<String> = args.iter().map(|word| format!("'{word}'")).collect();
        let line = format!("stty cols {columns} rows 50; exec {TCCCTL} {}", words.join(" "));
        self.command("script", server).args(["-qefc", &line, "/dev/null"]).output().unwrap()
    }
}

fn words(command: &str) -> Vec<String> {
    let word = |word: &str| match word {
        "ID" => ID.to_owned(),
        "PLAN" => PLAN.to_owned(),
        "INSTANCE" => INSTANCE.to_owned(),
        other => other.to_owned(),
    };
    command.split_whitespace().map(word).collect()
}

/// Addresses and durations differ each time; what moves a cursor is shown as such.
fn normal(text: &str, server: &str) -> String {
    let mut normal = String::new();
    for line in text.replace(server, "http://SERVER").replace('\r', "").replace('\u{1b}', "\\e").lines() {
        let line = match line.split_once("took") {
            Some(("", _)) => "took           <time>".to_owned(),
            Some((before, after)) if after.starts_with("\":\"") || after.starts_with(": \"") => {
                let rest = after.splitn(4, '"').nth(3).unwrap_or_default();
                format!("{before}took <time>{rest}")
            }
            _ => line.to_owned(),
        };
        normal.push_str(line.trim_end());
        normal.push('\n');
    }
    normal
}

fn told(command: &str, output: &Output, server: &str) -> String {
    let text = |bytes: &[u8]| normal(&String::from_utf8_lossy(bytes), server);
    let errors: String = text(&output.stderr).lines().map(|line| format!("! {line}\n")).collect();
    let exit = output.status.code().map_or("killed".to_owned(), |code| code.to_string());
    format!("$ tccctl {command}\n{}{errors}= {exit}\n\n", text(&output.stdout))
}

fn compare(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("TCC_WRITE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differing = expected.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    if expected != found {
        let line = differing.unwrap_or(expected.lines().count().min(found.lines().count()));
        let around =
            |text: &str| text.lines().skip(line.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
        panic!("{name}, line {}: expected\n{}\nand found\n{}", line + 1, around(&expected), around(found));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_what_it_always_prints_without_a_terminal() {
    let (willing, refusing) = (prepared::start(Mood::Willing).await, prepared::start(Mood::Refusing).await);
    let gone = "http://127.0.0.1:1";
    let mut all = String::new();
    for (command, _) in commands() {
        let place = Place::new();
        for style in STYLES {
            let command = format!("{command} -o {style}");
            // What is left from the style before is not what this is about.
            let _ = fs::remove_file(place.folder.path().join("holds.csv.rejects"));
            all.push_str(&told(&command, &place.plain(&willing, &words(&command)), &willing));
        }
    }
    compare("answers.txt", &all);
    let mut all = String::new();
    for (command, _) in commands() {
        let place = Place::new();
        for style in ["table", "json"] {
            let command = format!("{command} -o {style}");
            all.push_str(&told(&command, &place.plain(&refusing, &words(&command)), &refusing));
        }
    }
    for style in STYLES {
        let command = format!("holds describe ID -o {style}");
        all.push_str(&told(&command, &Place::new().plain(gone, &words(&command)), gone));
    }
    compare("refusals.txt", &all);
    let place = Place::new();
    let wrong = WRONG.iter().map(|command| told(command, &place.plain(gone, &words(command)), gone));
    compare("wrong.txt", &wrong.collect::<String>());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_what_it_always_prints_at_a_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: there is no `script`, which makes terminals (Debian: bsdutils)");
    }
    let (willing, refusing) = (prepared::start(Mood::Willing).await, prepared::start(Mood::Refusing).await);
    for columns in [80, 200] {
        let mut all = String::new();
        for (command, _) in commands().into_iter().filter(|(_, moves)| !moves) {
            let place = Place::new();
            for style in ["table", "json"] {
                let command = format!("{command} -o {style}");
                let output = place.at_terminal(&willing, &words(&command), columns);
                all.push_str(&told(&command, &output, &willing));
            }
        }
        for command in ["stuck", "holds get ID", "status"] {
            let output = Place::new().at_terminal(&refusing, &words(command), columns);
            all.push_str(&told(command, &output, &refusing));
        }
        compare(&format!("terminal-{columns}.txt"), &all);
    }
}

/// The commands of a help's list.
fn listed(args: &[&str]) -> Vec<String> {
    let help = Command::new(TCCCTL).args(args).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let list = list.split("\n\n").next().unwrap_or_default();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_manual_has_every_command() {
    let manual = include_str!("../../../docs/operations.md");

    for noun in listed(&[]) {
        let verbs = listed(&[&noun]);
        if verbs.is_empty() {
            assert!(manual.contains(&format!("`{noun}`")), "{noun}");
        }
        for verb in verbs {
            assert!(manual.contains(&format!("`{noun} {verb}`")), "{noun} {verb}");
        }
    }
}

#[test]
fn no_command_is_left_out() {
    let tried: BTreeSet<String> = commands()
        .iter()
        .map(|(command, _)| command.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let is_tried = |command: &str| {
        tried.iter().any(|tried| tried == command || tried.starts_with(&format!("{command} ")))
    };

    for noun in listed(&[]) {
        // Their output is long, differs each time, or is about participants, which have tests of their own.
        if ["completions", "id", "participants", "payout"].contains(&noun.as_str()) {
            continue;
        }
        let verbs = listed(&[&noun]);
        assert!(is_tried(&noun), "{noun}");
        for verb in verbs {
            assert!(is_tried(&format!("{noun} {verb}")), "{noun} {verb}");
        }
    }
    assert!(listed(&[]).len() > 10 && Path::new(TCCCTL).exists());
}
