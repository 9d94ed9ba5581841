//! A real `tccd` dies at each of its statements, and between each commit and its answer, while it does each thing that it
//! can be asked for; the next one brings everything to its end, and a client that asks again gets what it wanted.
//!
//! [`POINTS`] says which deed reaches which point. It is compared with the code, so a new statement without a line here
//! fails, and so does a line whose point is not reached any more.

use futures::future::join3;
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};
use tcc_coordinator::config::ParticipantConfig;
use tcc_proto::v1::{self, CreateHoldRequest, OperatorActionKind as Action, Phase};
use tcc_tests::{
    Client, GOLD, System, amount, connect, hold, hold_due_in, new_id, on_shard, on_two_shards, process::Tccd,
    reason,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

/// What a `tccd` does when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deed {
    /// It starts, and looks after itself.
    Start,
    /// An account is opened, and units are issued to it.
    Open,
    /// A hold is created, and paid when it is due.
    Pay,
    /// The same, between two accounts of one shard.
    PayTogether,
    /// A hold is created, and paid on request.
    PayNow,
    /// The same, with a key instead of an id.
    PayByKey,
    /// A hold is created, and cancelled on request.
    Cancel,
    /// A hold is refused: the payer has not enough.
    Refuse,
    /// A hold is refused, and another one cancelled right after it: the shard still works with locks.
    CancelAfterRefusal,
    /// Two holds are created while somebody holds the row of one payer's account.
    CreateBesideLock,
    /// An account is blocked, and unblocked again.
    Block,
    /// The row of a hold was lost, and is rebuilt from its fences.
    Rebuild,
    /// It is told to leave.
    Leave,
    /// A shard is found to have lost commits.
    LoseShard,
    /// An operator lets work on such a shard go on.
    ResumeShard,
    /// An operator stops work on a shard, lets it go on, and lets another instance leave.
    Drain,
    /// An operator adds a participant, drains it and removes it.
    Register,
    /// A hold is parked; an operator acknowledges that, takes it up again, pauses and resumes it, and it is paid on request.
    Mend,
    /// An operator cancels a hold by plan.
    Force,
}

use Deed::{
    Block, Cancel, CancelAfterRefusal, CreateBesideLock, Drain, Force, Leave, LoseShard, Mend, Open, Pay,
    PayByKey, PayNow, PayTogether, Rebuild, Refuse, Register, ResumeShard, Start,
};

