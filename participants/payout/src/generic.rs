//! A provider that a configuration describes: requests are templates, and a list says what answers mean.
//!
//! What fits none of the list is unknown, and so is what cannot be read: only an answer that somebody has written down as a
//! proof ends a payout. A few statuses say nothing about a payout whatever the list says, and cannot stand in it as one.

use crate::{
    config::{AnswerConfig, CallConfig, ConfigError, CurrencyRules, Meaning, ProviderConfig},
    http::{Http, Reply, check_url},
    provider::{Order, Provider, Said},
    template::{Body, Template, Values},
};
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};
use tcc_core::Refusal;

/// What templates may name.
const PLACES: &[&str] =
    &["key", "transaction", "recipient", "destination", "amount", "amount:decimal", "currency"];
/// These speak of the caller, of other requests or of the server, and prove nothing about a payout.
const NO_PROOF: [u16; 7] = [401, 403, 407, 408, 409, 425, 429];
/// A refusal whose reason cannot be read.
const UNNAMED: Refusal = Refusal::own("PAYOUT_REFUSED");

/// A provider as a configuration describes it.
pub struct Generic {
    http: Http,
    secrets: Secrets,
    deadline: Duration,
    decimals: BTreeMap<String, u32>,
    send: Calling,
    look_up: Option<Calling>,
}

impl Generic {
    /// As configured.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub fn new(
        config: &ProviderConfig,
        currencies: &BTreeMap<String, CurrencyRules>,
    ) -> Result<Self, ConfigError> {
        let send = Calling::new(&config.send, PLACES, "provider.send")?;
        if !send.names("key") {
            let what =
                "no {key} in url, headers or body: the provider could not know a repeated request again";
            return Err(ConfigError::value("provider.send", what));
        }
        if config.send.answers.iter().any(|answer| answer.means == Meaning::NotThere) {
            return Err(ConfigError::value("provider.send.answers", "not_there is for look_up"));
        }
        let look_up = match &config.look_up {
            Some(call) => Some(Calling::new(call, PLACES, "provider.look_up")?),
            None => None,
        };
        let secrets = Secrets(config.secrets.clone());
        let needed = send.secrets().chain(look_up.iter().flat_map(Calling::secrets));
        secrets.check(needed, "provider.secrets")?;
        Ok(Self {
            http: Http::new(config.ca.as_deref()).map_err(|what| ConfigError::value("provider.ca", what))?,
            secrets,
            deadline: Duration::from_millis(config.deadline_ms),
            decimals: currencies.iter().map(|(name, rules)| (name.clone(), rules.decimals)).collect(),
            send,
            look_up,
        })
    }

    async fn ask(&self, calling: &Calling, order: &Order) -> Said {
        let decimals = self.decimals.get(&order.currency).copied().unwrap_or_default();
        let mut values: Values = [
            ("key", order.id.key()),
            ("transaction", order.id.transaction.to_string()),
            ("recipient", order.recipient.clone()),
            ("destination", order.destination.clone()),
            ("amount", order.amount.to_string()),
            ("amount:decimal", decimal(order.amount, decimals)),
            ("currency", order.currency.clone()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let request = match self.secrets.read_into(&mut values).await {
            Ok(()) => calling.request(&values),
            Err(what) => Err(what),
        };
        let reply = match request {
            Ok(request) => self.http.send(request, self.deadline).await,
            Err(what) => Err(what),
        };
        match reply {
            Ok(reply) => calling.read(&reply),
            Err(what) => Said::Unknown(what),
        }
    }
}

impl Provider for Generic {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said> {
        Box::pin(self.ask(&self.send, order))
    }

    fn can_look_up(&self) -> bool {
        self.look_up.is_some()
    }

    fn look_up<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Said> {
        Box::pin(async move {
            match &self.look_up {
                Some(calling) => self.ask(calling, order).await,
                None => Said::Unknown("it cannot be looked up".into()),
            }
        })
    }
}

/// Secrets, each in a file of its own.
pub(crate) struct Secrets(pub BTreeMap<String, PathBuf>);

impl Secrets {
    /// Whether all that are needed are there.
    pub(crate) fn check<'a>(
        &self,
        needed: impl Iterator<Item = &'a str>,
        key: &str,
    ) -> Result<(), ConfigError> {
        for name in needed {
            let Some(path) = self.0.get(name) else {
                return Err(ConfigError::value(key, format!("there is no {name:?}, which a template needs")));
            };
            read_secret(path).map_err(|what| ConfigError::value(key, what))?;
        }
        Ok(())
    }

    /// Read each time: one that is exchanged counts at once.
    pub(crate) async fn read_into(&self, values: &mut Values) -> Result<(), String> {
        for (name, path) in &self.0 {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_secret(&path)).await;
            values.insert(format!("secret:{name}"), read.map_err(|e| e.to_string())??);
        }
        Ok(())
    }
}

