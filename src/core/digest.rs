//! Digests of JSON: of a whole document, and of only those fields that a sample document has.

use std::collections::BTreeMap;

use serde_json::Value;

use super::hash::fnv1a64;

/// A digest of a document that does not depend on the order of keys.
#[must_use]
pub fn document(value: &Value) -> u64 {
    let mut bytes = Vec::with_capacity(2048);
    write_document(value, &mut bytes);
    fnv1a64(&bytes)
}

fn write_document(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            out.push(b'{');
            for (key, value) in sorted {
                write_text(key, out);
                write_document(value, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for item in items {
                write_document(item, out);
            }
            out.push(b']');
        }
        Value::String(text) => write_text(text, out),
        other => write_text(&other.to_string(), out),
    }
}

/// Text with its length before it, so that no two sequences of texts look alike.
fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Which fields a sample document has: the digest of another document over just these fields
/// ignores whatever the API server or others added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Compared as it is.
    Leaf,
    /// Compared as a Kubernetes quantity: `0.5` and `500m` are the same.
    Quantity,
    /// Compared field by field.
    Object(BTreeMap<String, Shape>),
    /// A list whose items are known by the value of one field, as server-side apply sees them.
    Keyed {
        /// That field.
        key: &'static str,
        /// The items by its value.
        items: BTreeMap<String, Shape>,
    },
}

/// Fields below which values are quantities.
const QUANTITY_PARENTS: [&str; 2] = ["limits", "requests"];
const QUANTITY_FIELDS: [&str; 1] = ["sizeLimit"];
/// Fields that tell the items of a list apart, in the order in which they are looked for.
const LIST_KEYS: [&str; 2] = ["mountPath", "name"];

impl Shape {
    /// The shape of a sample.
    #[must_use]
    pub fn of(sample: &Value) -> Self {
        Self::below(sample, "", "")
    }

    fn below(sample: &Value, parent: &str, field: &str) -> Self {
        if QUANTITY_PARENTS.contains(&parent) || QUANTITY_FIELDS.contains(&field) {
            return Self::Quantity;
        }
        match sample {
            Value::Object(map) => Self::Object(
                map.iter()
                    .map(|(name, value)| (name.clone(), Self::below(value, field, name)))
                    .collect(),
            ),
            Value::Array(items) => Self::list(items),
            _ => Self::Leaf,
        }
    }

    fn list(items: &[Value]) -> Self {
        for key in LIST_KEYS {
            let keyed: Option<BTreeMap<_, _>> = items
                .iter()
                .map(|item| {
                    let name = item.get(key)?.as_str()?;
                    Some((name.to_owned(), Self::below(item, "", "")))
                })
                .collect();
            match keyed {
                Some(keyed) if !keyed.is_empty() => return Self::Keyed { key, items: keyed },
                _ => {}
            }
        }
        Self::Leaf
    }

    /// The digest of a document over the fields of this shape.
    #[must_use]
    pub fn digest(&self, document: &Value) -> u64 {
        let mut bytes = Vec::with_capacity(1024);
        self.write(Some(document), &mut bytes);
        fnv1a64(&bytes)
    }

    fn write(&self, value: Option<&Value>, out: &mut Vec<u8>) {
        let Some(value) = value else {
            out.push(b'-');
            return;
        };
        out.push(b'+');
        match self {
            Self::Leaf => write_document(value, out),
            Self::Quantity => match value.as_str().and_then(quantity_nano) {
                Some(nano) => out.extend_from_slice(&nano.to_le_bytes()),
                None => write_document(value, out),
            },
            Self::Object(fields) => {
                for (name, shape) in fields {
                    shape.write(value.get(name), out);
                }
            }
            Self::Keyed { key, items } => {
                for (name, shape) in items {
                    let item = value.as_array().and_then(|list| {
                        list.iter()
                            .find(|item| item.get(*key).and_then(Value::as_str) == Some(name))
                    });
                    shape.write(item, out);
                }
            }
        }
    }
}