/// Every point, and the deeds that reach it. A point that no deed reaches is a read of which nothing depends: whoever dies
/// there has done nothing, and holds nothing.
const POINTS: &[(&str, &[Deed])] = &[
    // A shard.
    ("read_accounts", &[Pay, PayTogether, PayNow, Cancel]),
    ("take_fences", &[Pay, PayTogether, PayNow, Cancel]),
    ("insert_fences", &[Open, Pay, PayTogether, Refuse]),
    ("change_accounts", &[Open, Pay, PayTogether, Cancel]),
    ("insert_postings", &[Open, Pay, PayTogether, Cancel]),
    ("tcc-shard committed", &[Open, Pay, PayTogether, PayNow, Cancel, Refuse]),
    ("insert_accounts", &[Open]),
    ("lock_fences", &[Open, Refuse]),
    ("lock_accounts", &[Open, Refuse]),
    ("clock", &[Open, Refuse]),
    ("move_fences", &[CancelAfterRefusal]),
    ("set_states", &[Block]),
    ("all_fences", &[CreateBesideLock]),
    ("all_accounts", &[CreateBesideLock]),
    ("identify", &[Start]),
    // Written once, when the database is new.
    ("name_shard", &[]),
    // The coordinator's table.
    ("take_stripe", &[Start]),
    ("begin", &[Pay, Refuse]),
    ("tccd-begin committed", &[Pay, Refuse]),
    ("advance", &[Pay, PayTogether, PayNow, Cancel, Refuse, Force]),
    ("tccd-advance committed", &[Pay, PayTogether, PayNow, Cancel, Refuse]),
    ("wake", &[Pay, PayTogether]),
    ("defer", &[CreateBesideLock]),
    ("tccd-defer committed", &[CreateBesideLock]),
    ("map_buckets", &[]),
    // Keys. Those that nobody asks for any more are forgotten by one statement, a minute after the start.
    ("claim", &[PayByKey]),
    ("claimed", &[PayByKey]),
    ("tccd-keys committed", &[PayByKey]),
    ("purge_keys", &[]),
    // Partitions.
    ("create_partitions", &[Start]),
    ("partitions", &[Start]),
    // Leases and reading ahead.
    ("beat", &[Start]),
    ("replace_instance", &[Start]),
    ("other_instances", &[Start]),
    ("slots", &[Start]),
    ("claim_slots", &[Start]),
    ("set_watermarks", &[Start]),
    ("tccd-leases committed", &[Start]),
    ("read_wakeups", &[Start]),
    ("mark", &[Start]),
    ("xmin", &[Start]),
    ("leave", &[Leave]),
    // The sweep.
    ("swept", &[Start]),
    ("missing", &[Rebuild]),
    ("set_swept", &[Start]),
    ("rebuild", &[Rebuild]),
    ("tccd-sweep committed", &[Rebuild]),
    // The heads.
    ("keep_head", &[Pay]),
    ("stop_shard", &[LoseShard]),
    ("resume_shard", &[ResumeShard, Drain]),
    // Participants.
    ("configure_participant", &[Start]),
    ("add_participant", &[Register]),
    ("drain_participant", &[Register]),
    ("remove_participant", &[Register]),
    // Operators.
    ("drain_shard", &[Drain]),
    ("drain_instance", &[Drain]),
    ("rearm", &[Mend]),
    ("pause", &[Mend]),
    ("acknowledge", &[Mend]),
    ("note_action", &[Drain, Mend, Force]),
    ("acted", &[Drain, Mend, Force]),
    ("create_plan", &[Force]),
    ("add_plan_items", &[Force]),
    ("start_plan", &[Force]),
    ("finish_plan_item", &[Force]),
    // The auditor in the background.
    ("audited", &[Start]),
    ("set_audited", &[Start]),
    ("tccd-audit committed", &[Start]),
    // What is found is found again.
    ("keep_findings", &[]),
    // Done by several instances only, and by one that finds a straggler: the same rows as `leave` and `advance` write.
    ("release_slots", &[]),
    ("wake_now", &[]),
    // Reads.
    ("open", &[]),
    ("miscounted", &[]),
    ("get", &[]),
    ("tccd-get committed", &[]),
    ("attention", &[]),
    ("forgotten", &[]),
    ("heads", &[]),
    ("lost_heads", &[]),
    ("leaves", &[]),
    ("fence_partitions", &[]),
    ("late", &[]),
    ("is_member", &[]),
    ("is_granted", &[]),
    ("partitions_of", &[]),
    ("account", &[]),
    ("account_of_holdings", &[]),
    ("open_debits", &[]),
    ("balance_at", &[]),
    ("version_before", &[]),
    ("listed", &[]),
    ("postings", &[]),
    ("page", &[]),
    ("get_all", &[]),
    ("trace", &[]),
    ("watermark", &[]),
    ("branches_between", &[]),
    ("branches_of", &[]),
    ("fenced_between", &[]),
    ("fenced_before", &[]),
    ("horizon", &[]),
    ("summarize", &[]),
    ("oldest_postings", &[]),
    ("count_moved", &[]),
    ("new_postings", &[]),
    ("new_fences", &[]),
    ("fences_of", &[]),
    ("postings_around", &[]),
    ("later_postings", &[]),
    ("audit_accounts", &[]),
    ("replay", &[]),
    ("audits", &[]),
    ("findings", &[]),
    ("count_findings", &[]),
    ("lock_transaction", &[]),
    ("lock_shard", &[]),
    ("list_attention", &[]),
    ("attention_of", &[]),
    ("acknowledged", &[]),
    ("actions", &[]),
    ("instances", &[]),
    ("plan", &[]),
    ("plan_items", &[]),
    ("plans", &[]),
    ("registered", &[]),
    ("lock_participant", &[]),
    ("unfinished", &[]),
    ("owned", &[]),
    ("fences", &[]),
    ("postings_near", &[]),
];