fn read_secret(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match text.trim_end() {
        "" => Err(format!("{} is empty", path.display())),
        text => Ok(text.to_owned()),
    }
}

/// One kind of request.
pub(crate) struct Calling {
    method: Method,
    url: Template,
    headers: Vec<(HeaderName, Template)>,
    is_form: bool,
    body: Option<Body>,
    answers: Vec<AnswerConfig>,
}

impl Calling {
    pub(crate) fn new(config: &CallConfig, places: &[&str], key: &str) -> Result<Self, ConfigError> {
        let wrong = |part: &str, what: String| ConfigError::value(&format!("{key}.{part}"), what);
        check_url(&config.url).map_err(|what| wrong("url", what))?;
        let template = |part: &str, text: &str| {
            Template::read(text, places).map_err(|error| wrong(part, error.to_string()))
        };
        let url = template("url", &config.url)?;
        if url.secrets().next().is_some() {
            return Err(wrong("url", "a secret in a url ends up in logs; put it in a header".into()));
        }
        let headers = config.headers.iter().map(|(name, value)| {
            let header = name.parse().map_err(|_| wrong("headers", format!("{name:?} is no header")))?;
            Ok((header, template("headers", value)?))
        });
        let body = config.body.as_ref().map(|body| Body::read(body, places));
        for answer in &config.answers {
            let bad = answer.status.iter().find(|status| NO_PROOF.contains(status) || **status >= 500);
            if let (Meaning::Never | Meaning::Paid | Meaning::NotThere, Some(status)) = (answer.means, bad) {
                let what = format!("{status} says nothing about a payout: it can be unknown or pending");
                return Err(wrong("answers", what));
            }
        }
        Ok(Self {
            method: config.method.parse().map_err(|_| wrong("method", format!("{:?}", config.method)))?,
            headers: headers.collect::<Result<_, ConfigError>>()?,
            is_form: config.form,
            body: body.transpose().map_err(|error| wrong("body", error.to_string()))?,
            answers: config.answers.clone(),
            url,
        })
    }

    fn templates(&self) -> impl Iterator<Item = &Template> {
        let headers = self.headers.iter().map(|(_, value)| value);
        [&self.url].into_iter().chain(headers).chain(self.body.iter().flat_map(Body::templates))
    }

    fn names(&self, place: &str) -> bool {
        self.templates().any(|template| template.names(place))
    }

    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        self.templates().flat_map(Template::secrets)
    }

    /// The request, with everything put in.
    pub(crate) fn request(&self, values: &Values) -> Result<Request<Full<Bytes>>, String> {
        let mut builder = Request::builder().method(self.method.clone()).uri(self.url.fill_url(values));
        for (name, template) in &self.headers {
            let mut value = HeaderValue::from_str(&template.fill(values))
                .map_err(|_| format!("{name} has a value that no header can have"))?;
            value.set_sensitive(template.secrets().next().is_some());
            builder = builder.header(name, value);
        }
        let body = match &self.body {
            None => Bytes::new(),
            Some(body) if self.is_form => {
                builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
                body.fill_form(values).into()
            }
            Some(body) => {
                builder = builder.header(CONTENT_TYPE, "application/json");
                body.fill(values).to_string().into()
            }
        };
        builder.body(Full::new(body)).map_err(|error| error.to_string())
    }

    /// What an answer means.
    pub(crate) fn read(&self, reply: &Reply) -> Said {
        if reply.status == StatusCode::TOO_MANY_REQUESTS {
            return Said::TooMany(retry_after(&reply.headers));
        }
        let json: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        let fits = |answer: &&AnswerConfig| {
            let is_there = match &answer.at {
                None => true,
                Some(pointer) => json.pointer(pointer).is_some_and(|value| answer.is.contains(value)),
            };
            answer.status.contains(&reply.status.as_u16()) && is_there
        };
        let text = |pointer: &Option<String>| {
            let value = json.pointer(pointer.as_deref()?)?;
            Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        match self.answers.iter().find(fits) {
            Some(answer) => match answer.means {
                Meaning::Paid => Said::Paid { reference: text(&answer.reference).unwrap_or_default() },
                Meaning::Pending => Said::Pending,
                Meaning::Never => Said::Never(refusal("PAYOUT_", text(&answer.reason).as_deref(), UNNAMED)),
                Meaning::NotThere => Said::NotThere,
                Meaning::Unknown => Said::Unknown(format!("it answers {}", reply.status)),
            },
            None => {
                Said::Unknown(format!("it answers {}, which the configuration does not know", reply.status))
            }
        }
    }
}

