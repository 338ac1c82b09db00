//! A text with placeholders, so that thousands of copies are rendered without parsing it again.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What is filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Name of the DatabaseCluster.
    Name,
    /// Its namespace.
    Namespace,
    /// Its bucket.
    Bucket,
    /// Its shard, with three digits.
    Shard,
    /// Uid of the object with this number; the DatabaseCluster is 0.
    Uid(usize),
    /// Fingerprint of the object with this number.
    Fingerprint(usize),
}

/// What to fill in.
pub(crate) type Filling = BTreeMap<Place, String>;

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Place(Place),
    Base64(Pattern),
}

/// A text with places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pattern(Vec<Piece>);

impl Pattern {
    /// A text in which each of the `tokens` is a place.
    pub(crate) fn of(text: &str, tokens: &[(String, Place)]) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        loop {
            let found = tokens.iter().filter(|(token, _)| !token.is_empty());
            let found = found.filter_map(|(token, place)| Some((rest.find(token)?, token, place)));
            // Of two that begin at the same place the longer one: the other is a part of it.
            let next = found.min_by_key(|(at, token, _)| (*at, usize::MAX - token.len()));
            let Some((at, token, place)) = next else {
                break;
            };
            pieces.push(Piece::Text(rest[..at].to_owned()));
            pieces.push(Piece::Place(*place));
            rest = &rest[at + token.len()..];
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Self(pieces)
    }

    /// Puts a text that is to be filled in and then encoded in the place of `token`.
    pub(crate) fn embed(&mut self, token: &str, inner: &Self) {
        let mut pieces = Vec::new();
        for piece in self.0.drain(..) {
            match piece {
                Piece::Text(text) => match text.split_once(token) {
                    Some((before, after)) => pieces.extend([
                        Piece::Text(before.to_owned()),
                        Piece::Base64(inner.clone()),
                        Piece::Text(after.to_owned()),
                    ]),
                    None => pieces.push(Piece::Text(text)),
                },
                other => pieces.push(other),
            }
        }
        self.0 = pieces;
    }

    /// The text.
    pub(crate) fn fill(&self, filling: &Filling) -> String {
        let mut text = String::with_capacity(8 << 10);
        for piece in &self.0 {
            match piece {
                Piece::Text(own) => text.push_str(own),
                Piece::Place(place) => {
                    text.push_str(filling.get(place).map_or("", String::as_str));
                }
                Piece::Base64(inner) => STANDARD.encode_string(inner.fill(filling), &mut text),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_that_share_a_prefix_are_replaced() {
        let tokens = [
            ("a".to_owned(), Place::Name),
            ("ab".to_owned(), Place::Namespace),
        ];
        let mut pattern = Pattern::of("ab-a-@-a", &tokens);
        pattern.embed("@", &Pattern::of("a", &tokens));
        let filling = [
            (Place::Name, "1".to_owned()),
            (Place::Namespace, "2".to_owned()),
        ];
        assert_eq!(pattern.fill(&filling.into()), "2-1-MQ==-1");
    }
}