#[test]
fn every_statement_is_a_point_that_something_reaches() {
    let listed: BTreeSet<&str> = POINTS.iter().map(|(point, _)| *point).collect();

    let in_code = points_in_code();

    let known = |point: &String| listed.contains(point.as_str());
    let unlisted: Vec<&String> = in_code.keys().filter(|point| !known(point)).collect();
    assert!(unlisted.is_empty(), "nothing says what reaches these: {unlisted:?}");
    let gone: Vec<&&str> = listed.iter().filter(|point| !in_code.contains_key(**point)).collect();
    assert!(gone.is_empty(), "the code has no such points: {gone:?}");
    let repeated: Vec<_> = in_code.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "two points of one name: {repeated:?}");
}

/// The names of all statements, of what follows the commits of all sessions, and of the points between statements; each with
/// how often it is given.
fn points_in_code() -> BTreeMap<String, usize> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["coordinator/server/src", "participants"] {
        sources(&root.join(folder), &mut files);
    }
    // What stands here is done in processes of participants, and never in tccd.
    let elsewhere =
        ["participants/sdk/src/fence.rs", "participants/sdk/src/sql.rs"].map(|file| root.join(file));
    files.retain(|file| !elsewhere.contains(file) && !file.starts_with(root.join("participants/payout")));
    let mut points = BTreeMap::new();
    let mut add = |name: String| *points.entry(name).or_default() += 1;
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for (at, _) in code.match_indices("-- ") {
            let opens = code[..at].trim_end_matches([' ', '\n']);
            let is_first = opens.ends_with("\"\\") || opens.ends_with('"');
            let (name, rest) = word(&code[at + 3..]);
            if is_first && !name.is_empty() && (rest.starts_with('\n') || rest.starts_with("\\n")) {
                add(name.to_owned());
            }
        }
        for (at, found) in code.match_indices("crash::point(\"") {
            add(word(&code[at + found.len()..]).0.to_owned());
        }
        if code.contains(".settle()") {
            for (at, found) in code.match_indices("Session::new(") {
                let arguments =
                    &code[at + found.len()..code[at..].find(')').map_or(code.len(), |end| at + end)];
                let named = arguments.split('"').nth(1);
                let name = named.map_or_else(|| constant(code, "CONNECTION"), str::to_owned);
                add(format!("{name} committed"));
            }
        }
    }
    points
}

fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len()))
}

fn constant(code: &str, name: &str) -> String {
    let line = code.lines().find(|line| line.contains(&format!("const {name}:"))).expect("it is there");
    line.split('"').nth(1).expect("it is a text").to_owned()
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn whoever_dies_at_a_statement_leaves_nothing_that_the_next_one_cannot_finish() {
    let all: Vec<(&str, Deed)> =
        POINTS.iter().flat_map(|(point, deeds)| deeds.iter().map(|deed| (*point, *deed))).collect();

    // Several at a time, each with databases of its own: most of the time they wait.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lanes = (0..LANES).map(|lane| {
        let mine: Vec<_> = all.iter().skip(lane).step_by(LANES).copied().collect();
        runtime.spawn(async move { Stage::set().await.play(&mine).await })
    });
    let deaths: u32 = lanes.collect::<Vec<_>>().into_iter().map(|lane| runtime.block_on(lane).unwrap()).sum();

    assert!(deaths as usize > all.len(), "only {deaths} deaths");
}