/// Somebody else's reason in the form of one: `card-declined` is PAYOUT_CARD_DECLINED. With its prefix it cannot be taken for
/// one of the ledger's, such as INSUFFICIENT_FUNDS.
pub(crate) fn refusal(prefix: &str, text: Option<&str>, otherwise: Refusal) -> Refusal {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return otherwise };
    let code: String = prefix
        .chars()
        .chain(text.chars())
        .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' })
        .take(47)
        .collect();
    Refusal::from_code(&code).unwrap_or(otherwise)
}

/// In seconds; the other form, a date, is read as if there were none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Minor units with a point: 1234 with 2 decimals is 12.34.
fn decimal(amount: i64, decimals: u32) -> String {
    let digits = format!("{amount:0>width$}", width = decimals as usize + 1);
    match digits.split_at(digits.len() - decimals as usize) {
        (whole, "") => whole.to_owned(),
        (whole, part) => format!("{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answers() -> Calling {
        let config: CallConfig = serde_json::from_value(json!({
            "method": "POST", "url": "https://api.example/payouts",
            "headers": {"Idempotency-Key": "{key}"},
            "answers": [
                {"status": [200], "at": "/status", "is": ["paid"], "means": "paid", "reference": "/id"},
                {"status": [200, 202], "at": "/status", "is": ["pending"], "means": "pending"},
                {"status": [422], "means": "never", "reason": "/error/code"},
            ]
        }))
        .unwrap();
        Calling::new(&config, PLACES, "send").unwrap()
    }

    fn reply(status: u16, body: &str) -> Reply {
        let status = StatusCode::from_u16(status).unwrap();
        Reply { status, headers: HeaderMap::new(), body: body.to_owned().into() }
    }

    #[test]
    fn only_what_the_list_calls_a_proof_ends_a_payout() {
        let read = |status, body| answers().read(&reply(status, body));

        assert_eq!(read(200, r#"{"status":"paid","id":"p1"}"#), Said::Paid { reference: "p1".into() });
        assert_eq!(read(202, r#"{"status":"pending"}"#), Said::Pending);
        assert_eq!(
            read(422, r#"{"error":{"code":"account-closed"}}"#),
            Said::Never(Refusal::own("PAYOUT_ACCOUNT_CLOSED"))
        );
        assert_eq!(read(422, "<html>"), Said::Never(UNNAMED));
        assert_eq!(read(429, ""), Said::TooMany(None));
        for (status, body) in
            [(200, "{}"), (200, "paid"), (201, r#"{"status":"paid"}"#), (404, ""), (500, ""), (302, "")]
        {
            assert!(matches!(read(status, body), Said::Unknown(_)), "{status} {body}");
        }
    }

    #[test]
    fn a_status_that_proves_nothing_cannot_be_called_a_proof() {
        for status in [401, 403, 408, 409, 429, 500, 503] {
            let config: CallConfig = serde_json::from_value(json!({
                "method": "POST", "url": "https://api.example/{key}",
                "answers": [{"status": [400, status], "means": "never"}]
            }))
            .unwrap();

            assert!(Calling::new(&config, PLACES, "send").is_err(), "{status}");
        }
    }

    #[test]
    fn amounts_are_written_as_the_provider_wants_them() {
        assert_eq!(decimal(1234, 2), "12.34");
        assert_eq!(decimal(5, 2), "0.05");
        assert_eq!(decimal(5, 0), "5");
        assert_eq!(decimal(i64::MAX, 3), "9223372036854775.807");
    }
}
