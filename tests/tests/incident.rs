//! The incident of `coordinator/docs/incident.md`, as it stands there: a shard is stopped under load and a hold is parked,
//! somebody on call finds out, mends it, and leaves a record. Lines that begin with `#` are what happens meanwhile.
//!
//! It needs `tccctl`: `make test` builds it first. What the commands printed is left in the target folder, for the page.

use jiff::SignedDuration;
use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};
use tcc_coordinator::dev::Servers;
use tcc_proto::v1::{self, Attention, Phase};
use tcc_tests::{Client, Coordinator, connect, hold_due_in, on_shard, serve_on, servers, until};

/// A line of the page: what happens, or a command and what it prints.
#[derive(Debug)]
enum Line {
    Happens(String),
    Command(String, String),
}

fn page() -> Vec<Line> {
    let text = include_str!("../../coordinator/docs/incident.md");
    let mut lines = Vec::new();
    for block in text.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()) {
        for line in block.lines() {
            if let Some(what) = line.strip_prefix("# ") {
                lines.push(Line::Happens(what.to_owned()));
            } else if let Some(command) = line.strip_prefix("$ ") {
                lines.push(Line::Command(command.to_owned(), String::new()));
            } else if let Some(Line::Command(_, output)) = lines.last_mut() {
                output.push_str(line);
                output.push('\n');
            }
        }
    }
    lines
}

/// Ids, times, numbers and durations, which differ each time, as such; runs of blanks and of numbers as one.
fn normal(text: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_id = bare.len() == 36 && bare.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
        let is_time = bare.len() >= 20 && bare.ends_with('Z') && bare.as_bytes()[10] == b'T';
        // A number, or how long something takes: 7s, 1m30s.
        let is_number = bare.starts_with(|c: char| c.is_ascii_digit())
            && bare.chars().all(|c| c.is_ascii_digit() || "dhms".contains(c));
        match (is_id, is_time, is_number) {
            (true, ..) => word.replace(bare, "<id>"),
            (_, true, _) => word.replace(bare, "<time>"),
            (_, _, true) => word.replace(bare, "<n>"),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| {
        let mut words: Vec<String> = line.split_whitespace().map(word).collect();
        // Two units are as good as one, and what comes after them stays.
        words.dedup_by(|later, earlier| {
            let is_longer = later.starts_with("<n>") && earlier.ends_with("<n>");
            if is_longer {
                *earlier = earlier.replacen("<n>", later, 1);
            }
            is_longer
        });
        words.join(" ")
    };
    // Clocks of different servers may put two events the other way round.
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines.join("\n")
}

/// A shell that runs one command after the other, with what it says as an error among what it prints.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn start(server: &str, id: &str) -> Self {
        let programs = PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).parent().expect("a folder").to_owned();
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("bash")
            .env("PATH", path)
            .env("TCC_SERVER", server)
            .env("USER", "carol")
            .env("ID", id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash is there");
        let mut input = child.stdin.take().expect("piped");
        writeln!(input, "exec 2>&1").expect("the shell reads");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, input, output }
    }

    fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{{ {command}\n}} </dev/null\necho '-- end --'").expect("the shell reads");
        let mut printed = String::new();
        for line in self.output.by_ref() {
            let line = line.expect("text");
            if line == "-- end --" {
                break;
            }
            printed.push_str(&line);
            printed.push('\n');
        }
        printed
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Incident {
    servers: Servers,
    client: Client,
    /// What is due on the shard that is stopped, and on the other one.
    waiting: Vec<String>,
    unaffected: Vec<String>,
    poisoned: String,
    /// What is asked for while the shard is gone.
    asked: v1::CreateHoldRequest,
}

impl Incident {
    async fn happens(&mut self, what: &str) {
        match what {
            "the server of shard-1 is stopped, and twenty of its holds fall due" => {
                self.servers.shards[1].crash().expect("the server is stopped");
                let stopped = Instant::now();
                // Somebody asks for a hold, as somebody always does.
                let (mut client, asked) = (self.client.clone(), self.asked.clone());
                tokio::spawn(async move { client.create(&asked).await });
                self.until_unreachable().await;
                assert!(
                    stopped.elapsed() < Duration::from_secs(5),
                    "it takes {:?} to be told",
                    stopped.elapsed()
                );
                // Others do not notice.
                for id in self.unaffected.clone() {
                    assert_eq!(self.client.until_final(&id).await.phase(), Phase::Confirmed);
                }
                self.until_waiting().await;
            }
            "the server of shard-1 is started again, and its trigger dropped" => {
                self.servers.shards[1].launch().expect("the server starts");
                let shard = connect(&self.servers.shards[1].url()).await;
                shard.batch_execute("DROP TRIGGER poison ON branch").await.expect("the trigger is dropped");
                for id in self.waiting.clone() {
                    assert_eq!(self.client.until_final(&id).await.phase(), Phase::Confirmed);
                }
            }
            "everything is final" => {
                for id in [self.poisoned.clone(), self.asked.id.clone()] {
                    assert_eq!(self.client.until_final(&id).await.phase(), Phase::Confirmed);
                }
            }
            other => panic!("nobody knows how that happens: {other}"),
        }
    }

