//! Digests of JSON: of a whole document, and of only those fields that a sample document has.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use shard_ownership::hash::Fnv1a64;

/// A digest of a document that does not depend on the order of keys.
#[must_use]
pub(crate) fn document(value: &Value) -> u64 {
    let mut hash = Fnv1a64::default();
    write_document(value, &mut hash);
    hash.finish()
}

fn write_document(value: &Value, out: &mut Fnv1a64) {
    match value {
        Value::Object(map) => {
            out.write(b"{");
            in_order(map, |key, value| {
                write_text(key, out);
                write_document(value, out);
            });
            out.write(b"}");
        }
        Value::Array(items) => {
            out.write(b"[");
            for item in items {
                write_document(item, out);
            }
            out.write(b"]");
        }
        Value::String(text) => write_text(text, out),
        Value::Null => write_text("null", out),
        Value::Bool(true) => write_text("true", out),
        Value::Bool(false) => write_text("false", out),
        Value::Number(number) => write_text(&number.to_string(), out),
    }
}

/// Calls `each` with the fields in the order of their names. They are in it already unless a feature of
/// `serde_json` keeps the order of insertion.
fn in_order<'a>(map: &'a Map<String, Value>, mut each: impl FnMut(&'a String, &'a Value)) {
    if map.keys().is_sorted() {
        map.iter().for_each(|(key, value)| each(key, value));
    } else {
        let sorted: BTreeMap<_, _> = map.iter().collect();
        sorted.into_iter().for_each(|(key, value)| each(key, value));
    }
}

/// Writes a text with its length before it, so that no two sequences of texts have the same
/// encoding.
pub(crate) fn write_text(text: &str, out: &mut Fnv1a64) {
    out.write(&(text.len() as u64).to_le_bytes());
    out.write(text.as_bytes());
}

/// Which fields a sample document has: the digest of another document over just these fields
/// ignores whatever the API server or others added to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Compared as it is.
    Leaf,
    /// Compared as a Kubernetes quantity: `0.5` and `500m` are the same.
    Quantity,
    /// Compared as quantities by name, all of them; none at all is the same as an empty map.
    Quantities,
    /// Compared field by field.
    Object(BTreeMap<String, Shape>),
    /// A list whose items are identified by the value of one field, as in server-side apply.
    Keyed {
        /// The identifying field.
        key: &'static str,
        /// The items by its value.
        items: BTreeMap<String, Shape>,
    },
}

/// Fields whose values are quantities by name. Users choose the names.
const QUANTITY_MAPS: [&str; 2] = ["limits", "requests"];
const QUANTITY_FIELDS: [&str; 1] = ["sizeLimit"];
/// Fields that identify the items of a list, in order of preference.
const LIST_KEYS: [&str; 2] = ["mountPath", "name"];

impl Shape {
    /// The shape of a sample.
    #[must_use]
    pub(crate) fn of(sample: &Value) -> Self {
        Self::below(sample, "")
    }

