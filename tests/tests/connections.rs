//! Clients that are not polite: thousands that say nothing, that reset what they asked for, that do not read. And what the
//! server writes down meanwhile.

use futures::future::join_all;
use h2::client::SendRequest;
use hyper::{Request, header::AUTHORIZATION};
use serde_json::json;
use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tcc_coordinator::config::{Auth, Config, PostgresConfig, Traffic};
use tcc_proto::v1::{self, hold_service_client::HoldServiceClient};
use tcc_tests::{
    PATIENCE, System, hold, on_shard,
    process::Tccd,
    reason,
    secure::{self, Authority, Caller, Known, Provider},
    until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const STATUS: &str = "/tcc.v1.OperatorService/GetStatus";
/// What an HTTP/2 client says first: the preface, and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// So many clients try, if a process may have as many files open: more than are let in.
const IDLE: usize = 10_000;

/// How many connections this process may have.
fn allowed() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let files: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    IDLE.min(files.saturating_sub(300) / 100 * 100)
}

/// The memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_idle_clients_take_a_bounded_memory_and_whoever_is_connected_is_served() {
    let system = System::start().await;
    let mut known = Known::new();
    let key = known.caller("desk", &["viewer"], &[]);
    let traffic = Traffic { connections_per_address: 20_000, ..Traffic::default() };
    let most = traffic.connections as usize;
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let tccd = Tccd::start(&config).await.unwrap();
    let address: SocketAddr = tccd.url().trim_start_matches("http://").parse().unwrap();
    let desk = Caller::plain(address, Some(&key)).await;
    desk.call(STATUS).await.unwrap();
    let before = resident(tccd.id().unwrap());

    let mut idle = Vec::new();
    for _ in 0..allowed() / 100 {
        let connecting = (0..100).map(|_| async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // When it has answered, it holds whatever it holds for a connection. Who is too many gets no answer.
            stream.write_all(HELLO).await.ok()?;
            stream.read_exact(&mut [0; 9]).await.ok()?;
            Some(stream)
        });
        idle.extend(join_all(connecting).await.into_iter().flatten());
    }
    let grown = resident(tccd.id().unwrap()).saturating_sub(before);
    let asked = Instant::now();
    desk.call(STATUS).await.unwrap();

    println!("{} idle connections: {grown} MiB", idle.len());
    assert!(grown <= 256, "{grown} MiB");
    assert_eq!(idle.len(), allowed().min(most - 1), "one has been connected before");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_connects_and_says_nothing_is_sent_away_and_so_is_whoever_is_too_many() {
    let system = System::start().await;
    let known = Known::new();
    let traffic = Traffic { connections_per_address: 3, handshake_seconds: 1, ..Traffic::default() };
    let config = Config { traffic, ..secure::config(&system, known.auth()) };
    let running = secure::coordinator(&config).await;
    // The server says something of its own before it hangs up.
    let is_closed = async |stream: &mut TcpStream| {
        let reading = async { while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {} };
        tokio::time::timeout(Duration::from_secs(20), reading).await.is_ok()
    };

    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(TcpStream::connect(running.address).await.unwrap());
    }
    let mut fourth = TcpStream::connect(running.address).await.unwrap();
    assert!(is_closed(&mut fourth).await, "there are three already");

    three[0].write_all(b"PRI").await.unwrap();
    for silent in &mut three {
        assert!(is_closed(silent).await, "it has said nothing, or next to nothing");
    }
    until("there is room again", || async {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(HELLO).await.is_ok() && stream.read_exact(&mut [0; 9]).await.is_ok()
    })
    .await;
    running.stop().cancel();
    running.ended().await.unwrap();
}

/// A bare HTTP/2 connection.
async fn bare(
    address: SocketAddr,
    window: u32,
) -> (SendRequest<hyper::body::Bytes>, tokio::task::JoinHandle<bool>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake(stream).await.unwrap();
    // Whether it was closed for an error.
    let closed = tokio::spawn(async move { connection.await.is_err() });
    (client.ready().await.unwrap(), closed)
}

