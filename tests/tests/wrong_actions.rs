//! More than a hundred things that an operator may do wrong on a bad night: each is refused with its reason, and changes nothing.
//!
//! It needs `tccctl`: `make test` builds it first.

use jiff::SignedDuration;
use serde_json::Value;
use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
};
use tcc_proto::v1::{self, Attention, CreateHoldRequest, OperatorActionKind as Kind};
use tcc_tests::{
    Client, Coordinator, System, alice_and_bob, connect, hold, hold_due_in, new_id,
    secure::{self, Known},
    until,
};

/// Who does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Operator,
    Viewer,
    Application,
    LedgerAdmin,
    /// Without a credential, and with one that nobody has.
    Nobody,
    Stranger,
    /// Straight at the databases.
    Direct,
}

/// What was done wrong: by whom, how, and how `tccctl` ends, with which reason.
struct Wrong {
    who: Who,
    command: String,
    exit: i32,
    reason: &'static str,
}

fn wrong(who: Who, command: impl Into<String>, exit: i32, reason: &'static str) -> Wrong {
    Wrong { who, command: command.into(), exit, reason }
}

/// Holds as they may stand when somebody comes.
struct Holds {
    held: String,
    paused: String,
    paid: String,
    released: String,
    refused: String,
    /// The payee's shard rejects it: nothing is decided.
    parked: String,
    /// The payee was paid, and the payer's shard rejects the rest.
    half_paid: String,
    acknowledged: String,
    /// Of no hold.
    unknown: String,
}

/// Plans as they may stand.
struct Plans {
    /// What it says is not so any more.
    stale: String,
    expired: String,
    forced: String,
    /// Everything in it would create units.
    unsafe_force: String,
    pause: String,
}

struct Night {
    system: System,
    folder: tempfile::TempDir,
    server: String,
    tokens: Vec<(Who, String)>,
    holds: Holds,
    plans: Plans,
}

async fn act(client: &mut Client, id: &str, action: Kind) {
    let (reason, ticket) = ("a test".to_owned(), String::new());
    let request = v1::ActRequest { id: id.into(), action: action.into(), reason, ticket };
    client.recovery.act(request).await.expect("it is done");
}

async fn plan(client: &mut Client, action: Kind, id: &str) -> String {
    let request = v1::CreatePlanRequest { action: action.into(), ids: vec![id.into()], ..Default::default() };
    client.recovery.create_plan(request).await.expect("a plan").into_inner().plan.expect("a plan").id
}

/// Lets a shard reject every change of a fence of these amounts.
async fn poison(system: &System, shard: usize, amounts: &str) {
    let sql = format!(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF NEW.amount IN ({amounts}) THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$;
         CREATE TRIGGER poison BEFORE UPDATE ON branch FOR EACH ROW EXECUTE FUNCTION poison()"
    );
    system.shard_sql(shard).await.batch_execute(&sql).await.expect("a trigger");
}

async fn until_attention(client: &Client, id: &str, wanted: Attention) {
    until("its attention is as wanted", || {
        let (mut client, id) = (client.clone(), id.to_owned());
        async move { client.hold(&id).await.attention() == wanted }
    })
    .await;
}