const LANES: usize = 4;
/// What each payer begins with.
const FUNDS: i64 = 1_000_000;
/// What each hold is about.
const AMOUNT: i64 = 10;
/// Why operators do what they do.
const WHY: &str = "a test";
/// The reason for which a hold is not taken any more.
const TOO_LATE: &str = "DUE_TIME_IN_PAST";

/// Databases, and a `tccd` that dies and is started again.
struct Stage {
    system: System,
    tccd: Tccd,
    /// Two accounts on two shards, and two on one.
    apart: (String, String),
    together: (String, String),
    /// How much each of them owns now.
    owned: BTreeMap<String, i64>,
    /// How much has been issued.
    issued: i64,
}

/// What a deed is about.
struct Wish {
    deed: Deed,
    /// Holds, and the phase in which each must end if anybody knows of it.
    holds: Vec<(CreateHoldRequest, Phase)>,
    account: String,
    issue: String,
}

/// Where the rows are.
struct Databases {
    coordinator: String,
    shard: String,
}

impl Stage {
    fn databases(&self) -> Databases {
        let config = &self.system.config;
        Databases { coordinator: config.coordinator.url.clone(), shard: config.shards[0].url.clone() }
    }

    async fn set() -> Self {
        let mut system = System::start().await;
        // Nobody listens there; it is known all the same.
        system.config.participants = vec![ParticipantConfig::new("nobody", "http://127.0.0.1:9")];
        let tccd = Tccd::start(&system.config).await.expect("tccd starts");
        let mut client = Client::connect(tccd.url()).await;
        let (apart, together) = (on_two_shards("user"), (on_shard("carol", 0), on_shard("dave", 0)));
        let mut owned = BTreeMap::new();
        for (account, funds) in [(&apart.0, FUNDS), (&apart.1, 0), (&together.0, FUNDS), (&together.1, 0)] {
            client.account(account, funds).await;
            owned.insert(account.clone(), funds);
        }
        let mut stage = Self { system, tccd, apart, together, owned, issued: 2 * FUNDS };
        stage.end().await;
        stage
    }

    /// Answers how often it died.
    async fn play(mut self, cases: &[(&str, Deed)]) -> u32 {
        let mut deaths = 0;
        for (point, deed) in cases {
            for nth in 1.. {
                let has_died = self.case(point, *deed, nth).await;
                assert!(has_died || nth > 1, "{deed:?} does not reach {point}");
                deaths += u32::from(has_died);
                // What is done again and again, whatever the deed, has no last time.
                let is_endless =
                    matches!(deed, Start | Leave | LoseShard | ResumeShard) || *point == "keep_head";
                if !has_died || is_endless {
                    break;
                }
            }
        }
        self.tccd.crash_at(None);
        self.tccd.restart().await.expect("tccd starts");
        let mut client = Client::connect(self.tccd.url()).await;
        for (account, owns) in &self.owned {
            assert_eq!(client.balances(account).await, (*owns, 0), "{account}");
        }
        let summary = client.audit_is_clean().await;
        assert_eq!(summary.issued[0].value, self.issued);
        deaths
    }

    /// One deed, with one death. Whether it died.
    async fn case(&mut self, point: &str, deed: Deed, nth: u32) -> bool {
        let what = format!("{deed:?} at {point} for the {nth}. time");
        let lost = self.prepare(deed).await;
        self.tccd.crash_at(Some((point, nth)));
        let mut has_died = self.tccd.restart().await.is_err();
        let wish = self.wish(deed, lost);
        if !has_died {
            let doing = tokio::spawn(wish.first(self.tccd.url().to_owned(), self.databases()));
            if deed == Leave {
                self.tccd.signal("TERM").await.expect("it runs");
            }
            has_died = self.watch(&what, &doing, point == "keep_head").await;
            doing.abort();
        }
        if !self.tccd.has_ended().expect("the system says so") {
            self.end().await;
        }
        self.tccd.crash_at(None);
        self.tccd.restart().await.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let client = Client::connect(self.tccd.url()).await;
        self.again(client, &wish, &what).await;
        self.end().await;
        has_died
    }

