//! A participant without code: three SQL functions, called by name.
//!
//! Whoever owns a PostgreSQL database writes `reserve`, `confirm` and `cancel` in it, in any language that it has; this calls
//! them inside the local transaction that has the fence. Each takes the transaction's id, the branch's index and its payload
//! as jsonb, text or bytea, whichever it is declared with:
//!
//! ```sql
//! CREATE FUNCTION shop.reserve(transaction uuid, branch integer, payload jsonb) RETURNS text …
//! ```
//!
//! `reserve` returns NULL if it has reserved, or the reason why it refuses, such as 'SOLD_OUT'; what it has changed before is
//! undone then. What the others return is not looked at. An optional `veto`, asked before `confirm`, returns NULL or a reason
//! like `reserve`. An exception means "later": it is all called again.

use crate::{
    resource::{Branch, Reservation, Resource, Retry},
    serve::{Running, ServeError, Server, until_stopped},
    tx::Tx,
};
use std::env;
use tcc_core::Refusal;
use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

const PAYLOAD_INVALID: Refusal = Refusal::own("PAYLOAD_INVALID");

/// What the functions are called, as SQL names them: `shop.reserve`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Try.
    pub reserve: String,
    /// Confirm.
    pub confirm: String,
    /// Cancel.
    pub cancel: String,
    /// Asked before Confirm of a pivot.
    pub veto: Option<String>,
}

/// Why functions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// There is none.
    #[error(
        "the database has no function {0}(uuid, integer, jsonb), nor with text or bytea; create it, or write its name as \
         SQL does"
    )]
    Missing(String),
    /// It returns something else.
    #[error("function {0} does not return text: NULL for yes, a reason such as SOLD_OUT for no")]
    NotText(String),
    /// A statement failed.
    #[error("looking for the functions: {0}")]
    Database(#[from] tokio_postgres::Error),
}

impl Names {
    /// As the environment says: `TCC_RESERVE`, `TCC_CONFIRM`, `TCC_CANCEL` and, if there is one, `TCC_VETO`.
    ///
    /// # Errors
    ///
    /// [`ServeError::Unset`].
    pub fn from_env() -> Result<Self, ServeError> {
        let variable = |name| env::var(name).map_err(|_| ServeError::Unset(name));
        Ok(Self {
            reserve: variable("TCC_RESERVE")?,
            confirm: variable("TCC_CONFIRM")?,
            cancel: variable("TCC_CANCEL")?,
            veto: env::var("TCC_VETO").ok(),
        })
    }
}

/// Starts a participant that calls these functions. It serves when this returns.
///
/// # Errors
///
/// [`ServeError`].
pub async fn start(server: Server, names: &Names) -> Result<Running, ServeError> {
    let client = server.open().await?;
    let functions = Functions {
        reserve: Function::find(&client, &names.reserve, true).await?,
        confirm: Function::find(&client, &names.confirm, false).await?,
        cancel: Function::find(&client, &names.cancel, false).await?,
    };
    match &names.veto {
        None => server.start(functions).await,
        Some(name) => {
            let veto = Function::find(&client, name, true).await?;
            server.start(WithVeto { functions, veto }).await
        }
    }
}

/// As [`start`], until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// [`ServeError`].
pub async fn serve(server: Server, names: &Names) -> Result<(), ServeError> {
    let name = server.name().to_owned();
    until_stopped(&name, start(server, names).await?).await
}

/// A function that is there.
struct Function {
    /// The statement that calls it.
    sql: String,
    /// What its payload is declared as.
    takes: Type,
}

