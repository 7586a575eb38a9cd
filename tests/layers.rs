//! The layers of the code map (`src/lib.rs`), and the names that have no business in a module, as a test.
//!
//! It reads `src/**.rs` line by line, without comments and literals, and looks at every path that begins with `crate::`
//! (or climbs there by `super::`), grouped imports included. What a macro makes up is out of its sight; rustc's own
//! privacy and the review are there for that.
//!
//! The first test is the check; the others plant violations and expect each to be found, so that the check can fail.

#![allow(clippy::unwrap_used, reason = "a test binary: a panic is its verdict")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module's layer. A module imports only from lower layers, except for [`PAIRS`].
const LAYERS: &[(&str, u8)] = &[
    ("error", 0),
    ("time", 0),
    ("observe", 0),
    ("proto", 0),
    ("state", 1),
    ("store", 1),
    ("net", 1),
    ("raft", 2),
    ("service", 3),
    ("cluster", 3),
    ("kubernetes", 3),
    ("api", 4),
    ("client", 4),
    ("config", 5),
    ("server", 5),
    ("bench", 5),
    ("cmd", 6),
    ("main", 6),
];

/// Imports within a layer that are meant: who, from whom. Layer 0 is one bed of things without dependencies.
const PAIRS: &[(&str, &str)] = &[
    ("observe", "error"),
    ("observe", "time"),
    ("time", "error"),
    // Genesis and the keeper ask how many pods are wanted, and for the claim.
    ("cluster", "kubernetes"),
    // The composition root is the only one that reads the configuration.
    ("server", "config"),
    ("main", "cmd"),
];

/// Paths below a module that only some modules may name.
const ONLY_IN: &[(&[&str], &[&str])] = &[
    (&["crate", "proto", "raft"], &["raft"]),
    (&["crate", "proto", "v1"], &["api", "client", "bench"]),
    (&["crate", "config"], &["server", "cmd", "main"]),
];

/// Crates that only one module may name.
const CRATES: &[(&str, &[&str])] = &[
    ("openraft", &["raft"]),
    ("sled", &["store"]),
    ("anyhow", &["main"]),
    ("kube", &["kubernetes"]),
    ("k8s_openapi", &["kubernetes"]),
    ("hickory_resolver", &["net"]),
];

/// What the pure state may not name: time, files, sockets, threads, runtimes, randomness, floats.
const BANNED_IN_STATE: &[&[&str]] = &[
    &["std", "time"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "thread"],
    &["std", "env"],
    &["std", "process"],
    &["tokio"],
    &["tonic"],
    &["prost"],
    &["openraft"],
    &["sled"],
    &["rand"],
    &["uuid", "Uuid", "new_v4"],
];
/// The same as single words, wherever they come from.
const BANNED_WORDS_IN_STATE: &[&str] = &["Instant", "SystemTime", "async", "await", "f32", "f64"];
/// Unordered collections: only where the line says why their order never shows.
const UNORDERED: &[&str] = &["HashMap", "HashSet", "RandomState"];
const UNORDERED_PERMIT: &str = "lookup only:";

/// One Rust file, as the checks see it.
struct Source {
    /// Relative to the crate's root.
    path: PathBuf,
    /// As written.
    text: String,
    /// Without comments and without the insides of literals; as many lines as `text`.
    code: String,
}

impl Source {
    fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { path: path.into(), code: strip(&text), text }
    }

    /// The top-level module this file belongs to; `None` for `lib.rs` and for what is not in `src`.
    fn module(&self) -> Option<String> {
        let inside = self.path.strip_prefix("src").ok()?;
        let first = inside.components().next()?.as_os_str().to_str()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (name != "lib").then(|| name.to_owned())
    }

    /// How many modules deep the file's own module is: 1 for `src/a.rs` and `src/a/mod.rs`.
    fn depth(&self) -> usize {
        let parts = self.path.components().count() - 1;
        if self.path.ends_with("mod.rs") { parts - 1 } else { parts }
    }

    fn violation(&self, line: usize, what: &str) -> String {
        format!("{}:{}: {what}", self.path.display(), line + 1)
    }
}

/// Blanks out comments, strings and character literals, and keeps the line breaks.
fn strip(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = match at(i) {
            '/' if at(i + 1) == '/' => (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len()),
            '/' if at(i + 1) == '*' => end_of_block_comment(&chars, i),
            '"' => end_of_string(&chars, i),
            'r' if !word(out.chars().last()) && (at(i + 1) == '"' || at(i + 1) == '#') => {
                end_of_raw(&chars, i)
            }
            // A character literal, and not a lifetime or a label.
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                (i + 2 + usize::from(at(i + 1) == '\\')..chars.len()).find(|&j| at(j) == '\'').unwrap_or(i)
                    + 1
            }
            c => {
                out.push(c);
                i += 1;
                continue;
            }
        };
        out.push(' ');
        out.extend(chars[i..end.min(chars.len())].iter().filter(|c| **c == '\n'));
        i = end.max(i + 1);
    }
    out
}

