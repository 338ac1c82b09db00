//! The messages of the API server in a list or a watch, decoded no further than needed.
//!
//! `managedFields` and annotations of others are skipped: they are never decoded, and make up more
//! than half of an object.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::object::ObjectKey;

/// Which annotations of an object are decoded.
pub trait Annotations {
    /// What their names begin with.
    const PREFIX: &'static str;
}

/// All annotations.
pub struct All;

impl Annotations for All {
    const PREFIX: &'static str = "";
}

/// One line of a watch.
#[derive(Deserialize)]
pub struct Line<'a> {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    #[serde(borrow, rename = "type")]
    pub what: Cow<'a, str>,
    /// The object, not decoded yet.
    #[serde(borrow)]
    pub object: &'a RawValue,
}

impl<'a> Line<'a> {
    /// Splits a line.
    ///
    /// A line as the API server writes it is split by its beginning and its end, and what is wrong in the object
    /// shows when it is decoded: an object is read once, not first to find its end.
    ///
    /// # Errors
    /// When the line is not JSON with a type and an object.
    pub fn split(line: &'a [u8]) -> serde_json::Result<(Cow<'a, str>, &'a str)> {
        if let Some((what, object)) = Self::split_plain(line) {
            return Ok((Cow::Borrowed(what), object));
        }
        let line: Line<'a> = serde_json::from_slice(line)?;
        Ok((line.what, line.object.get()))
    }

    fn split_plain(line: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let rest = line.strip_prefix(br#"{"type":""#)?;
        let end = rest.iter().position(|byte| !byte.is_ascii_uppercase())?;
        let (what, rest) = rest.split_at(end);
        let object = rest.strip_prefix(br#"","object":"#)?;
        let object = object.trim_ascii_end().strip_suffix(b"}")?;
        Some((str::from_utf8(what).ok()?, str::from_utf8(object).ok()?))
    }
}

/// One page of a list.
#[derive(Deserialize)]
pub struct Page<'a> {
    /// The list's version and continue token.
    #[serde(borrow)]
    pub metadata: PageMeta<'a>,
    /// The objects, not decoded yet.
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    pub items: Vec<&'a RawValue>,
}

/// A list of metadata without items contains `null`.
fn null_is_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<&'de RawValue>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// See [`Page`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMeta<'a> {
    /// Version from which to watch.
    #[serde(borrow, default)]
    pub resource_version: Cow<'a, str>,
    /// Continue token of the next page; empty after the last.
    #[serde(borrow, default, rename = "continue")]
    pub next: Cow<'a, str>,
}

/// The fields that identify an object: all that is decoded of one that lies in none of our shards.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Head<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    /// `metadata.uid`.
    #[serde(borrow, default)]
    pub uid: Cow<'a, str>,
    /// `metadata.resourceVersion`.
    #[serde(borrow, default)]
    pub resource_version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Headed<'a> {
    #[serde(borrow)]
    metadata: Head<'a>,
}

impl<'a> Head<'a> {
    /// Decodes the head of an object.
    ///
    /// # Errors
    /// When the text is not an object with metadata.
    pub fn read(object: &'a str) -> serde_json::Result<Self> {
        serde_json::from_str::<Headed<'_>>(object).map(|headed| headed.metadata)
    }

    /// Namespace and name.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }
}

/// The content of a bookmark.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Bookmark {
    /// Version to continue from.
    pub resource_version: String,
    /// Whether all existing objects have been sent.
    pub ends_list: bool,
}

impl Bookmark {
    /// Decodes a bookmark.
    ///
    /// # Errors
    /// When the text is not an object with metadata.
    pub(crate) fn read(object: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            resource_version: String,
            #[serde(default)]
            annotations: BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        struct Object {
            metadata: Meta,
        }
        let meta = serde_json::from_str::<Object>(object)?.metadata;
        Ok(Self {
            ends_list: meta.annotations.contains_key("k8s.io/initial-events-end"),
            resource_version: meta.resource_version,
        })
    }
}

/// The metadata of an object as it arrives: what is of no use here is never decoded. `A` chooses the
/// annotations.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "A: Annotations")]
pub struct WireMeta<A> {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Chosen<A>>,
    owner_references: Option<Vec<OwnerReference>>,
}

impl<A> From<WireMeta<A>> for ObjectMeta {
    fn from(meta: WireMeta<A>) -> Self {
        Self {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            resource_version: meta.resource_version,
            generation: meta.generation,
            deletion_timestamp: meta.deletion_timestamp,
            finalizers: meta.finalizers,
            labels: meta.labels,
            annotations: meta.annotations.map(|chosen| chosen.found),
            owner_references: meta.owner_references,
            ..Self::default()
        }
    }
}

struct Chosen<A> {
    found: BTreeMap<String, String>,
    chosen_by: PhantomData<A>,
}