fn request(path: &str, key: &str) -> Request<()> {
    let request = Request::post(format!("http://localhost{path}"));
    request
        .header("content-type", "application/grpc")
        .header(AUTHORIZATION, format!("Bearer {key}"))
        .body(())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_what_it_asks_for_loses_its_connection_and_others_do_not() {
    let system = System::start().await;
    let mut known = Known::new();
    let key = known.caller("desk", &["viewer"], &[]);
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let desk = Caller::plain(running.address, Some(&key)).await;
    let (mut client, closed) = bare(running.address, 65_535).await;

    // Each is opened and reset at once (CVE-2023-44487).
    let resetting = async {
        for _ in 0..100_000 {
            let Ok(ready) = client.clone().ready().await else { return };
            client = ready;
            let Ok((_response, mut stream)) = client.send_request(request(STATUS, &key), false) else {
                return;
            };
            stream.send_reset(h2::Reason::CANCEL);
            tokio::task::yield_now().await;
        }
        // Put up with: then the connection ends without an error.
    };
    tokio::time::timeout(PATIENCE, resetting).await.expect("it does not hang");
    drop(client);

    assert!(closed.await.unwrap(), "the server has closed the connection for that");
    desk.call(STATUS).await.expect("others are served");
    running.stop().cancel();
    running.ended().await.unwrap();
}

/// A frame of HTTP/2 on stream 1.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, 0, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_do_not_end_cost_their_client_the_connection() {
    /// So much a server may have to read until it has had enough, what is on the way in buffers included.
    const ENOUGH: usize = 16 * 1024 * 1024;
    let system = System::start().await;
    let coordinator = system.coordinator().await;
    let mut stream = TcpStream::connect(coordinator.running.address).await.unwrap();
    // A header called "a", of 100 bytes, again and again.
    let header = [&[0, 1, b'a', 100][..], &[b'x'; 100]].concat();
    let block = header.repeat(157);

    // The preface, empty settings, and headers that go on in the frames to come (CVE-2024-27316).
    stream.write_all(HELLO).await.unwrap();
    stream.write_all(&frame(1, &block)).await.unwrap();
    let flood = async {
        let mut sent = 0;
        while sent < ENOUGH && stream.write_all(&frame(9, &block)).await.is_ok() {
            sent += block.len();
        }
        sent
    };
    let sent = tokio::time::timeout(PATIENCE, flood).await.expect("it does not hang");

    assert!(sent < ENOUGH, "the server has read {sent} bytes of headers");
    coordinator.client.clone().audit_is_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody() {
    let system = System::start().await;
    let mut known = Known::new();
    let key = known.caller("desk", &["viewer"], &[]);
    let running = secure::coordinator(&secure::config(&system, known.auth())).await;
    let desk = Caller::plain(running.address, Some(&key)).await;
    let (mut client, _closed) = bare(running.address, 0).await;

    let mut unread = Vec::new();
    for _ in 0..500 {
        client = client.ready().await.unwrap();
        let (response, mut stream) = client.send_request(request(STATUS, &key), false).unwrap();
        stream.send_data(hyper::body::Bytes::from_static(&[0; 5]), true).unwrap();
        unread.push(response);
    }
    let responses = tokio::time::timeout(PATIENCE, join_all(unread)).await.expect("all are answered");

    assert!(responses.iter().all(Result::is_ok), "the answers have begun, and nobody reads them");
    for _ in 0..20 {
        let asked = Instant::now();
        desk.call(STATUS).await.unwrap();
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }
    drop(responses);
    running.stop().cancel();
    running.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_written_down() {
    const PASSWORDS: [&str; 2] = ["canary-in-the-url", "canary-in-the-file"];
    let system = System::start().await;
    let mut known = Known::new();
    let servers = Authority::new();
    let server = servers.certificate(&["localhost"]);
    let key = known.caller("desk", &["viewer"], &[]);
    let shop = known.caller("shop", &["application"], &["*"]);
    let provider = Provider::new("a");
    known.write("password", &format!("{}\n", PASSWORDS[1]));
    let mut config = Config {
        tls: Some(known.certify(&server, Some(&Authority::new()))),
        postgres: PostgresConfig { password_file: Some(known.path("password")), ..PostgresConfig::default() },
        ..secure::config(&system, Auth { jwt: Some(known.trust(&[&provider])), ..known.auth() })
    };
    config.coordinator.url.push_str(&format!(" password={}", PASSWORDS[0]));
    // One shard is out of reach, which is told.
    config.shards[1].url = format!("host=/nonexistent user=postgres password={}", PASSWORDS[0]);
    config.listen = "127.0.0.1:0".into();
    known.write("tccd.toml", &toml::to_string(&config).unwrap());
    let log = fs::File::create(known.path("log")).unwrap();
    let program = std::env::current_exe().unwrap();
    let program = program.ancestors().nth(2).unwrap().join("tccd");
    let mut tccd = Command::new(program)
        .args(["serve", "--config"])
        .arg(known.path("tccd.toml"))
        .env("TCC_LOG", "trace")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let written = || fs::read_to_string(known.path("log")).unwrap_or_default();
    until("it is ready", || async { written().contains("tccd: ready on https://") }).await;
    let address =
        written().lines().find_map(|line| line.strip_prefix("tccd: ready on https://").map(str::to_owned));
    let address: SocketAddr = address.unwrap().trim().parse().unwrap();

    let believed = provider.token(json!({ "tcc_roles": ["viewer"] }));
    let expired = provider.token(json!({ "exp": 1 }));
    let forged = Provider::new("a").token(json!({}));
    let unknown = tcc_coordinator::auth::callers::new_key().0;
    let broken = "canary-in-a-broken-token".to_owned();
    // What callers write about their holds is nobody's business, either.
    const PRIVATE: [&str; 2] = ["canary-in-a-label", "canary-in-a-key"];
    let caller = Caller::encrypted(address, &servers, None, Some(&shop)).await.unwrap();
    let labels = [("order".to_owned(), PRIVATE[0].to_owned())].into();
    let named = v1::CreateHoldRequest { labels, ..hold(&on_shard("payer", 0), &on_shard("payee", 0), 1) };
    let keyed =
        v1::CreateHoldRequest { id: String::new(), idempotency_key: PRIVATE[1].into(), ..named.clone() };
    for (request, expected) in [(named, "ACCOUNT_NOT_FOUND"), (keyed, "KEYS_NOT_READY")] {
        let mut holds = HoldServiceClient::new(caller.channel.clone());
        let refused = holds.create_hold(caller.request(request)).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{refused:?}");
    }
    let secrets = [key, shop, believed, expired, forged, unknown, broken];
    for secret in &secrets {
        let caller = Caller::encrypted(address, &servers, None, Some(secret)).await.unwrap();
        let _ = caller.call(STATUS).await;
        let _ = caller.call("/tcc.v1.HoldService/GetHold").await;
    }
    // And a file of callers that somebody broke while a key was in it.
    known.write("callers.toml", &format!("[[caller]]\nname = 1\nkeys = \"{}\"\n", secrets[0]));
    until("it has noticed", || async { written().contains("what was read before stays in use") }).await;
    tccd.kill().unwrap();
    tccd.wait().unwrap();

    let written = written();
    assert!(
        written.contains("TRACE") && written.contains("a credential is not accepted"),
        "it wrote its log"
    );
    let private = server.1.lines().nth(1).unwrap();
    for secret in secrets.iter().map(String::as_str).chain(PASSWORDS).chain(PRIVATE).chain([private]) {
        // A signature alone would not do for a token, and neither may its claims stand there.
        for part in secret.split('.').filter(|part| part.len() >= 16) {
            let line = written.lines().find(|line| line.contains(part));
            assert!(line.is_none(), "{part} stands in the log: {}", line.unwrap());
        }
    }
}
