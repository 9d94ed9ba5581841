//! A file of orders, as `--input` takes it: comma-separated values with a header.
//!
//! The columns `order`, `payer`, `payee` and `amount` are found by their names and further ones are not looked at. A line
//! that is no order is an error which names it, before anything is started: a transfer that was left out in silence would
//! make the whole comparison worthless. Nothing is known here of who gets funded, or when.

use std::collections::HashMap;
use tcc_core::{AccountId, Amount, money::BALANCE_LIMIT};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: usize,
    /// What the file calls it.
    pub order: String,
    /// Who pays.
    pub payer: String,
    /// Who is paid.
    pub payee: String,
    /// In minor units: 1 to 10^15.
    pub amount: i64,
}

/// Reads a whole file.
///
/// # Errors
///
/// A sentence that names the first bad line.
pub fn parse(text: &str) -> Result<Vec<Line>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let (_, header) = lines.next().ok_or("the file is empty; its first line must name the columns")?;
    let columns = Columns::read(header)?;

    let mut orders = Vec::new();
    let mut seen = HashMap::new();
    let mut owed: HashMap<String, i64> = HashMap::new();
    let mut total = 0;
    for (number, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
        let order = columns.order(number, line).map_err(|error| format!("line {number}: {error}"))?;
        if let Some(first) = seen.insert(order.order.clone(), number) {
            return Err(format!("line {number}: order {} stands in line {first} already", order.order));
        }
        // A payer is funded by one issue, and everything may end on one account.
        let owes = owed.entry(order.payer.clone()).or_default();
        *owes += order.amount;
        total += order.amount;
        if *owes > Amount::MAX {
            return Err(format!("line {number}: {} owes more than {} in all", order.payer, Amount::MAX));
        }
        if total > BALANCE_LIMIT {
            return Err(format!("line {number}: the amounts add up to more than {BALANCE_LIMIT}"));
        }
        orders.push(order);
    }
    if orders.is_empty() { Err("there is no order in the file".into()) } else { Ok(orders) }
}

/// Where in a line the columns stand.
struct Columns {
    order: usize,
    payer: usize,
    payee: usize,
    amount: usize,
    count: usize,
}

impl Columns {
    fn read(header: &str) -> Result<Self, String> {
        let names = fields(header).map_err(|error| format!("line 1: {error}"))?;
        let find = |wanted: &str| {
            let found = names.iter().position(|name| name.trim().eq_ignore_ascii_case(wanted));
            found.ok_or_else(|| {
                format!("line 1: no column {wanted}; needed are order, payer, payee and amount")
            })
        };
        Ok(Self {
            order: find("order")?,
            payer: find("payer")?,
            payee: find("payee")?,
            amount: find("amount")?,
            count: names.len(),
        })
    }

    fn order(&self, number: usize, line: &str) -> Result<Line, String> {
        let fields = fields(line)?;
        if fields.len() != self.count {
            return Err(format!("{} fields, but the header has {}", fields.len(), self.count));
        }
        let account = |what: &str, text: &str| match AccountId::parse(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("{what} {text:?}: {error}")),
        };
        let amount = &fields[self.amount];
        let value = amount.parse().map_err(|_| format!("amount {amount:?} is no whole number"))?;
        let value = Amount::new(value).map_err(|error| format!("amount {amount:?}: {error}"))?;
        let line = Line {
            number,
            order: fields[self.order].clone(),
            payer: account("payer", &fields[self.payer])?,
            payee: account("payee", &fields[self.payee])?,
            amount: value.get(),
        };
        if line.order.is_empty() {
            return Err("it has no order".into());
        }
        if line.payer == line.payee {
            return Err(format!("{} would pay itself", line.payer));
        }
        Ok(line)
    }
}

/// The fields of one line as RFC 4180 has them; a field in quotes may hold commas, but no line break.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err(format!("{after:?} follows a closing quote")),
        }
    }
}

/// What stands before the closing quote, and what after it.
fn unquote(mut quoted: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    loop {
        let end = quoted.find('"').ok_or("a quote is not closed")?;
        field.push_str(&quoted[..end]);
        quoted = &quoted[end + 1..];
        match quoted.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                quoted = next;
            }
            None => return Ok((field, quoted)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_their_names() {
        let text = "\u{feff}amount,note,payee,order,payer\r\n250,\"rent, \"\"May\"\"\",bob,1,alice\r\n\r\n";

        let orders = parse(text).unwrap();

        let line =
            Line { number: 2, order: "1".into(), payer: "alice".into(), payee: "bob".into(), amount: 250 };
        assert_eq!(orders, [line]);
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong() {
        let error = |lines: &str| parse(&format!("order,payer,payee,amount\n{lines}")).unwrap_err();

        for (lines, expected) in [
            ("1,a,b", "line 2: 3 fields"),
            ("1,a,b,5\n2,a,b,1,x", "line 3: 5 fields"),
            ("1,a,b,5\n\n2,a,b,0", "line 4: amount \"0\": an amount is at least 1"),
            ("1,a,b,-3", "line 2: amount \"-3\": an amount is at least 1"),
            ("1,a,b,2.50", "line 2: amount \"2.50\" is no whole number"),
            ("1,a,b,1000000000000001", "line 2: amount \"1000000000000001\": the amount is over"),
            ("1,,b,5", "line 2: payer \"\""),
            ("1,a,b c,5", "line 2: payee \"b c\""),
            ("1,a,a,5", "line 2: a would pay itself"),
            (",a,b,5", "line 2: it has no order"),
            ("1,a,b,5\n1,c,d,5", "line 3: order 1 stands in line 2 already"),
            ("1,a,b,1000000000000000\n2,a,b,1", "line 3: a owes more than 1000000000000000"),
            ("1,\"a,b,5", "line 2: a quote is not closed"),
            ("1,\"a\"x,b,5", "line 2: \"x,b,5\" follows a closing quote"),
        ] {
            assert!(error(lines).starts_with(expected), "{lines:?}: {}", error(lines));
        }
    }

    #[test]
    fn a_file_without_header_or_orders_is_no_input() {
        assert!(parse("").unwrap_err().contains("empty"));
        assert!(parse("order,payer,payee,amount\n").unwrap_err().contains("no order"));
        assert!(parse("1,alice,bob,5\n").unwrap_err().contains("no column order"));
        assert!(parse("order,payer,amount\n1,a,5\n").unwrap_err().contains("no column payee"));
    }
}