fn word(c: Option<char>) -> bool {
    c.is_some_and(|c| c.is_alphanumeric() || c == '_')
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0_usize, start);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => {
                (depth, i) = (depth - 1, i + 2);
                if depth == 0 {
                    break;
                }
            }
            _ => i += 1,
        }
    }
    i
}

fn end_of_string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// The end of `r"..."` or `r#"..."#`; of the `r` alone where it is a raw identifier.
fn end_of_raw(chars: &[char], start: usize) -> usize {
    let hashes = chars[start + 1..].iter().take_while(|c| **c == '#').count();
    if chars.get(start + 1 + hashes) != Some(&'"') {
        return start + 1 + hashes;
    }
    let closing: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let body = start + 2 + hashes;
    chars[body..]
        .windows(closing.len())
        .position(|w| w == closing)
        .map_or(chars.len(), |p| body + p + closing.len())
}

/// A word or a mark of the code, with its line.
struct Token {
    text: String,
    line: usize,
}

fn tokens(code: &str) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    for (line, content) in code.lines().enumerate() {
        let mut rest = content;
        while let Some(first) = rest.chars().next() {
            let length = if word(Some(first)) {
                rest.find(|c| !word(Some(c))).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                found.push(Token { text: rest[..length].to_owned(), line });
            }
            rest = &rest[length..];
        }
    }
    found
}

/// A path that the code names, with `super` resolved as far as it reaches the crate's root.
struct Named {
    path: Vec<String>,
    line: usize,
}

