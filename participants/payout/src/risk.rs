//! A risk check as a branch: Try scores the payload, and refuses above a threshold. There is nothing to confirm or to cancel.
//!
//! The score is the sum of the rules that fit, and what an external scorer adds. The scorer is asked before the local
//! transaction begins, with a deadline of its own that is short: it stands in the way of whoever creates a transaction. What its
//! silence means is configured: a refusal, or UNKNOWN, after which the coordinator asks again until its own patience for Try
//! ends. A verdict is given once and kept by the fence, whatever the scorer says later.

use crate::{
    config::{ConfigError, TlsFiles},
    generic::{Secrets, refusal},
    http::{Http, check_url},
    template::{Template, Values},
};
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    Request,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tcc_core::{Operation, Outcome, Refusal};
use tcc_participant::{
    Branch, Reservation, Resource, Retry, Server, Step, Tx,
    fence::Fenced,
    serve::{self, Listen, Running, ServeError, Served},
    wire::Description,
};
use tonic::service::Routes;

const INVALID: Refusal = Refusal::own("RISK_PAYLOAD_INVALID");
const TOO_HIGH: Refusal = Refusal::own("RISK_TOO_HIGH");
const SILENT: Refusal = Refusal::own("RISK_NOT_SCORED");

/// What `tcc-risk` is told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskConfig {
    /// What the participant is called in transactions.
    #[serde(default = "participant")]
    pub participant: String,
    /// Where it listens.
    #[serde(default = "listen")]
    pub listen: String,
    /// Its side of TLS, without which it listens on this machine alone.
    pub tls: Option<TlsFiles>,
    /// Where metrics and health are served over HTTP; without it nowhere.
    pub telemetry: Option<String>,
    /// Its database, for the fences.
    #[serde(default)]
    pub database: String,
    /// A file with `database`.
    pub database_file: Option<PathBuf>,
    /// A greater score is refused.
    pub refuse_above: i64,
    /// What adds to the score.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Who else is asked.
    pub scorer: Option<ScorerConfig>,
}

/// What adds to the score.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Where in the payload, which is JSON: a pointer (RFC 6901).
    pub at: String,
    /// It fits if the number there is greater,
    pub above: Option<i64>,
    /// or if the value there is one of these,
    #[serde(default)]
    pub is: Vec<Value>,
    /// or if there is none.
    #[serde(default)]
    pub is_missing: bool,
    /// So much.
    pub score: i64,
    /// The reason of a refusal to which it has added most.
    pub reason: String,
}

/// A scorer that is asked over HTTP: it gets `{"transaction": …, "payload": …}` by POST.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScorerConfig {
    /// Where.
    pub url: String,
    /// Values may have `{secret:NAME}`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Files with secrets.
    #[serde(default)]
    pub secrets: BTreeMap<String, PathBuf>,
    /// How long it may take.
    #[serde(default = "deadline_ms")]
    pub deadline_ms: u64,
    /// What it means if it does not answer with a score.
    pub silence: Silence,
    /// Where in its answer the score is: a whole number.
    #[serde(default = "score")]
    pub score: String,
    /// Where the reason is, if there is one.
    #[serde(default = "reason")]
    pub reason: String,
    /// The authorities of its certificate, if they are not the system's.
    pub ca: Option<PathBuf>,
}

/// What it means if a scorer does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Silence {
    /// No.
    Refuse,
    /// Ask again.
    Wait,
}

impl RiskConfig {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.display().to_string(), source })
        };
        let shape =
            |source| ConfigError::Shape { path: path.display().to_string(), source: Box::new(source) };
        let mut config: Self = toml::from_str(&read(path)?).map_err(shape)?;
        if let Some(file) = &config.database_file {
            config.database = read(file)?.trim().to_owned();
        }
        Ok(config)
    }
}

/// What a payload came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Refused(Refusal),
    /// Nobody knows yet.
    Silent,
}

/// Scores payloads.
struct Judge {
    refuse_above: i64,
    rules: Vec<(Rule, Refusal)>,
    scorer: Option<Scorer>,
}

struct Scorer {
    config: ScorerConfig,
    headers: Vec<(HeaderName, Template)>,
    secrets: Secrets,
    http: Http,
}