impl<'de, A: Annotations> Deserialize<'de> for Chosen<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice<A>(PhantomData<A>);
        impl<'de, A: Annotations> Visitor<'de> for Choice<A> {
            type Value = Chosen<A>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut found = BTreeMap::new();
                while let Some(Key(key)) = map.next_key::<Key<'de>>()? {
                    if key.starts_with(A::PREFIX) {
                        found.insert(key.into_owned(), map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Chosen {
                    found,
                    chosen_by: PhantomData,
                })
            }
        }
        deserializer.deserialize_map(Choice(PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    struct Ours;

    impl Annotations for Ours {
        const PREFIX: &'static str = "example.io/";
    }

    const EVENT: &str = r#"{"type":"MODIFIED","object":{"kind":"X","metadata":{
        "name":"a","namespace":"n","uid":"u","resourceVersion":"7","generation":3,
        "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"a\":1}",
            "example.io/fencing-token":"t/001/1/h/c","example.com/note":"x"},
        "labels":{"example.io/bucket":"3"},
        "managedFields":[{"manager":"m","fieldsV1":{"f:metadata":{}}}]},"spec":{"a":[1,2]}}}"#;

    #[test]
    fn a_head_is_read_without_the_rest() {
        let (what, object) = Line::split(EVENT.as_bytes()).unwrap();
        assert_eq!(what, "MODIFIED");
        let head = Head::read(object).unwrap();
        assert_eq!(head.key(), ObjectKey::new("n", "a"));
        assert_eq!((&*head.uid, &*head.resource_version), ("u", "7"));
        assert!(matches!(head.uid, Cow::Borrowed(_)), "the uid was copied");
    }

    #[test]
    fn line_is_split_alike_however_it_is_written() {
        for (line, what, object) in [
            (
                "{\"type\":\"ADDED\",\"object\":{\"a\":{}}}\n",
                "ADDED",
                "{\"a\":{}}",
            ),
            ("{\"type\":\"ADDED\",\"object\":{}} \r\n", "ADDED", "{}"),
            ("{ \"type\": \"ADDED\", \"object\": {} }", "ADDED", "{}"),
            (
                "{\"object\":{\"a\":\"}\"},\"type\":\"DELETED\"}",
                "DELETED",
                "{\"a\":\"}\"}",
            ),
            ("{\"type\":\"X\\u0041\",\"object\":{}}", "XA", "{}"),
        ] {
            let split = Line::split(line.as_bytes()).unwrap();
            assert_eq!((&*split.0, split.1), (what, object), "{line}");
        }
        let bad: [&[u8]; 5] = [
            b"",
            b"{\"type\":\"ADDED\"}",
            b"{\"type\":\"ADDED\",\"object\":{}",
            b"{\"type\":\"ADDED\",\"object\":{\"a\":\"\xff\"}}",
            b"{\"type\":\"ADDED\",\"object\":{}]",
        ];
        for bad in bad {
            let read = Line::split(bad).and_then(|(_, object)| Head::read(object).map(|_| ()));
            assert!(read.is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn managed_fields_and_annotations_of_others_are_dropped_on_arrival() {
        #[derive(Deserialize)]
        struct Object {
            metadata: WireMeta<Ours>,
        }
        let (_, object) = Line::split(EVENT.as_bytes()).unwrap();
        let object: Object = serde_json::from_str(object).unwrap();
        let meta = ObjectMeta::from(object.metadata);
        assert_eq!(meta.managed_fields, None);
        let annotations: Vec<String> = meta.annotations.unwrap().into_keys().collect();
        assert_eq!(annotations, ["example.io/fencing-token"]);
        assert_eq!((meta.generation, meta.uid.as_deref()), (Some(3), Some("u")));
        assert_eq!(meta.labels.unwrap()["example.io/bucket"], "3");
    }

    #[test]
    fn bookmark_ending_a_list_is_distinguished() {
        let bookmark = |text: &str| Bookmark::read(text).unwrap();
        let plain = bookmark(r#"{"metadata":{"resourceVersion":"9"}}"#);
        assert!(!plain.ends_list && plain.resource_version == "9");
        let last = r#"{"metadata":{"resourceVersion":"9","annotations":{"k8s.io/initial-events-end":"true"}}}"#;
        assert!(bookmark(last).ends_list);
    }

    #[test]
    fn page_reports_its_continue_token() {
        let text = r#"{"kind":"List","metadata":{"resourceVersion":"5","continue":"t"},"items":[{"a":1},{}]}"#;
        let page: Page<'_> = serde_json::from_str(text).unwrap();
        assert_eq!(
            (&*page.metadata.resource_version, &*page.metadata.next),
            ("5", "t")
        );
        assert_eq!(page.items.len(), 2);
        for empty in [r#"{"metadata":{}}"#, r#"{"metadata":{},"items":null}"#] {
            let last: Page<'_> = serde_json::from_str(empty).unwrap();
            assert!(last.metadata.next.is_empty() && last.items.is_empty());
        }
    }
}
