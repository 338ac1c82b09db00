//! Makes external text safe for a terminal, a log line or a page: bounded, without control characters.

/// At most `chars_max` characters of `text`, on one line; control and invisible characters become
/// `?`, and a cut is marked by `…`.
#[must_use]
pub fn safe(text: &str, chars_max: usize) -> String {
    let mut shown: String = text.chars().take(chars_max).map(plain).collect();
    if text.chars().nth(chars_max).is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

fn plain(c: char) -> char {
    if c.is_control() || hidden(c) { '?' } else { c }
}

/// Characters that reorder or hide their neighbours, so that one name can pass for another.
fn hidden(c: char) -> bool {
    matches!(c,
        '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_control_characters_are_replaced_with_question_marks() {
        assert_eq!(
            safe("a\x1b[31mred\r\nb\u{202e}c\u{9b}2J", 99),
            "a?[31mred??b?c?2J"
        );
        assert_eq!(safe("größer 数据", 99), "größer 数据");
    }

    #[test]
    fn long_text_is_truncated_with_an_ellipsis() {
        assert_eq!(safe("abcdef", 6), "abcdef");
        assert_eq!(safe("abcdefg", 6), "abcde…");
        assert_eq!(safe("abc", 0), "…");
        assert_eq!(safe("", 0), "");
    }
}
