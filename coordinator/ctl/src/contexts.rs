//! `tccctl context …`: names for servers, so that nobody has to remember addresses at night.
//!
//! A context says where a `tccd` is, and in which files the credentials are; secrets themselves are not in it. Options and variables
//! of the environment come first, then the context, then the defaults. Whoever changes something while a context is in use is told
//! which one it is. It keeps out what a server thinks of the credentials.

use crate::{
    errors::{Exit, Failure},
    output::{Output, or_dash, rows},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

/// Where the file of contexts is, if not in the folder of the user's configuration.
const FILE: &str = "TCC_CONTEXTS";

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Which is used when none is named.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    current: String,
    #[serde(default)]
    context: BTreeMap<String, Context>,
}

/// A server, and how to come in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// Where `tccd` listens.
    pub server: String,
    /// As `--ca`. Files are named from the folder of the file of contexts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// As `--token-file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// As `--certificate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// As `--key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// As `--direct`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct: Option<PathBuf>,
}

impl Contexts {
    /// Reads the file. There need not be one.
    ///
    /// # Errors
    ///
    /// A sentence that names the file.
    pub fn read() -> Result<Self, String> {
        let Some(path) = path() else { return Ok(Self::default()) };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let mut contexts: Self =
            toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        for context in contexts.context.values_mut() {
            let Context { ca, token_file, certificate, key, direct, .. } = context;
            for file in [ca, token_file, certificate, key, direct].into_iter().flatten() {
                *file = folder.join(&*file);
            }
        }
        Ok(contexts)
    }

    /// The context of a name, or the one that is in use, with its name; nothing, if none is.
    ///
    /// # Errors
    ///
    /// A sentence, if there is none of that name.
    pub fn choose(mut self, name: Option<String>) -> Result<Option<(String, Context)>, String> {
        let name = name.unwrap_or(self.current);
        if name.is_empty() {
            return Ok(None);
        }
        match self.context.remove(&name) {
            Some(context) => Ok(Some((name, context))),
            None => {
                let known: Vec<String> = self.context.into_keys().collect();
                let known = if known.is_empty() { "there are none".to_owned() } else { known.join(", ") };
                Err(format!("there is no context {name:?}; contexts: {known}"))
            }
        }
    }

    /// The names of all of them.
    pub fn names(&self) -> Vec<String> {
        self.context.keys().cloned().collect()
    }

    fn write(&self) -> Result<(), Box<Failure>> {
        let Some(path) = path() else {
            return Err(Failure::usage("say where contexts are kept: set TCC_CONTEXTS or HOME"));
        };
        let failed = |error: io::Error| Failure::file(&format!("cannot write {}", path.display()), &error);
        let text = toml::to_string(self).expect("it has string keys");
        path.parent().map_or(Ok(()), fs::create_dir_all).map_err(failed)?;
        let new = path.with_added_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(failed)
    }
}

fn path() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(FILE).or_else(|| {
        let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        folder.map(|folder| folder.join("tcc").join("contexts.toml"))
    })
}

fn read() -> Result<Contexts, Box<Failure>> {
    Contexts::read().map_err(|what| Failure::usage(&what))
}

/// Lists the contexts.
pub fn list(output: &Output) -> Result<Exit, Box<Failure>> {
    let Contexts { current, context } = read()?;
    let listed =
        context.into_iter().map(|(name, context)| Listed { current: name == current, name, context });
    output.show_list(&List { contexts: listed.collect() }, "contexts")?;
    Ok(Exit::Done)
}

/// Keeps a context. One of the same name is replaced.
pub fn add(output: &Output, name: String, context: Context) -> Result<Exit, Box<Failure>> {
    let mut contexts = read()?;
    contexts.context.insert(name.clone(), context.clone());
    contexts.write()?;
    let current = contexts.current == name;
    output.show(&List { contexts: vec![Listed { current, name, context }] })?;
    Ok(Exit::Done)
}

/// Uses a context from now on.
pub fn choose(output: &Output, name: String) -> Result<Exit, Box<Failure>> {
    let mut contexts = read()?;
    let Some(context) = contexts.context.get(&name).cloned() else {
        let known = contexts.choose(Some(name)).expect_err("it is not there");
        return Err(Failure::usage(&known));
    };
    contexts.current.clone_from(&name);
    contexts.write()?;
    output.show(&List { contexts: vec![Listed { current: true, name, context }] })?;
    Ok(Exit::Done)
}

/// Forgets a context.
pub fn remove(output: &Output, name: String) -> Result<Exit, Box<Failure>> {
    let mut contexts = read()?;
    let Some(context) = contexts.context.remove(&name) else {
        let known = contexts.choose(Some(name)).expect_err("it is not there");
        return Err(Failure::usage(&known));
    };
    if contexts.current == name {
        contexts.current.clear();
    }
    contexts.write()?;
    output.show(&List { contexts: vec![Listed { current: false, name, context }] })?;
    Ok(Exit::Done)
}

#[derive(Debug, Serialize)]
struct List {
    contexts: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    current: bool,
    #[serde(flatten)]
    context: Context,
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |file: &Option<PathBuf>| or_dash(file.as_ref().and_then(|file| file.to_str()));
        let cells = |Listed { name, current, context }: &Listed| {
            let used = if *current { "*" } else { "-" }.to_owned();
            [
                used,
                name.clone(),
                context.server.clone(),
                file(&context.ca),
                file(&context.token_file),
                file(&context.certificate),
            ]
        };
        let header = ["USED", "CONTEXT", "SERVER", "CA", "TOKEN_FILE", "CERTIFICATE"];
        f.write_str(&rows(header, self.contexts.iter().map(cells)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contexts() -> Contexts {
        toml::from_str(
            "current = \"test\"\n[context.test]\nserver = \"http://127.0.0.1:7070\"\n[context.prod]\nserver = \"https://tcc\"\nca = \"ca.pem\"\n",
        )
        .unwrap()
    }

    #[test]
    fn the_one_that_is_named_comes_before_the_one_in_use() {
        assert_eq!(contexts().choose(None).unwrap().unwrap().0, "test");
        assert_eq!(contexts().choose(Some("prod".into())).unwrap().unwrap().1.server, "https://tcc");
        assert_eq!(Contexts::default().choose(None).unwrap(), None);
    }

    #[test]
    fn a_name_that_there_is_not_is_told_with_those_that_there_are() {
        let error = contexts().choose(Some("prud".into())).unwrap_err();

        assert_eq!(error, "there is no context \"prud\"; contexts: prod, test");
    }

    #[test]
    fn a_file_of_contexts_has_no_secrets_in_it() {
        let error = toml::from_str::<Contexts>("[context.a]\nserver = \"http://a\"\ntoken = \"canary\"\n");

        assert!(error.unwrap_err().message().contains("unknown field"));
    }
}
