//! Quantities in a spec: numbers or text, as in a Pod, and the rules about them in the schema.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// Longest quantity, in characters.
const LENGTH_MAX: u32 = 20;
/// Most resources by name.
const NAMES_MAX: u32 = 8;

/// A rule in CEL: a quantity from `$min` to `$max`.
///
/// The pattern comes first because comparing a quantity with an exponent of many digits costs the API
/// server memory without a bound.
macro_rules! quantity_from {
    ($value:literal, $min:literal, $max:literal) => {
        concat!(
            "string(",
            $value,
            ").matches('^[+]?[0-9.]+([eE][-+]?[0-9]{1,2}|[A-Za-z]{0,2})$') && isQuantity(string(",
            $value,
            ")) && quantity(string(",
            $value,
            ")).compareTo(quantity('",
            $min,
            "')) >= 0 && quantity(string(",
            $value,
            ")).compareTo(quantity('",
            $max,
            "')) <= 0"
        )
    };
}

/// Error message for a value that [`CPU`] rejects.
pub(super) const CPU_SAYS: &str = "cpu must be from 1m to 100k, for example 500m, 2 or 1.5";
/// Error message for a memory value that [`BYTES`] rejects.
pub(super) const MEMORY_SAYS: &str = "memory must be from 16Mi to 1Ei, for example 512Mi or 4Gi; a number without a unit is in bytes";
/// Error message for a map that [`MAP`] rejects.
pub(super) const MAP_SAYS: &str = "each name must have at most 317 characters, and each amount be a quantity, for example 500m or 2Gi";

/// CPU. The smallest amount in Kubernetes is a thousandth of a core.
pub(super) const CPU: &str = quantity_from!("self", "1m", "100k");
/// Bytes of memory or storage. Less than this is a wrong or missing unit: no server starts with it.
pub(super) const BYTES: &str = quantity_from!("self", "16Mi", "1Ei");
/// Resources by name. Kubernetes allows no longer names.
pub(super) const MAP: &str = concat!(
    "self.all(k, k.size() <= 317 && ",
    quantity_from!("self[k]", "0", "1Ei"),
    ")"
);
/// CPU among resources by name.
pub(super) const MAP_CPU: &str = concat!(
    "!('cpu' in self) || (",
    quantity_from!("self['cpu']", "1m", "100k"),
    ")"
);
/// Memory among resources by name.
pub(super) const MAP_MEMORY: &str = concat!(
    "!('memory' in self) || (",
    quantity_from!("self['memory']", "16Mi", "1Ei"),
    ")"
);
/// A value that is not a quantity is rejected by a rule of its own.
pub(super) const REQUESTS_WITHIN_LIMITS: &str = concat!(
    "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || !(",
    quantity_from!("self.requests[k]", "0", "1Ei"),
    ") || !(",
    quantity_from!("self.limits[k]", "0", "1Ei"),
    ") || quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)"
);

/// Rule of an object whose storage size replaces another one: it grows, or shrinks to no less than the size of the
/// volumes. A value that is not a quantity is rejected by a rule of its own.
pub(super) const SIZE_GROWS: &str = concat!(
    "!(",
    quantity_from!("self.spec.storage.size", "0", "1Ei"),
    ") || !(",
    quantity_from!("oldSelf.spec.storage.size", "0", "1Ei"),
    ") || quantity(string(self.spec.storage.size)).compareTo(quantity(string(oldSelf.spec.storage.size))) >= 0 \
    || !has(oldSelf.status) || !has(oldSelf.status.storageSize) || !isQuantity(oldSelf.status.storageSize) \
    || quantity(string(self.spec.storage.size)).compareTo(quantity(oldSelf.status.storageSize)) >= 0"
);

/// Schema of a quantity. A fraction needs quotes: a schema knows no "integer, number or string". A null is dropped, as
/// in a Pod.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": false,
        "maxLength": LENGTH_MAX,
    })
}

/// Schema of quantities by name.
pub(super) fn map_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": NAMES_MAX,
        "additionalProperties": schema(generator),
    })
}

/// A quantity as text.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl de::Visitor<'_> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a quantity: an integer or a text such as 500m")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Text, E> {
        Ok(Text(number.to_string()))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
        Ok(Text(text.to_owned()))
    }
}

/// Reads a quantity.
pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Text::deserialize(deserializer).map(|text| text.0)
}

/// Reads a quantity that may be missing.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let text = Option::<Text>::deserialize(deserializer)?;
    Ok(text.map(|text| text.0))
}

/// Reads quantities by name, which may be missing.
pub(super) fn optional_map<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let map = Option::<BTreeMap<String, Text>>::deserialize(deserializer)?;
    Ok(map.map(|map| map.into_iter().map(|(name, text)| (name, text.0)).collect()))
}

/// Reads texts by name, which may be integers.
pub(super) fn texts<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    optional_map(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::{Resources, Storage};

    #[test]
    fn numbers_and_texts_are_read_alike() {
        let read = |value| serde_json::from_value::<Resources>(value).unwrap();
        let short = read(json!({"cpu": 1, "memory": 1_073_741_824}));
        assert_eq!(short, read(json!({"cpu": "1", "memory": "1073741824"})));
        let standard = read(json!({"requests": {"cpu": 1}, "limits": {"cpu": "1e0"}}));
        assert_eq!(standard.requests.unwrap()["cpu"], "1");
        assert_eq!(standard.limits.unwrap()["cpu"], "1e0");
        let storage: Storage = serde_json::from_value(json!({"size": 20_000_000})).unwrap();
        assert_eq!(storage.size, "20000000");
        assert_eq!(
            read(json!({"cpu": null, "limits": null})),
            Resources::default()
        );
        for bad in [json!({"cpu": true}), json!({"cpu": ["1"]})] {
            serde_json::from_value::<Resources>(bad).unwrap_err();
        }
    }
}