/// All paths of a file: each maximal `a::b::c`, each branch of a `use` tree on its own.
fn paths(source: &Source) -> Vec<Named> {
    let tokens = tokens(&source.code);
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let (mut found, mut braces, mut depth) = (Vec::new(), Vec::new(), source.depth());
    let mut i = 0;
    while i < tokens.len() {
        match text(i) {
            "{" => {
                let opens_module = i >= 2 && text(i - 2) == "mod";
                depth += usize::from(opens_module);
                braces.push(opens_module);
                i += 1;
            }
            "}" => {
                depth -= usize::from(braces.pop().unwrap_or(false));
                i += 1;
            }
            t if word(t.chars().next()) => {
                let start = found.len();
                i = tree(&tokens, i, &[], &mut found);
                for named in &mut found[start..] {
                    rooted(named, depth);
                }
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads the path, or the tree of paths, that begins at token `i`, and returns the token after it.
fn tree(tokens: &[Token], mut i: usize, prefix: &[String], found: &mut Vec<Named>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut path = prefix.to_vec();
    let line = tokens[i].line;
    while word(text(i).chars().next()) {
        path.push(text(i).to_owned());
        i += 1;
        if text(i) != "::" {
            break;
        }
        i += 1;
        if text(i) == "{" {
            i += 1;
            while i < tokens.len() && text(i) != "}" {
                i = if word(text(i).chars().next()) { tree(tokens, i, &path, found) } else { i + 1 };
                // `self as name`: the name says nothing of where it comes from.
                if text(i) == "as" {
                    i += 2;
                }
            }
            return i + 1;
        }
    }
    found.push(Named { path, line });
    i
}

/// Turns a path that climbs by `super` to the root into one that begins with `crate`, and drops a `self` at the end.
fn rooted(named: &mut Named, depth: usize) {
    let climbs = named.path.iter().take_while(|s| *s == "super").count();
    if climbs > 0 && climbs >= depth {
        named.path.splice(..climbs, ["crate".to_owned()]);
    }
    if named.path.len() > 1 && named.path.last().is_some_and(|s| s == "self") {
        named.path.pop();
    }
}

fn starts_with(path: &[String], prefix: &[&str]) -> bool {
    path.len() >= prefix.len() && path.iter().zip(prefix).all(|(a, b)| a == b)
}

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

/// Everything that is wrong with the imports of these files.
fn violations(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let Some(module) = source.module() else { continue };
        if layer(&module).is_none() {
            wrong.push(
                source
                    .violation(0, &format!("module `{module}` has no layer; give it one in tests/layers.rs")),
            );
            continue;
        }
        for named in paths(source) {
            wrong.extend(bad_path(&module, &named.path).map(|what| source.violation(named.line, &what)));
        }
        if module == "state" {
            wrong.extend(impurities(source));
        }
    }
    wrong.extend(sled_in_one_file(sources));
    wrong
}

/// What is wrong with a module naming this path.
fn bad_path(module: &str, path: &[String]) -> Option<String> {
    let shown = path.join("::");
    for (prefix, allowed) in ONLY_IN {
        if starts_with(path, prefix) && prefix.get(1) != Some(&module) && !allowed.contains(&module) {
            return Some(format!("`{shown}` in `{module}`: only {allowed:?} may name it"));
        }
    }
    for (name, allowed) in CRATES {
        if path.len() > 1 && path[0] == *name && !allowed.contains(&module) {
            return Some(format!("`{shown}` in `{module}`: only {allowed:?} may name the crate {name}"));
        }
    }
    if module == "state" && BANNED_IN_STATE.iter().any(|banned| starts_with(path, banned)) {
        return Some(format!("`{shown}` in `state`, which is pure"));
    }
    // The binary knows the library by its name.
    let inside = path[0] == "crate" || (module == "main" && path[0] == "larder");
    let target = path.get(1).filter(|_| inside)?;
    if target == "proto" && path.len() == 2 && module != "proto" {
        return Some("`crate::proto` as a whole; name `crate::proto::v1` or `crate::proto::raft`".to_owned());
    }
    // What is not a module is a macro or the crate's own attribute.
    let (above, below) = (layer(module)?, layer(target)?);
    let allowed = below < above || target == module || PAIRS.contains(&(module, target.as_str()));
    (!allowed).then(|| {
        format!("`{shown}` in `{module}` (layer {above}): `{target}` is layer {below}, not a lower one")
    })
}

/// Single words that make the state impure.
fn impurities(source: &Source) -> Vec<String> {
    let written: Vec<&str> = source.text.lines().collect();
    let permitted = |line: usize| {
        let here = written[line].contains(UNORDERED_PERMIT);
        here || line.checked_sub(1).is_some_and(|above| written[above].contains(UNORDERED_PERMIT))
    };
    let mut wrong = Vec::new();
    for token in tokens(&source.code) {
        let text = token.text.as_str();
        if BANNED_WORDS_IN_STATE.contains(&text) {
            wrong.push(source.violation(token.line, &format!("`{text}` in `state`, which is pure")));
        }
        if UNORDERED.contains(&text) && !permitted(token.line) {
            let ask =
                format!("`{text}` in `state`: say `// {UNORDERED_PERMIT} why` there, or use an ordered one");
            wrong.push(source.violation(token.line, &ask));
        }
    }
    wrong
}

/// sled stays behind one file, so that it can be replaced.
fn sled_in_one_file(sources: &[Source]) -> Vec<String> {
    let names_it = |s: &&Source| {
        s.module().is_some() && paths(s).iter().any(|n| n.path.len() > 1 && n.path[0] == "sled")
    };
    let files: BTreeSet<_> = sources.iter().filter(names_it).map(|s| s.path.display().to_string()).collect();
    if files.len() > 1 { vec![format!("sled is named in {files:?}; only one file may")] } else { Vec::new() }
}

/// Sleeping tests are slow where the machine is fast and wrong where it is slow.
fn sleeps(source: &Source, only_tests: bool) -> Vec<String> {
    let tokens = tokens(&source.code);
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let first_test =
        (0..tokens.len()).find(|&i| text(i) == "cfg" && text(i + 1) == "(" && text(i + 2) == "test");
    let from = match (only_tests, first_test) {
        (true, None) => return Vec::new(),
        (true, Some(i)) => i,
        (false, _) => 0,
    };
    (from..tokens.len())
        .filter(|&i| matches!(text(i), "sleep" | "sleep_until") && text(i + 1) == "(")
        .map(|i| source.violation(tokens[i].line, "a test waits on a condition, never on time: no `sleep`"))
        .collect()
}

fn rust_files(dir: &Path, root: &Path, found: &mut Vec<Source>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            rust_files(&path, root, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push(Source::new(path.strip_prefix(root).unwrap(), text));
        }
    }
}

fn files_of(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    rust_files(&root.join(folder), root, &mut found);
    assert!(!found.is_empty(), "no Rust file in {folder}");
    found
}

#[test]
fn every_module_imports_only_from_lower_layers() {
    let wrong = violations(&files_of("src"));
    assert!(wrong.is_empty(), "{} violations:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_test_sleeps() {
    let mut wrong: Vec<String> = files_of("tests").iter().flat_map(|s| sleeps(s, false)).collect();
    wrong.extend(files_of("src").iter().flat_map(|s| {
        let is_test = s.path.file_stem().is_some_and(|n| n == "tests") || s.path.iter().any(|c| c == "tests");
        sleeps(s, !is_test)
    }));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the checks say of one planted file.
fn said(path: &str, text: &str) -> String {
    violations(&[Source::new(path, text)]).join("\n")
}

#[test]
fn planted_violations_are_found() {
    let planted = [
        ("src/state/a.rs", "use crate::store::Log;", "`store` is layer 1"),
        ("src/store/a.rs", "fn f() { crate::raft::x() }", "`raft` is layer 2"),
        ("src/raft/a.rs", "use crate::{error::Error, service::{Cache, Ctx}};", "crate::service::Cache"),
        ("src/raft/a.rs", "use super::super::service::Cache;", "crate::service::Cache"),
        ("src/raft/mod.rs", "use super::api::grpc;", "crate::api::grpc"),
        ("src/raft/mod.rs", "mod tests { use super::super::client::Client; }", "crate::client::Client"),
        ("src/cluster/a.rs", "use crate::service::Cache;", "not a lower one"),
        ("src/client/mod.rs", "use crate::api::grpc;", "not a lower one"),
        (
            "src/main.rs",
            "use larder::client::Client; use larder::unheard::X; fn f() { anyhow::bail!(\"\") }",
            "",
        ),
        ("src/api/grpc.rs", "use crate::proto::raft::Header;", "only [\"raft\"]"),
        ("src/service/a.rs", "use crate::proto::v1 as pb;", "may name it"),
        ("src/raft/a.rs", "use crate::proto::{raft as pb, v1};", "crate::proto::v1"),
        ("src/raft/a.rs", "use crate::proto;", "as a whole"),
        ("src/api/a.rs", "use crate::config::Config;", "may name it"),
        ("src/store/a.rs", "use openraft::LogId;", "crate openraft"),
        ("src/raft/a.rs", "fn f(d: sled::Db) {}", "crate sled"),
        ("src/cmd/a.rs", "use anyhow::Context;", "crate anyhow"),
        ("src/cmd/a.rs", "use kube::Client;", "crate kube"),
        ("src/cluster/a.rs", "fn f(c: k8s_openapi::api::core::v1::ConfigMap) {}", "crate k8s_openapi"),
        ("src/state/a.rs", "use std::{collections::BTreeMap, time::Duration};", "std::time::Duration"),
        ("src/state/a.rs", "fn f() { tokio::spawn(g()) }", "tokio::spawn"),
        ("src/state/a.rs", "fn f(now: Instant) {}", "`Instant`"),
        ("src/state/a.rs", "async fn f() {}", "`async`"),
        ("src/state/a.rs", "let m: HashMap<u8, u8>;", "lookup only"),
        ("src/elsewhere/mod.rs", "", "has no layer"),
    ];
    for (path, text, expected) in planted {
        let found = said(path, text);
        if expected.is_empty() {
            assert_eq!(found, "", "{path}: {text}");
        } else {
            assert!(found.contains(expected), "{path}: {text}\nsaid: {found:?}");
        }
    }
}

#[test]
fn what_is_allowed_is_not_flagged() {
    let fine = [
        (
            "src/state/a.rs",
            "// use crate::store::Log;\n/* tokio::spawn */ const S: &str = \"crate::raft::x\";",
        ),
        (
            "src/state/a.rs",
            "const R: &str = r#\"use \"sled::Db\"\"#; const C: char = '\"'; fn f<'a>(x: &'a str) {}",
        ),
        ("src/state/a.rs", "// lookup only: never iterated\nlet m: HashMap<u8, u8>;"),
        ("src/state/a/b.rs", "use super::super::command::Command; use crate::error::Error;"),
        (
            "src/raft/mod.rs",
            "use crate::{state::{self, Command}, store::Log, proto::raft as pb}; use openraft::Raft;",
        ),
        ("src/server.rs", "use crate::{config::Config, api::grpc};"),
        ("src/store/sled_log.rs", "use sled::Db;"),
        ("src/lib.rs", "pub mod anything;"),
    ];
    for (path, text) in fine {
        assert_eq!(said(path, text), "", "{path}: {text}");
    }
}

#[test]
fn a_second_file_with_sled_is_found() {
    let two =
        [Source::new("src/store/a.rs", "use sled::Db;"), Source::new("src/store/b.rs", "use sled::Tree;")];
    assert!(violations(&two).join("\n").contains("only one file"));
}

#[test]
fn a_planted_sleep_is_found() {
    let planted =
        "fn f() { std::thread::sleep(d) }\n#[cfg(test)]\nmod tests { fn g() { tokio::time::sleep(d); } }";
    let source = Source::new("src/raft/a.rs", planted);
    assert_eq!(sleeps(&source, true).len(), 1, "in the tests of a file");
    assert_eq!(sleeps(&source, false).len(), 2, "anywhere in a test file");
}
