//! The table of routes: which call is behind which path.
//!
//! Whatever the face does with a call, it does for every call, from this table and the descriptors. A field of a request is in the
//! path, or else in the query of a GET or DELETE, or in the body of a POST.

use super::{API, json, json::Fields, json::Json};
use crate::api::reason;
use percent_encoding::percent_decode_str;
use prost_reflect::{DynamicMessage, MessageDescriptor, MethodDescriptor};
use std::sync::LazyLock;
use tcc_proto::Reason;
use tonic::Status;

/// A call of the API, as HTTP has it.
#[derive(Debug)]
pub struct Route {
    /// GET, POST or DELETE.
    pub verb: &'static str,
    /// With the names of fields in braces.
    pub path: &'static str,
    /// What is called.
    pub method: MethodDescriptor,
    /// The field of its answer that is shown alone. Empty: all of it is shown.
    pub answer: &'static str,
}

const TABLE: [(&str, &str, &str, &str); 18] = [
    ("POST", "/v1/holds", "HoldService/CreateHold", "hold"),
    ("GET", "/v1/holds", "HoldService/ListHolds", ""),
    ("POST", "/v1/holds:batchCreate", "HoldService/BatchCreateHolds", ""),
    ("GET", "/v1/holds/{id}", "HoldService/GetHold", "hold"),
    ("DELETE", "/v1/holds/{id}", "HoldService/CancelHold", "hold"),
    ("POST", "/v1/holds/{id}:confirm", "HoldService/ConfirmHold", "hold"),
    ("GET", "/v1/holds/{id}/events", "HoldService/WatchHold", "hold"),
    ("POST", "/v1/wallet/transfer", "HoldService/Transfer", "hold"),
    ("POST", "/v1/accounts", "LedgerService/CreateAccount", "account"),
    ("GET", "/v1/accounts/{id}", "LedgerService/GetAccount", "account"),
    ("POST", "/v1/accounts/{id}:block", "LedgerService/BlockAccount", "account"),
    ("POST", "/v1/accounts/{id}:unblock", "LedgerService/UnblockAccount", "account"),
    ("POST", "/v1/accounts/{id}:close", "LedgerService/CloseAccount", "account"),
    ("POST", "/v1/accounts/{account}:issue", "LedgerService/Issue", "account"),
    ("POST", "/v1/accounts/{account}:burn", "LedgerService/Burn", "account"),
    ("GET", "/v1/accounts/{account}/balance", "LedgerService/GetBalance", ""),
    ("GET", "/v1/accounts/{account}/holdings", "LedgerService/GetHoldings", ""),
    ("GET", "/v1/accounts/{account}/postings", "LedgerService/ListPostings", ""),
];

/// The table, with what the descriptors know.
pub static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let route = |(verb, path, name, answer): (&'static str, &'static str, &str, &'static str)| {
        let (service, name) = name.split_once('/').expect("a service and a method");
        let service = API.get_service_by_name(&format!("tcc.v1.{service}")).expect("a service of the API");
        let method = service.methods().find(|method| method.name() == name).expect("a method of the service");
        Route { verb, path, method, answer }
    };
    TABLE.into_iter().map(route).collect()
});

impl Route {
    /// The route of a method.
    pub fn of(name: &str) -> Option<&'static Self> {
        ROUTES.iter().find(|route| route.method.name() == name)
    }

    /// The route of a request, and the fields in its path.
    pub fn find(verb: &str, path: &str) -> Result<(&'static Self, Fields), Status> {
        let mut here: Vec<(&Self, Fields)> =
            ROUTES.iter().filter_map(|route| Some((route, variables(route.path, path)?))).collect();
        match here.iter().position(|(route, _)| route.verb == verb) {
            Some(at) => Ok(here.swap_remove(at)),
            None if here.is_empty() => {
                Err(reason::status(Reason::PathUnknown, "there is nothing at this path", []))
            }
            None => {
                let verbs: Vec<&str> = here.iter().map(|(route, _)| route.verb).collect();
                Err(not_allowed(&verbs.join(", ")))
            }
        }
    }

    /// `/tcc.v1.HoldService/CreateHold`.
    pub fn grpc_path(&self) -> String {
        format!("/{}/{}", self.method.parent_service().full_name(), self.method.name())
    }

    /// What is shown of an answer.
    pub fn shown(&self, answer: &DynamicMessage) -> DynamicMessage {
        let part = answer.get_field_by_name(self.answer);
        part.and_then(|part| part.as_message().cloned()).unwrap_or_else(|| answer.clone())
    }

    /// How many bytes a body may have.
    pub fn limit(&self) -> usize {
        if self.method.name() == "BatchCreateHolds" { 2 * 1024 * 1024 } else { 64 * 1024 }
    }
}

/// Another HTTP method is needed, one of those.
pub fn not_allowed(verbs: &str) -> Status {
    let message = format!("this path takes {verbs}");
    reason::status(Reason::MethodNotAllowed, message, [("allow", verbs.to_owned())])
}