    async fn until_unreachable(&self) {
        until("the shard is known to be gone", || async {
            let status = self.client.clone().operator.get_status(v1::GetStatusRequest {}).await;
            status.is_ok_and(|status| !status.into_inner().shards[1].reachable)
        })
        .await;
    }

    async fn until_waiting(&self) {
        let waiting = self.waiting.len() as i64;
        until("what is due waits", || async {
            let status = self.client.clone().operator.get_status(v1::GetStatusRequest {}).await;
            status.is_ok_and(|status| status.into_inner().shards[1].waiting >= waiting)
        })
        .await;
    }
}

/// A hold whose payee's shard rejects it is parked; further ones are due when the incident begins.
async fn before(servers: Servers, client: Client) -> Incident {
    let mut client = client;
    let (alice, carol, dave) = (on_shard("alice", 0), on_shard("carol", 0), on_shard("dave", 0));
    let bob = on_shard("bob", 1);
    for (account, funds) in [(&alice, 10_000), (&carol, 10_000), (&dave, 0), (&bob, 0)] {
        client.account(account, funds).await;
    }
    let shard = connect(&servers.shards[1].url()).await;
    let sql = "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF NEW.amount = 13 THEN RAISE EXCEPTION 'no 13 here'; END IF; RETURN NEW; END $$;
               CREATE TRIGGER poison BEFORE UPDATE ON branch FOR EACH ROW EXECUTE FUNCTION poison()";
    shard.batch_execute(sql).await.expect("the trigger is made");
    let poisoned = hold_due_in(&alice, &bob, 13, SignedDuration::from_secs(1));
    client.create(&poisoned).await.expect("it is held");
    let is = |wanted: Attention| {
        let (mut client, id) = (client.clone(), poisoned.id.clone());
        async move { client.hold(&id).await.attention() == wanted }
    };
    until("it has failed", || is(Attention::Retrying)).await;
    // Forty-nine failures later.
    let sql = connect(&servers.coordinator.url()).await;
    sql.execute("UPDATE attention SET attempts = 49", &[]).await.expect("the count is set");
    until("it is parked", || is(Attention::Parked)).await;

    let due = SignedDuration::from_secs(8);
    let (mut waiting, mut unaffected) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        for (payer, payee, ids) in [(&alice, &bob, &mut waiting), (&carol, &dave, &mut unaffected)] {
            let request = hold_due_in(payer, payee, 10, due);
            client.create(&request).await.expect("it is held");
            ids.push(request.id);
        }
    }
    let asked = hold_due_in(&alice, &bob, 10, SignedDuration::from_secs(20));
    Incident { servers, client, waiting, unaffected, poisoned: poisoned.id, asked }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_incident_in_the_manual_goes_as_it_stands() {
    let servers = servers().await;
    let Coordinator { client, running } = serve_on(&servers).await;
    let mut incident = before(servers, client).await;
    let mut shell = Shell::start(&format!("http://{}", running.address), &incident.poisoned);
    let (mut transcript, mut differing) = (String::new(), Vec::new());

    for line in page() {
        match line {
            Line::Happens(what) => {
                transcript.push_str(&format!("# {what}\n"));
                incident.happens(&what).await;
            }
            Line::Command(command, expected) => {
                let printed = tokio::task::block_in_place(|| shell.run(&command));
                transcript.push_str(&format!("$ {command}\n{printed}"));
                if normal(&printed) != normal(&expected) {
                    differing.push(format!(
                        "{command}\n{}\ninstead of\n{}",
                        normal(&printed),
                        normal(&expected)
                    ));
                }
            }
        }
    }

    let _ = std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("incident.txt"), &transcript);
    assert!(differing.is_empty(), "{}", differing.join("\n\n"));
    assert!(transcript.contains("audit: ok"), "{transcript}");
    incident.client.audit_is_clean().await;
}
