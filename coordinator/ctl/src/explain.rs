//! `tccctl explain`: what an error means, and what to do about it.
//!
//! Asks no server: the registry of reasons is part of the API, and compiled in. It keeps out advice that depends on the
//! call that failed, which the command that failed gives itself.

use crate::{
    errors::{Exit, Failure},
    output::Output,
};
use serde::Serialize;
use std::fmt;
use tcc_proto::reason::{Reason, code_name, page};

/// Explains one reason.
pub fn one(output: &Output, reason: Reason) -> Result<Exit, Box<Failure>> {
    output.show(&Explanation::of(reason))?;
    Ok(Exit::Done)
}

/// Prints the manual's page, which explains them all.
pub fn all(output: &Output) -> Result<Exit, Box<Failure>> {
    output.show(&Page(Reason::ALL.iter().map(|reason| Explanation::of(*reason)).collect()))?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct Explanation {
    reason: &'static str,
    code: &'static str,
    http: u16,
    meaning: &'static str,
    advice: &'static str,
}

impl Explanation {
    fn of(reason: Reason) -> Self {
        Self {
            reason: reason.name(),
            code: code_name(reason.code()),
            http: reason.http(),
            meaning: reason.meaning(),
            advice: reason.advice(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, code, http, meaning, advice } = self;
        write!(f, "{reason} ({code}, HTTP {http})\n{meaning}\n{advice}")
    }
}

#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Page(Vec<Explanation>);

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(page().trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_says_what_it_means_and_what_to_do() {
        let text = Explanation::of(Reason::SameAccount).to_string();

        assert_eq!(
            text,
            "SAME_ACCOUNT (INVALID_ARGUMENT, HTTP 400)\nPayer and payee are the same account.\nName two accounts."
        );
    }
}