impl Judge {
    fn new(config: &RiskConfig) -> Result<Self, ConfigError> {
        let rules = config.rules.iter().map(|rule| {
            let wrong = |what: &str| ConfigError::value("rules", format!("{}: {what}", rule.at));
            if rule.above.is_none() && rule.is.is_empty() && !rule.is_missing {
                return Err(wrong("above, is or is_missing says when it fits"));
            }
            let reason = Refusal::from_code(&rule.reason)
                .map_err(|_| wrong("a reason is 1 to 47 of A-Z, 0-9 and _, a letter first"))?;
            Ok((rule.clone(), reason))
        });
        let rules = rules.collect::<Result<_, _>>()?;
        let scorer = config.scorer.as_ref().map(Scorer::new).transpose()?;
        Ok(Self { refuse_above: config.refuse_above, rules, scorer })
    }

    async fn judge(&self, branch: &Branch) -> Verdict {
        let Ok(payload) = serde_json::from_slice::<Value>(&branch.payload) else {
            return Verdict::Refused(INVALID);
        };
        let fitting = self.rules.iter().filter(|(rule, _)| rule.fits(&payload));
        let mut parts: Vec<(i64, Refusal)> = fitting.map(|(rule, reason)| (rule.score, *reason)).collect();
        // What the rules refuse nobody else is asked about.
        if let (Some(scorer), None) = (&self.scorer, self.refusal(&parts)) {
            match scorer.ask(branch, &payload).await {
                Ok(part) => parts.push(part),
                Err(why) => {
                    tracing::warn!(id = %branch.transaction, why, "the scorer does not answer");
                    return match scorer.config.silence {
                        Silence::Refuse => Verdict::Refused(SILENT),
                        Silence::Wait => Verdict::Silent,
                    };
                }
            }
        }
        let refusal = self.refusal(&parts);
        tracing::info!(id = %branch.transaction, score = sum(&parts), ?refusal, "scored");
        refusal.map_or(Verdict::Passed, Verdict::Refused)
    }

    /// The reason of the greatest part, if all together are too much.
    fn refusal(&self, parts: &[(i64, Refusal)]) -> Option<Refusal> {
        let greatest = parts.iter().max_by_key(|(score, _)| *score)?;
        (sum(parts) > self.refuse_above).then_some(greatest.1)
    }
}

fn sum(parts: &[(i64, Refusal)]) -> i64 {
    parts.iter().fold(0, |sum, (score, _)| sum.saturating_add(*score))
}

impl Rule {
    fn fits(&self, payload: &Value) -> bool {
        match payload.pointer(&self.at) {
            None => self.is_missing,
            Some(value) => {
                let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
                let is_above = self.above.is_some_and(|above| match number {
                    Some(number) => number > above,
                    // What is no whole number of 64 bits may be anything: it is looked at as if it were large.
                    None => true,
                });
                is_above || self.is.contains(value)
            }
        }
    }
}

impl Scorer {
    fn new(config: &ScorerConfig) -> Result<Self, ConfigError> {
        check_url(&config.url).map_err(|what| ConfigError::value("scorer.url", what))?;
        let headers = config.headers.iter().map(|(name, value)| {
            let wrong = |what: String| ConfigError::value("scorer.headers", what);
            let header = name.parse().map_err(|_| wrong(format!("{name:?} is no header")))?;
            Ok((header, Template::read(value, &[]).map_err(|error| wrong(error.to_string()))?))
        });
        let headers: Vec<(HeaderName, Template)> = headers.collect::<Result<_, ConfigError>>()?;
        let secrets = Secrets(config.secrets.clone());
        secrets.check(headers.iter().flat_map(|(_, value)| value.secrets()), "scorer.secrets")?;
        let http = Http::new(config.ca.as_deref()).map_err(|what| ConfigError::value("scorer.ca", what))?;
        Ok(Self { config: config.clone(), headers, secrets, http })
    }

    async fn ask(&self, branch: &Branch, payload: &Value) -> Result<(i64, Refusal), String> {
        let mut values = Values::new();
        self.secrets.read_into(&mut values).await?;
        let mut request = Request::post(&self.config.url).header(CONTENT_TYPE, "application/json");
        for (name, template) in &self.headers {
            let value = HeaderValue::from_str(&template.fill(&values));
            request = request
                .header(name, value.map_err(|_| format!("{name} has a value that no header can have"))?);
        }
        let body = json!({"transaction": branch.transaction.to_string(), "payload": payload}).to_string();
        let request = request.body(Full::new(body.into())).map_err(|error| error.to_string())?;
        let reply = self.http.send(request, Duration::from_millis(self.config.deadline_ms)).await?;
        if !reply.status.is_success() {
            return Err(format!("it answers {}", reply.status));
        }
        let answer: Value = serde_json::from_slice(&reply.body).map_err(|error| error.to_string())?;
        let score = answer.pointer(&self.config.score).and_then(Value::as_i64);
        let score =
            score.ok_or_else(|| format!("its answer has no whole number at {}", self.config.score))?;
        let reason = answer.pointer(&self.config.reason).and_then(Value::as_str);
        Ok((score, refusal("RISK_", reason, TOO_HIGH)))
    }
}