    /// Waits for the death, or that the deed is done and it cannot come any more. Whether it died.
    async fn watch<T>(&mut self, what: &str, doing: &tokio::task::JoinHandle<T>, lingers: bool) -> bool {
        let began = Instant::now();
        let mut done_since = None;
        loop {
            if self.tccd.has_ended().expect("the system says so") {
                return true;
            }
            if doing.is_finished() {
                // Its last step may have been answered, and its death be on its way.
                let linger = Duration::from_millis(if lingers { 5_000 } else { 100 });
                if done_since.get_or_insert_with(Instant::now).elapsed() >= linger {
                    return false;
                }
            }
            assert!(began.elapsed() < Duration::from_secs(40), "{what}: it neither dies nor does it");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(&mut self) {
        if !self.tccd.has_ended().expect("the system says so") {
            self.tccd.kill().await.expect("it runs");
        }
    }

    /// What must be there before `tccd` starts. Answers the hold whose row was lost, if one was.
    async fn prepare(&mut self, deed: Deed) -> Option<CreateHoldRequest> {
        match deed {
            Rebuild => {
                self.tccd.crash_at(None);
                self.tccd.restart().await.expect("tccd starts");
                let request = hold(&self.apart.0, &self.apart.1, AMOUNT);
                Client::connect(self.tccd.url()).await.create(&request).await.expect("it is held");
                self.end().await;
                let lose = format!("DELETE FROM sweep; DELETE FROM transaction WHERE id = '{}'", request.id);
                self.system.sql().await.batch_execute(&lose).await.unwrap();
                Some(request)
            }
            LoseShard | ResumeShard => {
                // A head that the shard never had.
                let (instance, fence) = (new_id(), new_id());
                let lost = format!(
                    "INSERT INTO head VALUES ('shard-0', '{instance}', '{fence}', 0, 1, clock_timestamp())"
                );
                self.system.sql().await.execute(&lost, &[]).await.unwrap();
                None
            }
            _ => None,
        }
    }

    fn wish(&self, deed: Deed, lost: Option<CreateHoldRequest>) -> Wish {
        let soon = SignedDuration::from_millis(1_500);
        let ((alice, bob), (carol, dave)) = (&self.apart, &self.together);
        let holds = match deed {
            Pay => vec![(hold_due_in(alice, bob, AMOUNT, soon), Phase::Confirmed)],
            PayTogether => vec![(hold_due_in(carol, dave, AMOUNT, soon), Phase::Confirmed)],
            Start | PayNow | Mend => vec![(hold(alice, bob, AMOUNT), Phase::Confirmed)],
            PayByKey => {
                let (id, idempotency_key) = (String::new(), new_id());
                let request = CreateHoldRequest { id, idempotency_key, ..hold(alice, bob, AMOUNT) };
                vec![(request, Phase::Confirmed)]
            }
            Cancel | Force => vec![(hold(alice, bob, AMOUNT), Phase::Cancelled)],
            Refuse => vec![(hold(alice, bob, FUNDS * 10), Phase::Cancelled)],
            CancelAfterRefusal => vec![
                (hold(alice, bob, FUNDS * 10), Phase::Cancelled),
                (hold(alice, bob, AMOUNT), Phase::Cancelled),
            ],
            CreateBesideLock => vec![
                (hold(alice, bob, AMOUNT), Phase::Cancelled),
                (hold(carol, dave, AMOUNT), Phase::Cancelled),
            ],
            Rebuild => lost.into_iter().map(|request| (request, Phase::Confirmed)).collect(),
            Open | Block | Leave | LoseShard | ResumeShard | Drain | Register => Vec::new(),
        };
        let account = if deed == Block { carol.clone() } else { format!("new-{}", new_id()) };
        Wish { deed, holds, account, issue: new_id() }
    }

    /// The client asks again until it has what it wanted, and everything is at rest.
    async fn again(&mut self, mut client: Client, wish: &Wish, what: &str) {
        if wish.deed == Drain {
            drain(&mut client).await;
            drain_other(&mut client, &self.databases()).await;
        }
        if wish.deed == Register {
            register(&mut client).await;
        }
        if matches!(wish.deed, LoseShard | ResumeShard | Drain) {
            resume(&mut client).await;
        }
        if wish.deed == Open {
            open(&mut client, wish).await;
            self.owned.insert(wish.account.clone(), AMOUNT);
            self.issued += AMOUNT;
        }
        if wish.deed == Block {
            block(&mut client, &wish.account).await;
        }
        for (request, end) in &wish.holds {
            let id = match answered(&client, request).await {
                Ok(response) => response.hold.expect("an answer has a hold").id,
                // Nobody has heard of it, and it is too late for it now.
                Err(status) if reason(&status) == TOO_LATE => continue,
                Err(status) => {
                    assert_eq!(reason(&status), "INSUFFICIENT_FUNDS", "{what}");
                    request.id.clone()
                }
            };
            decide(&mut client, wish.deed, &id, &self.databases()).await;
            let found = client.until_final(&id).await.phase();
            assert_eq!(found, *end, "{what}");
            if found == Phase::Confirmed {
                *self.owned.get_mut(&request.payer).expect("it is known") -= AMOUNT;
                *self.owned.get_mut(&request.payee).expect("it is known") += AMOUNT;
            }
        }
    }
}

impl Wish {
    /// What the client asks for before anything dies. It is not told everything.
    fn first(&self, url: String, databases: Databases) -> impl Future<Output = ()> + Send + 'static {
        let wish = Self {
            deed: self.deed,
            holds: self.holds.clone(),
            account: self.account.clone(),
            issue: self.issue.clone(),
        };
        async move {
            let mut client = Client::lazy(&url);
            match wish.deed {
                // It dies by itself.
                Start | Leave | LoseShard => pending().await,
                Rebuild => stands(&client, &wish.holds[0].0.id, Phase::Held).await,
                ResumeShard => resume(&mut client).await,
                Drain => {
                    drain(&mut client).await;
                    resume(&mut client).await;
                    drain_other(&mut client, &databases).await;
                }
                Register => register(&mut client).await,
                Open => open(&mut client, &wish).await,
                Block => block(&mut client, &wish.account).await,
                CreateBesideLock => wish.create_beside_lock(&client, &databases).await,
                _ => {
                    for (request, end) in &wish.holds {
                        let id = match answered(&client, request).await {
                            Ok(response) => response.hold.expect("an answer has a hold").id,
                            Err(status) if reason(&status) == TOO_LATE => return,
                            Err(_) => request.id.clone(),
                        };
                        decide(&mut client, wish.deed, &id, &databases).await;
                        stands(&client, &id, *end).await;
                    }
                }
            }
        }
    }

    /// Somebody holds a payer's row until the hold that needs it is put off.
    async fn create_beside_lock(&self, client: &Client, databases: &Databases) {
        let [(locked, _), (free, _)] = self.holds.as_slice() else { panic!("there are two") };
        let (coordinator, mut shard) =
            (connect(&databases.coordinator).await, connect(&databases.shard).await);
        let lock = shard.transaction().await.unwrap();
        lock.execute("SELECT FROM account WHERE id = $1 FOR UPDATE", &[&locked.payer]).await.unwrap();
        let put_off = format!("SELECT FROM attention WHERE transaction_id = '{}'", locked.id);
        let release = async {
            while coordinator.query(&put_off, &[]).await.unwrap().is_empty() {
                sleep(Duration::from_millis(20)).await;
            }
            lock.rollback().await.unwrap();
        };
        let _ = join3(answered(client, locked), answered(client, free), release).await;
    }
}

/// Creates a hold, asking again until there is an answer.
async fn answered(
    client: &Client,
    request: &CreateHoldRequest,
) -> Result<v1::CreateHoldResponse, tonic::Status> {
    loop {
        match client.clone().create(request).await {
            Err(status) if is_unknown(&status) => {
                sleep(Duration::from_millis(50)).await;
            }
            answer => return answer,
        }
    }
}

/// Waits until a hold is in a phase, whoever answers.
async fn stands(client: &Client, id: &str, phase: Phase) {
    let is_so = |answer: v1::GetHoldResponse| answer.hold.is_some_and(|hold| hold.phase() == phase);
    while !client
        .holds
        .clone()
        .get_hold(v1::GetHoldRequest { id: id.to_owned() })
        .await
        .is_ok_and(|answer| is_so(answer.into_inner()))
    {
        sleep(Duration::from_millis(20)).await;
    }
}

/// What the client, or an operator, wants of a hold that is held.
async fn decide(client: &mut Client, deed: Deed, id: &str, databases: &Databases) {
    match deed {
        Mend => mend(client, id, databases).await,
        Force => force(client, id).await,
        _ => {}
    }
    loop {
        let answer = match deed {
            Start | PayNow | PayByKey | Rebuild | Mend => client.confirm(id).await,
            Cancel | CancelAfterRefusal | CreateBesideLock => client.cancel(id).await,
            _ => return,
        };
        match answer {
            Err(status) if is_unknown(&status) => {
                sleep(Duration::from_millis(50)).await;
            }
            // What was refused is cancelled already.
            _ => return,
        }
    }
}

/// Parks a hold, and asks for what operators do with such a one.
async fn mend(client: &mut Client, id: &str, databases: &Databases) {
    let park = format!(
        "WITH parked AS (
             UPDATE transaction SET attention = 3 WHERE id = '{id}' AND phase = 2 AND attention = 0 RETURNING id
         )
         INSERT INTO attention (transaction_id, kind, since, attempts, last_error)
         SELECT id, 3, clock_timestamp(), 50, 'a test' FROM parked
         ON CONFLICT (transaction_id) DO UPDATE SET kind = 3, acknowledged = false"
    );
    connect(&databases.coordinator).await.batch_execute(&park).await.unwrap();
    for action in [Action::Acknowledge, Action::Requeue, Action::Pause, Action::Resume] {
        let (id, action) = (id.to_owned(), action.into());
        let act = v1::ActRequest { id, action, reason: WHY.into(), ticket: String::new() };
        // What was done before the death is refused now.
        while client.recovery.act(act.clone()).await.is_err_and(|status| is_unknown(&status)) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Has a hold cancelled by plan, asking again until there is an answer.
async fn force(client: &mut Client, id: &str) {
    loop {
        match force_once(client, id).await {
            Err(status) if is_unknown(&status) => sleep(Duration::from_millis(50)).await,
            done => return done.expect("the plan is executed"),
        }
    }
}

/// Goes on with the plan that there is, or makes one.
async fn force_once(client: &mut Client, id: &str) -> Result<(), tonic::Status> {
    let recovery = &mut client.recovery;
    let newest = recovery.list_plans(v1::ListPlansRequest { page_size: 1 }).await?.into_inner().plans.pop();
    let mut known = None;
    if let Some(newest) = newest {
        let found = recovery.get_plan(v1::GetPlanRequest { id: newest.id }).await?.into_inner();
        known = found.plan.filter(|_| found.items.iter().any(|item| item.id == id));
    }
    if known.is_none() {
        let (action, ids) = (Action::ForceCancel.into(), vec![id.to_owned()]);
        let plan = v1::CreatePlanRequest { action, ids, ..Default::default() };
        known = recovery.create_plan(plan).await?.into_inner().plan;
    }
    let plan = known.expect("an answer has a plan");
    let execute = v1::ExecutePlanRequest { id: plan.id, reason: WHY.into(), ..Default::default() };
    let mut told = recovery.execute_plan(execute).await?.into_inner();
    while told.message().await?.is_some() {}
    Ok(())
}

fn is_unknown(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled)
}

/// Opens the account and issues to it, asking again until there is an answer.
async fn open(client: &mut Client, wish: &Wish) {
    let account = v1::CreateAccountRequest { id: wish.account.clone(), currency: GOLD.into() };
    let issue = v1::IssueRequest {
        id: wish.issue.clone(),
        account: wish.account.clone(),
        amount: Some(amount(AMOUNT)),
    };
    while client.ledger.create_account(account.clone()).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    while client.ledger.issue(issue.clone()).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Blocks the account and unblocks it, asking again until there is an answer.
async fn block(client: &mut Client, account: &str) {
    let (block, unblock) = (
        v1::BlockAccountRequest { id: account.to_owned() },
        v1::UnblockAccountRequest { id: account.to_owned() },
    );
    while client.ledger.block_account(block.clone()).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
    while client.ledger.unblock_account(unblock.clone()).await.is_err() {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Has work on the shard stopped, asking again until there is an answer.
async fn drain(client: &mut Client) {
    let (name, reason) = ("shard-0".to_owned(), WHY.to_owned());
    let drain = v1::DrainShardRequest { name, reason, ticket: String::new() };
    while client.recovery.drain_shard(drain.clone()).await.is_err_and(|status| is_unknown(&status)) {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Lets an instance leave that is somewhere else, asking again until there is an answer.
async fn drain_other(client: &mut Client, databases: &Databases) {
    let (sql, id) = (connect(&databases.coordinator).await, new_id());
    let other = format!(
        "INSERT INTO instance (id, address, started_at, lease_until, settled)
         VALUES ('{id}', 'elsewhere', clock_timestamp(), clock_timestamp() + interval '1 minute', 0)"
    );
    sql.batch_execute(&other).await.unwrap();
    let drain = v1::DrainInstanceRequest { id: id.clone(), reason: WHY.to_owned(), ticket: String::new() };
    while client.recovery.drain_instance(drain.clone()).await.is_err_and(|status| is_unknown(&status)) {
        sleep(Duration::from_millis(50)).await;
    }
    sql.batch_execute(&format!("DELETE FROM instance WHERE id = '{id}'")).await.unwrap();
}

/// Has a participant added, drained and removed, asking again until it is so. Whoever finds it done has died after it.
async fn register(client: &mut Client) {
    let (name, reason, ticket) = ("late".to_owned(), WHY.to_owned(), String::new());
    let address = "http://127.0.0.1:9".to_owned();
    let add = v1::AddParticipantRequest {
        name: name.clone(),
        address,
        reason: reason.clone(),
        ..Default::default()
    };
    let drain =
        v1::DrainParticipantRequest { name: name.clone(), reason: reason.clone(), ticket: ticket.clone() };
    let remove = v1::RemoveParticipantRequest { name, reason, ticket };
    while client.operator.add_participant(add.clone()).await.is_err_and(|status| is_unknown(&status)) {
        sleep(Duration::from_millis(50)).await;
    }
    while client.operator.drain_participant(drain.clone()).await.is_err_and(|status| is_unknown(&status)) {
        sleep(Duration::from_millis(50)).await;
    }
    while client.operator.remove_participant(remove.clone()).await.is_err_and(|status| is_unknown(&status)) {
        sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the shard is stopped, and lets work on it go on.
async fn resume(client: &mut Client) {
    let (name, reason) = ("shard-0".to_owned(), WHY.to_owned());
    let resume = v1::ResumeShardRequest { name, reason, ticket: String::new() };
    let began = Timestamp::now();
    while client.operator.resume_shard(resume.clone()).await.is_err() {
        assert!(
            Timestamp::now().duration_since(began) < SignedDuration::from_secs(30),
            "the shard is not stopped"
        );
        sleep(Duration::from_millis(50)).await;
    }
}
