//! What must not leave the cluster in an archive for a bug report: environment values, contents of ConfigMaps and Secrets,
//! passwords in any text.

use serde_json::Value;

/// What takes the place of what is left out.
pub(crate) const REDACTED: &str = "(redacted)";

/// Fields that are left out whole: they repeat the rest.
const DROPPED: [&str; 1] = ["managedFields"];
/// Annotations that repeat the object as somebody applied it.
const REPEATING: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];
/// Maps with the contents of ConfigMaps and Secrets.
const CONTENTS: [&str; 3] = ["data", "stringData", "binaryData"];
/// Parts of the names of fields whose texts are secret. Not `secretName` and the like, which name objects.
const SECRET_NAMES: [&str; 4] = ["password", "passwd", "passphrase", "conninfo"];

/// Redacts an object.
pub(crate) fn object(value: &mut Value) {
    below(value, "");
}

fn below(value: &mut Value, name: &str) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !DROPPED.contains(&name.as_str()));
            for (name, value) in fields.iter_mut() {
                match value {
                    Value::Object(contents) if CONTENTS.contains(&name.as_str()) => {
                        contents.values_mut().for_each(hide);
                    }
                    Value::Array(variables) if name == "env" => {
                        variables.iter_mut().for_each(variable);
                    }
                    _ => below(value, name),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| below(item, name)),
        Value::String(shown) => {
            let lower = name.to_lowercase();
            let is_secret = SECRET_NAMES.iter().any(|part| lower.contains(part));
            match is_secret || REPEATING.contains(&name) {
                true => REDACTED.clone_into(shown),
                false => *shown = text(shown),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn hide(value: &mut Value) {
    *value = match value {
        Value::String(text) => Value::String(format!("({} bytes)", text.len())),
        _ => Value::String(REDACTED.to_owned()),
    };
}

/// A variable of the environment keeps its name, and where its value comes from.
fn variable(variable: &mut Value) {
    if let Some(value) = variable.get_mut("value") {
        *value = Value::String(REDACTED.to_owned());
    }
}

/// Redacts passwords in a text: in URIs, after `password=`, and as `PASSWORD '…'` of SQL; tokens after `Bearer`, and JSON
/// Web Tokens.
pub(crate) fn text(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(line).collect();
    lines.join("\n")
}

fn line(text: &str) -> String {
    let text = uris(text);
    let text = after_word(&text, "password");
    let text = after_word(&text, "passwd");
    let text = after_word(&text, "bearer");
    tokens(&text)
}

/// `scheme://user:password@host`.
fn uris(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || "/\"'`<>".contains(c));
        let authority = after.get(..end.unwrap_or(after.len())).unwrap_or_default();
        match authority.rsplit_once('@') {
            Some((user, host)) if user.contains(':') => {
                let user = user.split(':').next().unwrap_or_default();
                out.push_str(&format!("{user}:{REDACTED}@{host}"));
            }
            _ => out.push_str(authority),
        }
        rest = after.get(authority.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// What follows a word: after `=` or `:`, in quotes, or, after `bearer`, as the next word.
fn after_word(text: &str, word: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    while let Some(found) = lower.get(done..).and_then(|rest| rest.find(word)) {
        let end = done + found + word.len();
        out.push_str(text.get(done..end).unwrap_or_default());
        done = end;
        let rest = text.get(end..).unwrap_or_default();
        let separator = rest.len()
            - rest
                .trim_start_matches([' ', '=', ':', '"', '\'', '\\'])
                .len();
        let between = rest.get(..separator).unwrap_or_default();
        let is_assigned =
            between.contains(['=', ':', '"', '\'']) || (word == "bearer" && !between.is_empty());
        if !is_assigned {
            continue;
        }
        let value = rest.get(separator..).unwrap_or_default();
        let quote = between.chars().rev().find(|c| "\"'".contains(*c));
        let ends = |c: char| match quote {
            Some(quote) => c == quote,
            None => c.is_whitespace() || ",;&".contains(c),
        };
        let length = value.find(ends).unwrap_or(value.len());
        out.push_str(between);
        if length > 0 {
            out.push_str(REDACTED);
        }
        done += separator + length;
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

/// JSON Web Tokens: three parts, the first of which is JSON in base64.
fn tokens(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("eyJ") {
        let (before, token) = rest.split_at(start);
        out.push_str(before);
        let end = token.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
        let (token, after) = token.split_at(end.unwrap_or(token.len()));
        out.push_str(if token.contains('.') { REDACTED } else { token });
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn passwords_tokens_and_uris_are_redacted_and_the_rest_stays() {
        for (given, expected) in [
            (
                "postgres://app:s3cret@db-rw:5432/app ok",
                "postgres://app:(redacted)@db-rw:5432/app ok",
            ),
            ("https://example.com/a:b@c", "https://example.com/a:b@c"),
            (
                "ALTER ROLE app PASSWORD 'it s'; done",
                "ALTER ROLE app PASSWORD '(redacted)'; done",
            ),
            (
                "host=a password=s3cret user=b",
                "host=a password=(redacted) user=b",
            ),
            (
                r#"{"password":"s3cret","a":1}"#,
                r#"{"password":"(redacted)","a":1}"#,
            ),
            (
                "password authentication failed for user",
                "password authentication failed for user",
            ),
            (
                "Authorization: Bearer abc.def",
                "Authorization: Bearer (redacted)",
            ),
            ("token eyJhbGciOi.eyJz.c_-1 end", "token (redacted) end"),
            ("größer password=ü x", "größer password=(redacted) x"),
        ] {
            assert_eq!(text(given), expected);
        }
    }

    #[test]
    fn environment_and_contents_are_hidden_and_names_stay() {
        let mut given = json!({
            "metadata": {
                "managedFields": [{"manager": "x"}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "everything"},
            },
            "data": {"initdb.sh": "secret text"},
            "spec": {
                "containers": [{"env": [
                    {"name": "A", "value": "s3cret"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
                ]}],
                "replicationPassword": "s3cret",
                "image": "postgres:18",
            },
        });
        object(&mut given);
        let expected = json!({
            "metadata": {
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "(redacted)"},
            },
            "data": {"initdb.sh": "(11 bytes)"},
            "spec": {
                "containers": [{"env": [
                    {"name": "A", "value": "(redacted)"},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "x", "key": "y"}}},
                ]}],
                "replicationPassword": "(redacted)",
                "image": "postgres:18",
            },
        });
        assert_eq!(given, expected);
    }
}