impl Night {
    async fn begins() -> (Self, secure::Caller, tcc_coordinator::serve::Running, Coordinator) {
        let system = System::start().await;
        let Coordinator { mut client, running } = system.coordinator().await;
        let (alice, bob) = alice_and_bob(&mut client).await;
        poison(&system, 0, "17").await;
        poison(&system, 1, "13, 19").await;
        let soon = SignedDuration::from_secs(1);
        let requests: Vec<CreateHoldRequest> = [10, 10, 10, 10, 1_000_000, 10, 10, 10]
            .into_iter()
            .map(|amount| hold(&alice, &bob, amount))
            .chain([13, 17, 19].map(|amount| hold_due_in(&alice, &bob, amount, soon)))
            .collect();
        for request in &requests {
            // One of them is refused.
            let _ = client.create(request).await;
        }
        let id = |index: usize| requests[index].id.clone();
        let holds = Holds {
            held: id(0),
            paused: id(1),
            paid: id(2),
            released: id(3),
            refused: id(4),
            parked: id(8),
            half_paid: id(9),
            acknowledged: id(10),
            unknown: new_id(),
        };
        act(&mut client, &holds.paused, Kind::Pause).await;
        client.confirm(&holds.paid).await.expect("it is paid");
        client.cancel(&holds.released).await.expect("it is released");
        let parked = [&holds.parked, &holds.half_paid, &holds.acknowledged];
        for id in parked {
            until_attention(&client, id, Attention::Retrying).await;
        }
        let sql = system.sql().await;
        sql.execute("UPDATE attention SET attempts = 49 WHERE kind = 1", &[])
            .await
            .expect("they are counted");
        for id in parked {
            until_attention(&client, id, Attention::Parked).await;
        }
        act(&mut client, &holds.acknowledged, Kind::Acknowledge).await;
        let plans = Plans {
            stale: plan(&mut client, Kind::Pause, &id(5)).await,
            expired: plan(&mut client, Kind::Pause, &id(6)).await,
            forced: plan(&mut client, Kind::ForceCancel, &holds.parked).await,
            unsafe_force: plan(&mut client, Kind::ForceCancel, &holds.half_paid).await,
            pause: plan(&mut client, Kind::Pause, &id(7)).await,
        };
        client.cancel(&id(5)).await.expect("it is released");
        let expired = uuid::Uuid::parse_str(&plans.expired).expect("an id");
        let sql_text = "UPDATE plan SET expires_at = clock_timestamp() - interval '1 minute' WHERE id = $1";
        sql.execute(sql_text, &[&expired]).await.expect("it is made older");

        let mut known = Known::new();
        let every = ["*"];
        let tokens = vec![
            (Who::Operator, known.caller("carol", &["operator"], &[])),
            (Who::Viewer, known.caller("vera", &["viewer"], &[])),
            (Who::Application, known.caller("shop", &["application"], &every)),
            (Who::LedgerAdmin, known.caller("adam", &["ledger_admin"], &[])),
            (Who::Stranger, format!("tcc_{}", "0".repeat(43))),
        ];
        let config = secure::config(&system, known.auth());
        let asking = secure::coordinator(&config).await;
        let server = format!("http://{}", asking.address);
        let folder = tempfile::tempdir().expect("a folder");
        for (who, token) in &tokens {
            fs::write(folder.path().join(format!("{who:?}")), token).expect("a file");
        }
        fs::write(folder.path().join("tccd.toml"), toml::to_string(&system.config).expect("it is TOML"))
            .expect("a file");
        fs::write(
            folder.path().join("contexts.toml"),
            format!(
                "[context.prod]\nserver = \"{server}\"\ntoken_file = \"Viewer\"\n[context.gone]\nserver = \"http://127.0.0.1:1\"\n"
            ),
        )
        .expect("a file");
        let caller = secure::Caller::plain(asking.address, None).await;
        let night = Self { system, folder, server, tokens, holds, plans };
        (night, caller, asking, Coordinator { client, running })
    }

    fn run(&self, who: Who, command: &str) -> Output {
        let programs = PathBuf::from(env!("CARGO_BIN_EXE_tcc-demo")).parent().expect("a folder").to_owned();
        let mut tccctl = Command::new(programs.join("tccctl"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TCC_") {
                tccctl.env_remove(name);
            }
        }
        tccctl.current_dir(self.folder.path()).env("TCC_CONTEXTS", self.folder.path().join("contexts.toml"));
        // Whatever a build server says of itself, it is no yes.
        tccctl.env("CI", "true").stdin(Stdio::null());
        let is_by_context = command.contains("--context");
        match who {
            Who::Direct => drop(tccctl.args(["--direct", "tccd.toml"])),
            Who::Nobody => drop(tccctl.args(["--server", &self.server])),
            _ if is_by_context => {}
            _ => drop(tccctl.args(["--server", &self.server, "--token-file", &format!("{who:?}")])),
        }
        // A reason may have blanks in it.
        let words = command.split_whitespace().map(|word| word.replace('_', " "));
        tccctl.args(["-o", "json"]).args(words).output().expect("tccctl is built")
    }

    /// Everything that money and operators' decisions consist of, as one text.
    async fn everything(&self) -> String {
        let coordinator = ["transaction", "attention", "idempotency", "operator_action", "shard"];
        let digest = |table: &str| {
            format!("SELECT coalesce(string_agg(t::text, ';' ORDER BY t::text), '') FROM {table} t")
        };
        let mut all = String::new();
        let sql = self.system.sql().await;
        for table in coordinator {
            all.push_str(&sql.query_one(&digest(table), &[]).await.expect("it is read").get::<_, String>(0));
        }
        let drained = "SELECT count(*) FROM instance WHERE drained";
        all.push_str(&sql.query_one(drained, &[]).await.expect("it is read").get::<_, i64>(0).to_string());
        for shard in &self.system.config.shards {
            let sql = connect(&shard.url).await;
            for table in ["account", "branch", "posting"] {
                all.push_str(
                    &sql.query_one(&digest(table), &[]).await.expect("it is read").get::<_, String>(0),
                );
            }
        }
        all
    }

