//! The fleet page: one self-contained answer, under a policy that forbids loading anything else.

const HTML: &str = include_str!("page/fleet.html");
const STYLE: &str = include_str!("page/fleet.css");
/// In this order: later ones use what earlier ones define.
const SCRIPTS: [&str; 3] = [
    include_str!("page/basics.js"),
    include_str!("page/ring.js"),
    include_str!("page/fleet.js"),
];

/// Format in which a client requests the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The page.
    Page,
    /// For programs, and for the page itself.
    Json,
    /// For terminals.
    Table,
}

/// The first supported form in `Accept`; JSON if the client accepts anything.
pub(super) fn form(accept: Option<&str>) -> Form {
    let mut wanted = accept.unwrap_or_default().split(',').map(|entry| {
        let media = entry.split(';').next().unwrap_or_default().trim();
        match media.to_ascii_lowercase().as_str() {
            "text/html" | "application/xhtml+xml" => Some(Form::Page),
            "application/json" | "application/*" | "*/*" => Some(Form::Json),
            "text/plain" | "text/*" => Some(Form::Table),
            _ => None,
        }
    });
    wanted.find_map(|form| form).unwrap_or(Form::Json)
}

/// A random number; `None` if the kernel returns none.
pub(super) fn nonce() -> Option<String> {
    let mut bytes = [0u8; 16];
    let got = getrandom::fill(&mut bytes);
    got.is_ok()
        .then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The page, whose own style and script carry `nonce`. It does not contain the data: it requests
/// it.
pub(super) fn page(nonce: &str) -> String {
    HTML.replace("NONCE", nonce)
        .replace("/* STYLE */", STYLE)
        .replace("/* SCRIPT */", &SCRIPTS.join("\n"))
}

/// Only what carries the nonce runs; the page may send requests to this server only; no text can
/// become markup (trusted types); it cannot be framed.
pub(super) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_known_form_wins() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        for (accept, expected) in [
            (None, Form::Json),
            (Some("*/*"), Form::Json),
            (Some("application/json"), Form::Json),
            (Some("application/json, text/plain, */*"), Form::Json),
            (Some(browser), Form::Page),
            (Some("TEXT/HTML;q=1"), Form::Page),
            (Some("text/plain"), Form::Table),
            (Some("image/png"), Form::Json),
            (Some(""), Form::Json),
        ] {
            assert_eq!(form(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn the_page_is_whole_and_refers_to_nothing_outside() {
        let page = page("0123abcd");
        assert_eq!(page.matches("nonce=\"0123abcd\"").count(), 2);
        for marker in ["NONCE", "/* STYLE */", "/* SCRIPT */"] {
            assert!(!page.contains(marker), "{marker}");
        }
        assert_eq!(page.matches("</script").count(), 1);
        assert_eq!(page.matches("</style").count(), 1);
        let namespace = "http://www.w3.org/2000/svg";
        let rest = page.replace(namespace, "").replace("%3A//www.w3.org", "");
        let rest = rest.replace("url(#", "");
        for outside in ["http:", "https:", "//cdn", "url(", "@import", " src="] {
            assert!(!rest.contains(outside), "{outside}");
        }
        // What a policy without 'unsafe-inline' would silently drop, and what makes markup of text.
        for unsafe_word in [
            " style=\"",
            "onclick",
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
        ] {
            assert!(!page.contains(unsafe_word), "{unsafe_word}");
        }
    }

    #[test]
    fn no_two_nonces_are_the_same() {
        let (one, other) = (nonce().unwrap(), nonce().unwrap());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
        assert!(policy(&one).contains(&format!("script-src 'nonce-{one}';")));
    }
}