/// What stands in a path for the names in a template; `None` if the path is another one.
fn variables(template: &str, path: &str) -> Option<Fields> {
    let mut segments = path.split('/');
    let mut variables = Fields::new();
    for part in template.split('/') {
        let segment = segments.next()?;
        match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some((name, suffix)) => {
                let value = segment.strip_suffix(suffix).filter(|value| !value.is_empty())?;
                // Behind a colon stands a verb, but in the id of an account, which may have any character.
                if template.starts_with("/v1/holds/") && value.contains(':') {
                    return None;
                }
                variables.push((name.to_owned(), Json::Text(decoded(value))));
            }
            None if part == segment => {}
            None => return None,
        }
    }
    segments.next().is_none().then_some(variables)
}

/// The fields in a query. A list is a name that is there several times; an entry of a map is `labels.order` or `labels[order]`.
pub fn query(of: &MessageDescriptor, query: &str) -> Fields {
    let mut fields = Fields::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")));
        let is_map = |(map, _): &(&str, &str)| json::field(of, map).is_some_and(|field| field.is_map());
        let in_brackets = || name.strip_suffix(']').and_then(|name| name.split_once('[')).filter(is_map);
        let entry = name.split_once('.').filter(is_map).or_else(in_brackets);
        let is_list = json::field(of, &name).is_some_and(|field| field.is_list());
        match entry {
            Some((map, key)) => {
                let entry = (key.to_owned(), Json::Text(value));
                match fields.iter_mut().find(|(name, _)| name == map) {
                    Some((_, Json::Object(entries))) => entries.push(entry),
                    _ => fields.push((map.to_owned(), Json::Object(vec![entry]))),
                }
            }
            None if is_list => match fields.iter_mut().find(|(other, _)| *other == name) {
                Some((_, Json::List(items))) => items.push(Json::Text(value)),
                _ => fields.push((name, Json::List(vec![Json::Text(value)]))),
            },
            None => fields.push((name, Json::Text(value))),
        }
    }
    fields
}

/// What is no UTF-8 becomes a character that no id has.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt as _;

    fn found(verb: &str, path: &str) -> (&'static str, Fields) {
        let (route, fields) = Route::find(verb, path).unwrap();
        (route.method.name(), fields)
    }

    fn texts(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), Json::Text((*text).to_owned()))).collect()
    }

    #[test]
    fn every_path_leads_to_its_call() {
        for route in ROUTES.iter() {
            let path = route.path.replace("{id}", "x").replace("{account}", "x");
            assert_eq!(found(route.verb, &path).0, route.method.name());
        }
    }

    #[test]
    fn every_name_in_a_path_is_a_field_of_the_request() {
        for route in ROUTES.iter() {
            for (name, _) in variables(route.path, route.path).unwrap() {
                assert!(route.method.input().get_field_by_name(&name).is_some(), "{}", route.path);
            }
            let answer = route.method.output().get_field_by_name(route.answer);
            assert!(route.answer.is_empty() || answer.is_some(), "{}", route.path);
        }
    }

    #[test]
    fn an_account_may_have_any_of_its_characters_in_a_path() {
        for (verb, path, method, field, id) in [
            ("GET", "/v1/accounts/a:block", "GetAccount", "id", "a:block"),
            ("POST", "/v1/accounts/a:block:block", "BlockAccount", "id", "a:block"),
            ("POST", "/v1/accounts/a%2Fb%3ablock:issue", "Issue", "account", "a/b:block"),
            ("GET", "/v1/accounts/100%25+%20%FF/balance", "GetBalance", "account", "100%+ \u{fffd}"),
        ] {
            assert_eq!(found(verb, path), (method, texts(&[(field, id)])), "{path}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_told_apart() {
        for (verb, path, expected) in [
            ("GET", "/", Reason::PathUnknown),
            ("GET", "/v1/holds/", Reason::PathUnknown),
            ("GET", "/v1/holds/x/", Reason::PathUnknown),
            ("GET", "/v1/holds/x/events/y", Reason::PathUnknown),
            ("POST", "/v1/holds/:confirm", Reason::PathUnknown),
            ("POST", "/v1/holds/x:release", Reason::PathUnknown),
            ("GET", "/v1/holds/x:confirm", Reason::MethodNotAllowed),
            ("PUT", "/v1/holds", Reason::MethodNotAllowed),
            ("POST", "/v1/holds/x", Reason::MethodNotAllowed),
            ("GET", "/v1/wallet/transfer", Reason::MethodNotAllowed),
        ] {
            let refused = Route::find(verb, path).unwrap_err();
            assert_eq!(refused.get_details_error_info().unwrap().reason, expected.name(), "{path}");
        }
        for (path, allowed) in [("/v1/holds", "POST, GET"), ("/v1/holds/x:confirm", "POST")] {
            let refused = Route::find("PUT", path).unwrap_err();
            assert_eq!(refused.get_details_error_info().unwrap().metadata["allow"], allowed);
        }
    }

    #[test]
    fn a_query_has_lists_and_maps() {
        let of = ROUTES[1].method.input();

        let fields = query(&of, "payer=a%20b&phases=X&labels.a=1&phases=Y&labels[b.c]=+2&pageSize=5&q.x=1&z");

        let list = Json::List(vec![Json::Text("X".into()), Json::Text("Y".into())]);
        let mut expected = texts(&[("payer", "a b"), ("pageSize", "5"), ("q.x", "1"), ("z", "")]);
        expected.insert(1, ("phases".into(), list));
        expected.insert(2, ("labels".into(), Json::Object(texts(&[("a", "1"), ("b.c", " 2")]))));
        assert_eq!(fields, expected);
    }
}