    /// What is done to single holds as they do not stand.
    fn to_holds(&self) -> Vec<Wrong> {
        let Holds { held, paused, paid, released, refused, parked, half_paid, acknowledged, unknown } =
            &self.holds;
        let why = "--reason because";
        let mut all = Vec::new();
        for (hold, possible) in [
            (held, &["holds pause"][..]),
            (paused, &["holds resume"]),
            (paid, &[]),
            (released, &[]),
            (refused, &[]),
            (parked, &["parked requeue", "parked acknowledge"]),
            (half_paid, &["parked requeue", "parked acknowledge"]),
            (acknowledged, &["parked requeue"]),
        ] {
            for action in
                ["holds retry", "holds pause", "holds resume", "parked requeue", "parked acknowledge"]
            {
                if !possible.contains(&action) {
                    all.push(wrong(Who::Operator, format!("{action} {hold} {why}"), 1, "ACTION_REFUSED"));
                }
            }
        }
        for action in ["holds retry", "holds pause", "holds resume", "parked requeue", "parked acknowledge"] {
            all.push(wrong(Who::Operator, format!("{action} {unknown} {why}"), 1, "HOLD_NOT_FOUND"));
            all.push(wrong(Who::Operator, format!("{action} {parked}"), 2, "INVALID_ARGUMENT"));
            all.push(wrong(Who::Operator, format!("{action} {parked} --reason _"), 2, "INVALID_ARGUMENT"));
            all.push(wrong(Who::Operator, format!("{action} 7 {why}"), 2, "INVALID_ARGUMENT"));
            all.push(wrong(Who::Operator, format!("{action} {why}"), 2, "INVALID_ARGUMENT"));
        }
        let long = "x".repeat(501);
        all.push(wrong(Who::Operator, format!("holds pause {held} --reason {long}"), 1, "FIELD_INVALID"));
        all.push(wrong(
            Who::Operator,
            format!("holds pause {held} {why} --ticket {}", &long[..101]),
            1,
            "FIELD_INVALID",
        ));
        all.push(wrong(Who::Operator, format!("holds force-cancel {unknown}"), 1, "HOLD_NOT_FOUND"));
        all.push(wrong(Who::Operator, format!("holds describe {unknown}"), 1, "HOLD_NOT_FOUND"));
        all.push(wrong(
            Who::Operator,
            "holds force-cancel --attention parked --max 0",
            2,
            "INVALID_ARGUMENT",
        ));
        all.push(wrong(
            Who::Operator,
            format!("parked requeue {parked} --attention parked {why}"),
            2,
            "INVALID_ARGUMENT",
        ));
        // Applications decide about their holds, operators do not.
        all.push(wrong(Who::Operator, format!("holds cancel {held}"), 1, "NOT_ALLOWED"));
        all.push(wrong(Who::Operator, format!("holds confirm {held}"), 1, "NOT_ALLOWED"));
        for done in [paid, half_paid] {
            all.push(wrong(Who::Application, format!("holds cancel {done}"), 1, "HOLD_NOT_CANCELLABLE"));
        }
        for gone in [released, refused] {
            all.push(wrong(Who::Application, format!("holds confirm {gone}"), 1, "HOLD_NOT_CONFIRMABLE"));
        }
        all
    }

