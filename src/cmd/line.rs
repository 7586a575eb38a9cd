//! A line of `load` and `dump`: one key and its value as JSON, with base64 for what is not UTF-8.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::output::put_bytes;
use crate::state::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
}

/// Reads a line.
///
/// # Errors
/// A sentence that says what is wrong with it.
pub(super) fn parse(line: &[u8]) -> Result<(Bytes, Bytes), String> {
    let fields: Fields = serde_json::from_slice(line).map_err(|error| {
        // The line is one of many: its own "line 1" would mislead.
        let text = error.to_string();
        let text = text.split(" at line ").next().unwrap_or(&text);
        format!("{text} (column {}); write {{\"key\":\"k\",\"value\":\"v\"}}", error.column())
    })?;
    let key = bytes("key", fields.key, fields.key_base64)?;
    let value = bytes("value", fields.value, fields.value_base64)?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(format!("the key has {} bytes; keys have 1 to {MAX_KEY_BYTES}", key.len()));
    }
    if value.len() > MAX_VALUE_BYTES {
        return Err(format!("the value has {} bytes; values have at most {MAX_VALUE_BYTES}", value.len()));
    }
    Ok((key, value))
}

fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Bytes, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => match STANDARD.decode(&base64) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(format!("{name}_base64 is not base64 ({error})")),
        },
        (Some(_), Some(_)) => Err(format!("it has {name} and {name}_base64; give one of them")),
        (None, None) => Err(format!("it has neither {name} nor {name}_base64")),
    }
}

/// Writes a line, without the newline.
pub(super) fn format(key: &[u8], value: Option<&[u8]>) -> String {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    if let Some(value) = value {
        put_bytes(&mut object, "value", value);
    }
    Value::from(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for (key, value) in [
            (&b"k"[..], &b""[..]),
            (b"\"quoted\"\n", "\u{0}tab\t snow \u{2603}".as_bytes()),
            (b"\xff\x00", b"\x80\x81"),
        ] {
            let line = format(key, Some(value));
            assert!(!line.contains('\n'));
            let (read_key, read_value) = parse(line.as_bytes()).unwrap();
            assert_eq!((read_key.as_ref(), read_value.as_ref()), (key, value));
        }
        assert_eq!(format(b"k", None), r#"{"key":"k"}"#);
    }

    #[test]
    fn a_wrong_line_says_what_is_wrong() {
        for (line, part) in [
            (r#"{"key":"a"}"#, "neither value nor value_base64"),
            (r#"{"value":"a"}"#, "neither key nor key_base64"),
            (r#"{"key":"a","key_base64":"YQ==","value":""}"#, "give one of them"),
            (r#"{"key":"a","value_base64":"?"}"#, "value_base64 is not base64"),
            (r#"{"key":"","value":""}"#, "keys have 1 to 4096"),
            (r#"{"key":"a","value":"b","ttl":3}"#, "unknown field `ttl`"),
            (r#"{"key":"a","value":1}"#, "expected a string"),
            (r#"{"key":"a","value":"b""#, "column"),
            ("key=value", "column 1"),
        ] {
            let error = parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
            assert!(!error.contains("line 1"), "{line}: {error}");
        }
        let long = format(&[b'k'; 4097], Some(b""));
        assert!(parse(long.as_bytes()).unwrap_err().contains("4097 bytes"));
    }
}