    fn below(sample: &Value, field: &str) -> Self {
        if QUANTITY_MAPS.contains(&field) {
            return Self::Quantities;
        }
        if QUANTITY_FIELDS.contains(&field) {
            return Self::Quantity;
        }
        match sample {
            Value::Object(map) => Self::Object(
                map.iter()
                    .map(|(name, value)| (name.clone(), Self::below(value, name)))
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
                    Some((name.to_owned(), Self::below(item, "")))
                })
                .collect();
            if let Some(items) = keyed.filter(|items| !items.is_empty()) {
                return Self::Keyed { key, items };
            }
        }
        Self::Leaf
    }

    /// The digest of a document over the fields of this shape.
    #[must_use]
    pub(crate) fn digest(&self, document: &Value) -> u64 {
        let mut hash = Fnv1a64::default();
        self.write(Some(document), &mut hash);
        hash.finish()
    }

    fn write(&self, value: Option<&Value>, out: &mut Fnv1a64) {
        if let (Self::Quantities, Some(Value::Object(_)) | None) = (self, value) {
            return write_quantities(value, out);
        }
        let Some(value) = value else {
            out.write(b"-");
            return;
        };
        out.write(b"+");
        match self {
            Self::Leaf | Self::Quantities => write_document(value, out),
            Self::Quantity => write_quantity(value, out),
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

/// Quantities by name, with their number before them.
fn write_quantities(value: Option<&Value>, out: &mut Fnv1a64) {
    let amounts = value.and_then(Value::as_object);
    out.write(&(amounts.map_or(0, Map::len) as u64).to_le_bytes());
    if let Some(amounts) = amounts {
        in_order(amounts, |name, amount| {
            write_text(name, out);
            write_quantity(amount, out);
        });
    }
}

/// A quantity as the API server stores it: rounded up to thousandths.
fn write_quantity(value: &Value, out: &mut Fnv1a64) {
    match value.as_str().and_then(quantity_nano) {
        Some(nano) => out.write(&div_ceil(nano, 1_000_000).to_le_bytes()),
        None => write_document(value, out),
    }
}

/// A quantity in billionths, rounded up: every form that Kubernetes accepts, except negative ones.
/// None if it is not a quantity, or is out of range.
#[must_use]
pub(crate) fn quantity_nano(text: &str) -> Option<i128> {
    const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    const DECIMAL: [(&str, i32); 10] = [
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let binary = BINARY.iter().position(|known| *known == suffix);
    let decimal = DECIMAL.iter().find(|(known, _)| *known == suffix);
    let (factor, exponent) = match (binary, decimal) {
        (Some(place), _) => (1_i128 << (10 * (place + 1)), 0),
        (None, Some((_, exponent))) => (1, *exponent),
        (None, None) => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let digits = i32::try_from(fraction.len()).ok()?;
    let exponent = i32::checked_add(exponent, 9)?.checked_sub(digits)?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs());
    let scaled = mantissa.checked_mul(factor)?;
    match (exponent >= 0, power) {
        (true, power) => scaled.checked_mul(power?),
        (false, Some(power)) => Some(div_ceil(scaled, power)),
        // Less than any representable power: a non-zero amount is rounded up.
        (false, None) => Some(i128::from(scaled > 0)),
    }
}

/// A number that is not negative, divided and rounded up.
const fn div_ceil(number: i128, divisor: i128) -> i128 {
    number / divisor + (number % divisor > 0) as i128
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;
    use shard_ownership::hash::fnv1a64;

    use super::*;

    #[test]
    fn quantities_are_compared_by_value() {
        for (a, b) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1000M", "1G"),
            ("2", "2000m"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("1e-3", "1m"),
            ("1e+2", "100"),
            ("1e-1", "100e-3"),
            ("1E", "1000P"),
            (".5", "500m"),
            ("5.", "+5"),
            ("0.5n", "1n"),
            ("1e-50", "1n"),
            ("0.1Ki", "102.4"),
        ] {
            assert_eq!(
                quantity_nano(a).unwrap(),
                quantity_nano(b).unwrap(),
                "{a} {b}"
            );
        }
        assert_ne!(quantity_nano("1G"), quantity_nano("1Gi"));
        for bad in [
            "",
            "Gi",
            "1.2.3",
            "-1",
            "x",
            ".",
            "1Zi",
            "1e",
            "1e1.5",
            "1ee3",
            "+",
            "++1",
            "1 ",
            "1e40",
            "99999999999999999999999999Ei",
            "1e99999999999",
        ] {
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
    fn amounts_are_compared_by_name_as_the_api_server_stores_them() {
        let shape = Shape::of(&json!({"resources": {"requests": {}, "limits": {"cpu": "1"}}}));
        let digest = |resources: Value| shape.digest(&json!({ "resources": resources }));
        let amounts = json!({"limits": {"cpu": "0.0001", "hugepages-2Mi": "1e2"}});
        let stored = json!({"limits": {"cpu": "1m", "hugepages-2Mi": "100"}, "requests": {}});
        assert_eq!(digest(amounts.clone()), digest(stored));
        for other in [
            json!({"limits": {"cpu": "0.0001"}}),
            json!({"limits": {"cpu": "0.0001", "hugepages-2Mi": "101"}}),
            json!({"limits": {"cpu": "0.0001", "hugepages-1Gi": "1e2"}}),
            json!({"requests": {"cpu": "0.0001", "hugepages-2Mi": "1e2"}}),
        ] {
            assert_ne!(digest(amounts.clone()), digest(other.clone()), "{other}");
        }
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

    /// Fingerprints are stored on children: with another encoding, the next version would apply all of them again.
    #[test]
    fn encoding_of_a_document_stays_as_it_is() {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let bytes = [
            b"{".to_vec(),
            text("a"),
            text("x"),
            text("b"),
            b"[".to_vec(),
            text("-1"),
            text("0.5"),
            text("true"),
            text("false"),
            text("null"),
            b"{".to_vec(),
            b"}".to_vec(),
            b"]".to_vec(),
            b"}".to_vec(),
        ];
        let sample = json!({"b": [-1, 0.5, true, false, null, {}], "a": "x"});
        assert_eq!(document(&sample), fnv1a64(&bytes.concat()));
    }

    proptest! {
        #[test]
        fn document_digest_distinguishes_texts(a in ".{0,8}", b in ".{0,8}", c in ".{0,8}", d in ".{0,8}") {
            let (left, right) = (json!([a, b]), json!([c, d]));
            prop_assert_eq!(left == right, document(&left) == document(&right));
        }
    }
}