    /// Plans that must not be executed, and things that need somebody else's role.
    fn by_plan_and_role(&self) -> Vec<Wrong> {
        let (Holds { held, parked, .. }, Plans { expired, forced, unsafe_force, pause, stale }) =
            (&self.holds, &self.plans);
        let (why, unknown) = ("--reason because", new_id());
        let by = |command: String, exit, reason| wrong(Who::Operator, command, exit, reason);
        let mut all = vec![
            by(format!("plan execute {expired} {why} --yes"), 1, "PLAN_EXPIRED"),
            by(format!("plan execute {unknown} {why} --yes"), 1, "PLAN_NOT_FOUND"),
            by(format!("plan show {unknown}"), 1, "PLAN_NOT_FOUND"),
            by(format!("plan execute {pause} --yes"), 2, "INVALID_ARGUMENT"),
            by(format!("plan execute {pause} {why}"), 9, "DECLINED"),
            by(format!("plan execute {forced} {why}"), 9, "DECLINED"),
            by(format!("plan execute {forced} {why} --yes"), 9, "DECLINED"),
            by(format!("plan execute {unsafe_force} {why} --yes"), 9, "DECLINED"),
            by(format!("plan execute {pause} {why} --yes --max-per-second 0"), 2, "INVALID_ARGUMENT"),
            by(format!("plan execute {pause} {why} --yes --max-per-second 1001"), 2, "INVALID_ARGUMENT"),
            // It stands otherwise by now: done in part, which is in no part.
            by(format!("plan execute {stale} {why} --yes"), 8, ""),
            by(format!("shards drain nowhere {why}"), 1, "SHARD_NOT_FOUND"),
            by("shards drain shard-0".into(), 2, "INVALID_ARGUMENT"),
            by(format!("shards resume shard-0 {why}"), 1, "SHARD_NOT_STOPPED"),
            by(format!("shards resume nowhere {why}"), 1, "SHARD_NOT_STOPPED"),
            by("shards resume shard-0".into(), 2, "INVALID_ARGUMENT"),
            by("shards describe nowhere".into(), 1, "NOT_FOUND"),
            by(format!("instances drain {unknown} {why}"), 1, "INSTANCE_NOT_FOUND"),
            by(format!("instances drain {unknown}"), 2, "INVALID_ARGUMENT"),
            by("audit replay --shard nowhere".into(), 1, "SHARD_NOT_FOUND"),
            by("accounts create eve GOLD".into(), 1, "NOT_ALLOWED"),
            by("accounts issue eve 5 GOLD".into(), 1, "NOT_ALLOWED"),
            by("accounts block eve".into(), 1, "NOT_ALLOWED"),
            by("accounts close eve".into(), 1, "NOT_ALLOWED"),
        ];
        let theirs = [
            format!("holds retry {parked} {why}"),
            format!("holds pause {held} {why}"),
            format!("holds force-cancel {parked}"),
            format!("parked requeue {parked} {why}"),
            format!("parked acknowledge {parked} {why}"),
            format!("shards drain shard-0 {why}"),
            format!("shards resume shard-0 {why}"),
            format!("instances drain {unknown} {why}"),
        ];
        for command in &theirs {
            for who in [Who::Viewer, Who::Application, Who::LedgerAdmin] {
                all.push(wrong(who, command, 1, "NOT_ALLOWED"));
            }
            all.push(wrong(Who::Nobody, command, 1, "TOKEN_MISSING"));
            all.push(wrong(Who::Stranger, command, 1, "TOKEN_INVALID"));
            all.push(wrong(Who::Direct, command, 1, "READ_ONLY"));
            // A context says who asks, too.
            all.push(wrong(Who::Viewer, format!("--context prod {command}"), 1, "NOT_ALLOWED"));
            all.push(wrong(Who::Operator, format!("--context prud {command}"), 2, "INVALID_ARGUMENT"));
            all.push(wrong(Who::Operator, format!("--context gone {command}"), 4, "UNAVAILABLE"));
        }
        for command in [
            format!("holds cancel {held}"),
            format!("holds confirm {held}"),
            "accounts issue alice 5 GOLD".into(),
        ] {
            all.push(wrong(Who::Direct, command, 1, "READ_ONLY"));
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_wrong_actions_are_refused_with_their_reasons_and_change_nothing() {
    let (night, _caller, _asking, Coordinator { mut client, running: _running }) = Night::begins().await;
    assert_eq!(night.tokens.len(), 5);
    let before = night.everything().await;

    let all: Vec<Wrong> = night.to_holds().into_iter().chain(night.by_plan_and_role()).collect();
    let mut differing = Vec::new();
    for Wrong { who, command, exit, reason } in &all {
        let output = tokio::task::block_in_place(|| night.run(*who, command));
        // The last line: a hint may stand before it.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        let error: Value =
            told.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        let found = error["error"]["reason"].as_str().or(error["error"]["code"].as_str()).unwrap_or_default();
        if output.status.code() != Some(*exit) || found != *reason {
            differing.push(format!("{who:?}: {command}: {:?} {found:?}: {told}", output.status.code()));
        }
    }

    assert!(differing.is_empty(), "{} of {}:\n{}", differing.len(), all.len(), differing.join("\n"));
    assert!(all.len() >= 100, "{}", all.len());
    assert!(night.everything().await == before, "something has changed");
    // What would create units is refused in the plan itself, and says so.
    let shown = tokio::task::block_in_place(|| {
        night.run(Who::Operator, &format!("plan show {}", night.plans.unsafe_force))
    });
    let shown: Value = serde_json::from_slice(&shown.stdout).expect("a plan");
    assert!(shown["items"][0]["refusal"].as_str().unwrap().starts_with("FORCE_UNSAFE"), "{shown}");
    assert_eq!(client.hold(&night.holds.paid).await.attention(), Attention::None);
    println!("{} wrong actions", all.len());
}