/// A quantity in billionths, as far as the CRD's patterns allow quantities; others stay text.
#[must_use]
pub fn quantity_nano(text: &str) -> Option<i128> {
    const SUFFIXES: [(&str, i128, u32); 16] = [
        ("Ki", 1 << 10, 0),
        ("Mi", 1 << 20, 0),
        ("Gi", 1 << 30, 0),
        ("Ti", 1 << 40, 0),
        ("Pi", 1 << 50, 0),
        ("Ei", 1 << 60, 0),
        ("n", 1, 9),
        ("u", 1, 6),
        ("m", 1, 3),
        ("k", 1_000, 0),
        ("M", 1_000_000, 0),
        ("G", 1_000_000_000, 0),
        ("T", 1_000_000_000_000, 0),
        ("P", 1_000_000_000_000_000, 0),
        ("E", 1_000_000_000_000_000_000, 0),
        ("", 1, 0),
    ];
    let (number, factor, divide_exponent) =
        SUFFIXES.iter().find_map(|(suffix, factor, exponent)| {
            Some((text.strip_suffix(suffix)?, *factor, *exponent))
        })?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()? + divide_exponent)?;
    mantissa
        .checked_mul(factor)?
        .checked_mul(1_000_000_000)?
        .checked_div(scale)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_compared_by_value() {
        for (a, b) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000M", "1G"),
            ("2", "2000m"),
        ] {
            assert_eq!(
                quantity_nano(a).unwrap(),
                quantity_nano(b).unwrap(),
                "{a} {b}"
            );
        }
        assert_ne!(quantity_nano("1G"), quantity_nano("1Gi"));
        for bad in ["", "Gi", "1.2.3", "-1", "x", ".", "1Zi"] {
            assert_eq!(quantity_nano(bad), None, "{bad}");
        }
    }

    fn sample() -> Value {
        json!({"spec": {
            "replicas": 3,
            "template": {"spec": {"containers": [{
                "name": "postgres", "image": "a", "args": ["x", "y"],
                "resources": {"limits": {"cpu": "0.5"}},
                "volumeMounts": [{"name": "data", "mountPath": "/pgdata"}],
            }]}}
        }})
    }

    #[test]
    fn what_the_api_server_adds_or_rewrites_does_not_change_the_digest() {
        let shape = Shape::of(&sample());
        let mut live = sample();
        live["spec"]["revisionHistoryLimit"] = json!(10);
        let containers = live.pointer_mut("/spec/template/spec/containers").unwrap();
        containers[0]["terminationMessagePath"] = json!("/dev/termination-log");
        containers[0]["resources"]["limits"]["cpu"] = json!("500m");
        containers
            .as_array_mut()
            .unwrap()
            .insert(0, json!({"name": "sidecar"}));
        assert_eq!(shape.digest(&live), shape.digest(&sample()));
    }

    #[test]
    fn every_change_of_an_owned_field_changes_the_digest() {
        let shape = Shape::of(&sample());
        let container = "/spec/template/spec/containers/0";
        for (path, value) in [
            ("/spec/replicas".to_owned(), json!(2)),
            (format!("{container}/image"), json!("b")),
            (format!("{container}/args"), json!(["x"])),
            (format!("{container}/resources/limits/cpu"), json!("501m")),
            (format!("{container}/volumeMounts"), json!([])),
            ("/spec/template/spec/containers".to_owned(), json!(null)),
        ] {
            let mut live = sample();
            *live.pointer_mut(&path).unwrap() = value;
            assert_ne!(shape.digest(&live), shape.digest(&sample()), "{path}");
        }
    }

    proptest! {
        #[test]
        fn a_document_digest_tells_texts_apart(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            let (left, right) = (json!([a, b]), json!([c, d]));
            prop_assert_eq!(left == right, document(&left) == document(&right));
        }
    }
}