/// The fences alone: a verdict comes with the operation.
struct Verdicts;

impl Resource for Verdicts {
    async fn reserve(&self, _: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        match branch.note::<Verdict>() {
            Some(Verdict::Passed) => Ok(Reservation::Made),
            Some(Verdict::Refused(refusal)) => Ok(Reservation::Refused(*refusal)),
            Some(Verdict::Silent) | None => Err(Retry::because("there is no score")),
        }
    }

    async fn confirm(&self, _: &Tx<'_>, _: &Branch) -> Result<(), Retry> {
        Ok(())
    }

    async fn cancel(&self, _: &Tx<'_>, _: &Branch) -> Result<(), Retry> {
        Ok(())
    }
}

struct Front {
    fenced: Fenced,
    judge: Judge,
}

impl Served for Front {
    fn describe(&self) -> Description {
        self.fenced.describe()
    }

    fn fenced(&self) -> Option<&Fenced> {
        Some(&self.fenced)
    }

    fn answer(&self, step: Step) -> BoxFuture<'_, Outcome> {
        Box::pin(async move {
            if step.operation != Operation::Try {
                return self.fenced.call(step).await.outcome;
            }
            let verdict = self.judge.judge(&step.branch).await;
            match self.fenced.call(step.with_note(verdict)).await.outcome {
                // The scorer's silence is nobody's fault here. A fence that was there has answered all the same.
                Outcome::Failed(_) if verdict == Verdict::Silent => {
                    Outcome::Unknown("the risk scorer does not answer".into())
                }
                outcome => outcome,
            }
        })
    }
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum RiskError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The participant does not serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Starts it. It serves when this returns.
///
/// # Errors
///
/// [`RiskError`].
pub async fn start(config: &RiskConfig) -> Result<Running, RiskError> {
    let judge = Judge::new(config)?;
    let fenced = Server::new(&config.participant, &config.database)?.fenced_each(Verdicts).await?;
    let tls = config.tls.as_ref().map(TlsFiles::read).transpose()?;
    let listen = Listen { address: config.listen.clone(), tls, telemetry: config.telemetry.clone() };
    Ok(serve::start_beside(Arc::new(Front { fenced, judge }), Routes::default(), &listen).await?)
}

fn participant() -> String {
    "risk".into()
}

fn listen() -> String {
    "127.0.0.1:7082".into()
}

fn deadline_ms() -> u64 {
    10
}

fn score() -> String {
    "/score".into()
}

fn reason() -> String {
    "/reason".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_fits_what_it_names_and_what_hides_from_it() {
        let above = Rule {
            at: "/amount".into(),
            above: Some(1_000),
            is: Vec::new(),
            is_missing: true,
            score: 1,
            reason: "X".into(),
        };
        let one_of = Rule { at: "/country".into(), above: None, is: vec![json!("XX")], ..above.clone() };

        for (payload, fits) in [
            (json!({"amount": 1_001}), true),
            (json!({"amount": 1_000}), false),
            (json!({"amount": "1001"}), true),
            (json!({"amount": 1e30}), true),
            (json!({}), true),
        ] {
            assert_eq!(above.fits(&payload), fits, "{payload}");
        }
        assert!(one_of.fits(&json!({"country": "XX"})) && !one_of.fits(&json!({"country": "DE"})));
    }

    #[test]
    fn the_reason_is_of_what_adds_most() {
        let (small, large) = (Refusal::own("SMALL"), Refusal::own("LARGE"));
        let judge = Judge { refuse_above: 100, rules: Vec::new(), scorer: None };

        assert_eq!(judge.refusal(&[(40, small), (61, large)]), Some(large));
        assert_eq!(judge.refusal(&[(40, small), (60, large)]), None);
        assert_eq!(judge.refusal(&[]), None);
    }
}
