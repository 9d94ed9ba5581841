//! Texts with places for what is known of an order, and for secrets.
//!
//! `{amount}` is such a place. In a body's string that is nothing but `{amount:number}` it becomes a number. In a url what is
//! put in is percent-encoded. Secrets come from files, are read each time (so one that is exchanged counts at once), and
//! appear in nothing but what is sent: a [`Template`] prints as it was written.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Number, Value};
use std::collections::BTreeMap;

/// What stays as it is in a url (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What the places of a template stand for.
pub type Values = BTreeMap<String, String>;

/// What is wrong with a template, or with what is to be put in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(String);

/// A text with places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(String),
}

impl Template {
    /// Reads a text: `{name}` is a place, `{{` and `}}` are braces.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] if a brace stands alone, or a place is not one of `known` (`secret:` begins any other).
    pub fn read(text: &str, known: &[&str]) -> Result<Self, TemplateError> {
        let wrong = |what: &str| TemplateError(format!("{text:?}: {what}"));
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                plain.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let place = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let (name, after) = place.ok_or_else(|| wrong("a brace stands alone; write {{ or }} for one"))?;
            let plain_name = name.strip_suffix(":number").unwrap_or(name);
            if !known.contains(&plain_name) && !name.starts_with("secret:") {
                return Err(wrong(&format!("there is no {{{name}}}; there is {{{}}}", known.join("}, {"))));
            }
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Place(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it has this place.
    #[must_use]
    pub fn names(&self, place: &str) -> bool {
        self.places().any(|name| name.strip_suffix(":number").unwrap_or(name) == place)
    }

    /// The secrets that it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.places().filter_map(|name| name.strip_prefix("secret:"))
    }

    fn places(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Place(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// With everything put in.
    #[must_use]
    pub fn fill(&self, values: &Values) -> String {
        self.fill_with(values, str::to_owned)
    }

    /// With everything put in as a part of a url.
    #[must_use]
    pub fn fill_url(&self, values: &Values) -> String {
        self.fill_with(values, |value| utf8_percent_encode(value, ESCAPED).to_string())
    }

    fn fill_with(&self, values: &Values, put: impl Fn(&str) -> String) -> String {
        let filled = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Place(name) => {
                let name = name.strip_suffix(":number").unwrap_or(name);
                put(values.get(name).map_or("", String::as_str))
            }
        });
        filled.collect()
    }

    fn fill_json(&self, values: &Values) -> Value {
        let filled = self.fill(values);
        let is_number = matches!(self.parts.as_slice(), [Part::Place(name)] if name.ends_with(":number"));
        match filled.parse::<Number>() {
            Ok(number) if is_number => Value::Number(number),
            _ => Value::String(filled),
        }
    }
}

/// A body whose strings are templates.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// A string.
    Text(Template),
    /// An object.
    Object(Vec<(String, Body)>),
    /// An array.
    Array(Vec<Body>),
    /// Anything else, as it is.
    Plain(Value),
}

impl Body {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// As [`Template::read`].
    pub fn read(value: &Value, known: &[&str]) -> Result<Self, TemplateError> {
        Ok(match value {
            Value::String(text) => Self::Text(Template::read(text, known)?),
            Value::Array(items) => {
                Self::Array(items.iter().map(|item| Self::read(item, known)).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let read = |(name, value): (&String, &Value)| Ok((name.clone(), Self::read(value, known)?));
                Self::Object(fields.iter().map(read).collect::<Result<_, TemplateError>>()?)
            }
            other => Self::Plain(other.clone()),
        })
    }

    /// Every template in it.
    #[must_use]
    pub fn templates(&self) -> Vec<&Template> {
        match self {
            Self::Text(template) => vec![template],
            Self::Object(fields) => fields.iter().flat_map(|(_, body)| body.templates()).collect(),
            Self::Array(items) => items.iter().flat_map(Self::templates).collect(),
            Self::Plain(_) => Vec::new(),
        }
    }

    /// With everything put in, as JSON.
    #[must_use]
    pub fn fill(&self, values: &Values) -> Value {
        match self {
            Self::Text(template) => template.fill_json(values),
            Self::Object(fields) => {
                Value::Object(fields.iter().map(|(name, body)| (name.clone(), body.fill(values))).collect())
            }
            Self::Array(items) => Value::Array(items.iter().map(|body| body.fill(values)).collect()),
            Self::Plain(value) => value.clone(),
        }
    }

    /// With everything put in, as a form (`application/x-www-form-urlencoded`): the fields of an object.
    #[must_use]
    pub fn fill_form(&self, values: &Values) -> String {
        let Value::Object(fields) = self.fill(values) else { return String::new() };
        let pairs = fields.iter().map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{}={}", utf8_percent_encode(name, ESCAPED), utf8_percent_encode(&value, ESCAPED))
        });
        pairs.collect::<Vec<_>>().join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const KNOWN: &[&str] = &["key", "amount", "destination"];

    fn values() -> Values {
        let pairs =
            [("key", "k-1"), ("amount", "250"), ("destination", "a\"b&c/ü"), ("secret:token", "s3cret")];
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_is_put_in_cannot_break_out_of_where_it_is_put() {
        let url = Template::read("https://x/{destination}?key={key}", KNOWN).unwrap();
        let body =
            json!({"to": "{destination}", "amount": "{amount:number}", "note": "pay {amount}", "n": 7});
        let body = Body::read(&body, KNOWN).unwrap();

        assert_eq!(url.fill_url(&values()), "https://x/a%22b%26c%2F%C3%BC?key=k-1");
        assert_eq!(body.fill(&values()), json!({"to": "a\"b&c/ü", "amount": 250, "note": "pay 250", "n": 7}));
        assert_eq!(body.fill_form(&values()), "to=a%22b%26c%2F%C3%BC&amount=250&note=pay%20250&n=7");
    }

    #[test]
    fn a_template_that_cannot_be_filled_is_told_before_it_is_used() {
        for wrong in ["{amout}", "{key", "key}", "{}"] {
            assert!(Template::read(wrong, KNOWN).is_err(), "{wrong}");
        }
        assert_eq!(Template::read("{{key}} {key}", KNOWN).unwrap().fill(&values()), "{key} k-1");
    }

    #[test]
    fn a_secret_is_in_what_is_sent_and_nowhere_else() {
        let header = Template::read("Bearer {secret:token}", KNOWN).unwrap();

        assert_eq!(header.fill(&values()), "Bearer s3cret");
        assert_eq!(header.secrets().collect::<Vec<_>>(), ["token"]);
        assert!(!format!("{header:?}").contains("s3cret"));
    }
}
