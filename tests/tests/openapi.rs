//! The served OpenAPI document against the server: by schemathesis, which makes requests from it and holds
//! the answers against it, and by a client in Python that is generated from it.
//!
//! Both come from `coordinator/ops/ensure-python`, which `make test` runs first.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};
use tcc_tests::{
    Client, System,
    http::Http,
    secure::{self, Known},
};
use tokio::process::Command;

/// So many requests are made for each operation.
const EXAMPLES: &str = "25";

struct Site {
    system: System,
    running: tcc_coordinator::serve::Running,
    key: String,
    _known: Known,
}

impl Site {
    async fn start() -> Self {
        let system = System::start().await;
        let mut known = Known::new();
        let key = known.caller("shop", &["application", "ledger_admin"], &["*"]);
        let running = secure::coordinator(&secure::config(&system, known.auth())).await;
        Self { system, running, key, _known: known }
    }

    /// The books are in order.
    async fn audit(&self) {
        let beside = secure::beside(&self.system).await;
        let mut client: Client = beside.client.clone();
        client.audit_is_clean().await;
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tool(name: &str) -> Command {
    let path = root().join("target/tools/openapi/bin").join(name);
    assert!(path.exists(), "{} is missing; run coordinator/ops/ensure-python", path.display());
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_document_says_is_so() {
    let site = Site::start().await;
    let folder = tempfile::tempdir().unwrap();

    let said = tool("schemathesis")
        .arg("--config-file")
        .arg(root().join("tests/openapi/schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", site.running.url())])
        .args(["--header", &format!("Authorization: Bearer {}", site.key)])
        .args(["--max-examples", EXAMPLES, "--seed", "1", "--request-timeout", "30", "--no-color"])
        // Events of a hold that there is do not end.
        .args(["--exclude-path", "/v1/holds/{id}/events"])
        .current_dir(folder.path())
        .output()
        .await
        .unwrap();

    assert!(said.status.success(), "{}", text(&said));
    site.audit().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_generated_from_the_document_has_a_conversation() {
    let site = Site::start().await;
    let folder = tempfile::tempdir().unwrap();
    let document = Http::to(site.running.address).send("GET", "/openapi.json", &Value::Null).await.json;
    let file = folder.path().join("openapi.json");
    std::fs::write(&file, document.to_string()).unwrap();
    secure::beside(&site.system).await.client.clone().until_swept().await;

    let generated = tool("openapi-python-client")
        .args(["generate", "--meta", "none", "--path"])
        .arg(&file)
        .arg("--output-path")
        .arg(folder.path().join("tcc"))
        .output()
        .await
        .unwrap();
    assert!(generated.status.success(), "{}", text(&generated));
    let said = tool("python")
        .arg(root().join("tests/openapi/conversation.py"))
        .env("PYTHONPATH", folder.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("TCC_URL", site.running.url())
        .env("TCC_TOKEN", &site.key)
        .output()
        .await
        .unwrap();

    let expected = "\
issued 100
201 PHASE_HELD true True
422 IDEMPOTENCY_KEY_REUSED amount.value
True
PHASE_CANCELLED
HOLD_NOT_CONFIRMABLE False 409
PHASE_CONFIRMED 7
409 INSUFFICIENT_FUNDS payer
PHASE_HELD INSUFFICIENT_FUNDS
['3', '7'] ''
['POSTING_KIND_PAY', 'POSTING_KIND_PAY']
10 1
";
    assert_eq!(text(&said), expected);
    site.audit().await;
}