impl Function {
    async fn find(client: &Client, name: &str, must_be_text: bool) -> Result<Self, FunctionError> {
        let sql = "-- find_function
            SELECT quote_ident(n.nspname) || '.' || quote_ident(p.proname), c.type,
                p.prorettype = 'text'::regtype AND NOT p.proretset
            FROM unnest(ARRAY['jsonb', 'text', 'bytea']) WITH ORDINALITY AS c (type, nth)
            JOIN pg_proc p ON p.oid = to_regprocedure($1 || '(uuid, integer, ' || c.type || ')') AND p.prokind = 'f'
            JOIN pg_namespace n ON n.oid = p.pronamespace
            ORDER BY c.nth LIMIT 1";
        let row = client.query_opt(sql, &[&name]).await?;
        let row = row.ok_or_else(|| FunctionError::Missing(name.to_owned()))?;
        let (found, takes, is_text): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        if must_be_text && !is_text {
            return Err(FunctionError::NotText(name.to_owned()));
        }
        let (takes, payload) = match takes.as_str() {
            "jsonb" => (Type::JSONB, "$3::text::jsonb"),
            "text" => (Type::TEXT, "$3::text"),
            _ => (Type::BYTEA, "$3::bytea"),
        };
        let result = if must_be_text { "" } else { "::text" };
        Ok(Self { sql: format!("SELECT {found}($1, $2, {payload}){result}"), takes })
    }

    /// What it returns.
    async fn call(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Option<String>, Retry> {
        let (id, index) = (branch.transaction.uuid(), i32::from(branch.index));
        let text;
        let payload: &(dyn ToSql + Sync) = if self.takes == Type::BYTEA {
            &branch.payload
        } else {
            text = branch.text();
            &text
        };
        Ok(tx.query_one(&self.sql, &[&id, &index, payload]).await?.get(0))
    }

    /// The reason that it returns, or none.
    async fn reason(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Option<Refusal>, Retry> {
        let Some(reason) = self.call(tx, branch).await? else { return Ok(None) };
        let refusal = Refusal::from_code(&reason).map_err(|_| {
            Retry::because(&format!(
                "a function returned {reason:?}; a reason is 1 to 47 of A-Z, 0-9 and _, a letter first"
            ))
        })?;
        Ok(Some(refusal))
    }

    /// Whether the payload is what the function takes. What never will be is refused, and not tried again for ever.
    async fn fits(&self, tx: &Tx<'_>, branch: &Branch) -> Result<bool, Retry> {
        if self.takes == Type::BYTEA {
            return Ok(true);
        }
        let is_text = std::str::from_utf8(&branch.payload).is_ok_and(|text| !text.contains('\0'));
        if !is_text || self.takes == Type::TEXT {
            return Ok(is_text);
        }
        match tx.query_one("SELECT $1::text::jsonb IS NOT NULL", &[&branch.text()]).await {
            Ok(_) => Ok(true),
            // Class 22: a value out of its form.
            Err(error) if error.code().is_some_and(|code| code.code().starts_with("22")) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

struct Functions {
    reserve: Function,
    confirm: Function,
    cancel: Function,
}

impl Resource for Functions {
    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        // What fits one of them need not fit another.
        for function in [&self.reserve, &self.confirm, &self.cancel] {
            if !function.fits(tx, branch).await? {
                return Ok(Reservation::Refused(PAYLOAD_INVALID));
            }
        }
        let refusal = self.reserve.reason(tx, branch).await?;
        Ok(refusal.map_or(Reservation::Made, Reservation::Refused))
    }

    async fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        self.confirm.call(tx, branch).await.map(drop)
    }

    async fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        self.cancel.call(tx, branch).await.map(drop)
    }
}

struct WithVeto {
    functions: Functions,
    veto: Function,
}

impl Resource for WithVeto {
    const MAY_VETO: bool = true;

    async fn reserve(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Reservation, Retry> {
        match self.veto.fits(tx, branch).await? {
            true => self.functions.reserve(tx, branch).await,
            false => Ok(Reservation::Refused(PAYLOAD_INVALID)),
        }
    }

    async fn confirm(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        self.functions.confirm(tx, branch).await
    }

    async fn cancel(&self, tx: &Tx<'_>, branch: &Branch) -> Result<(), Retry> {
        self.functions.cancel(tx, branch).await
    }

    async fn veto(&self, tx: &Tx<'_>, branch: &Branch) -> Result<Option<Refusal>, Retry> {
        self.veto.reason(tx, branch).await
    }
}
